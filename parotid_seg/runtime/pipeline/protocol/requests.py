"""Requests of the main process to a worker, as frames.

A `WorkerConfig`, a `CaseRequest` and a `ScanError` are pickled within a frame: the worker is a child of the main
process, runs its code with its rights, and trusts it. Nothing pickled is sent in the other direction, see `answers`.
"""

from __future__ import annotations

import pickle
from typing import IO

import msgspec
import numpy as np

from parotid_seg.errors import ScanError
from parotid_seg.runtime.pipeline.protocol.framing import read_arrays, read_head, write_frame
from parotid_seg.runtime.pipeline.protocol.messages import CaseRequest, WorkerConfig
from parotid_seg.runtime.segmentation.batching import Prediction

MOST_HEAD_BYTES = (1 << 32) - 1
"""Most bytes of a head: DICOM series with many slices make a long request."""


class _Pickled(msgspec.Struct, tag="pickled", frozen=True):
    """A `WorkerConfig`, a `CaseRequest` or a `ScanError`."""

    content: bytes


class _Labels(msgspec.Struct, tag="labels", frozen=True):
    """A `Prediction`; the labels (D, h, w) follow as uint8."""

    shape: tuple[int, int, int]
    agreement: dict[str, float]
    seconds: float
    computed: int


_ENCODER = msgspec.msgpack.Encoder()
_DECODER = msgspec.msgpack.Decoder(_Pickled | _Labels)


def send_request(request: WorkerConfig | CaseRequest | Prediction | ScanError, stream: IO[bytes]) -> None:
    """Send a request to a worker."""
    if isinstance(request, Prediction):
        depth, height, width = request.labels.shape
        head = _Labels((depth, height, width), request.agreement, request.seconds, request.computed)
        write_frame(stream, _ENCODER.encode(head), [request.labels])
        return
    write_frame(stream, _ENCODER.encode(_Pickled(pickle.dumps(request))))


def next_request(stream: IO[bytes]) -> WorkerConfig | CaseRequest | Prediction:
    """Read a request, in a worker.

    Raises:
        EOFError: if there are no more.
        ScanError: if the request is one, in place of labels.
    """
    head, array_bytes = read_head(stream, MOST_HEAD_BYTES)
    message = _DECODER.decode(head)
    if isinstance(message, _Labels):
        (labels,) = read_arrays(stream, array_bytes, [(np.uint8, message.shape)])
        return Prediction(labels, message.agreement, message.seconds, message.computed)
    request: WorkerConfig | CaseRequest | ScanError = pickle.loads(message.content)
    if isinstance(request, ScanError):
        raise request
    return request
