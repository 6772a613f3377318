"""A model on Triton Inference Server: chunks are sent by gRPC, labels are returned.

Everything else runs on this machine. The model's description is requested once, at the start: the contract, and the
hash of the served file, are in the parameters written by `parotid-seg export --triton`. The server is not trusted: its
texts appear in messages as one plain line, and labels are checked before use.
"""

from __future__ import annotations

import hashlib
import ipaddress
import os
import re
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Any, NoReturn

import numpy as np

from parotid_seg.contract import METADATA_KEY, Contract
from parotid_seg.errors import DeviceMemoryError, InputError, ModelError, OptionError, ParotidSegError
from parotid_seg.runtime.engines.base import OUTPUTS, Backend, ExecutionInfo, check_names
from parotid_seg.runtime.pipeline.journal import RESUMES
from parotid_seg.scan.chunks import Inputs
from parotid_seg.scan.codes import plain
from parotid_seg.scan.volume import Mask

DEFAULT_MODEL_NAME = "parotid-seg"
"""Default name of a model in `export.triton.model_config.Serving`."""
CONTRACT_HASH_KEY, MODEL_HASH_KEY = "parotid_seg.contract_sha256", "parotid_seg.model_sha256"
"""Parameters of a model's configuration, besides `METADATA_KEY` for the contract itself."""
IN_FLIGHT = 4
"""Chunks in flight: while one is transferred others are computed, and the server's batcher can join them."""
ASKED_S = 20.0
"""Seconds for an answer about the server's models."""
COMPUTED_S = 300.0
"""Seconds for a chunk's labels, including the wait for earlier chunks of other clients."""
DELIVERED_S = 10.0
"""Most seconds until the client reports an answer, or that there was none in time."""
LARGEST_MESSAGE = 2**31 - 1
"""Most bytes of a message in gRPC and protocol buffers. gRPC's default of 4 MiB is too small for a chunk's slices."""
ROOM = 2**16
"""Bytes of a request besides its arrays."""
CHANNEL = (
    ("grpc.max_send_message_length", LARGEST_MESSAGE),
    ("grpc.max_receive_message_length", LARGEST_MESSAGE),
    ("grpc.enable_http_proxy", 0),  # scans are sent to the named server directly, not through a proxy
)
LONGEST_REASON = 300


class TritonBackend(Backend):
    """A model on a Triton server.

    Args:
        address: HOST:PORT of the server's gRPC endpoint, see `check_address`.
        model: its name on the server.
        allow_unverified: whether a model may be used that `parotid-seg export` has not verified.

    Raises:
        InputError: if the address is invalid, or tritonclient is missing.
        ModelError: if the server has no such model, it is not ready, or it is not a parotid-seg model.
        ParotidSegError: if the server cannot be reached or does not answer.
    """

    queue_depth = IN_FLIGHT

    def __init__(self, address: str, model: str = DEFAULT_MODEL_NAME, *, allow_unverified: bool = False) -> None:
        self._grpc = _import_client()
        self._model = model
        self._where = f"--triton {check_address(address)}, model {plain(model)}"
        self._client = self._grpc.InferenceServerClient(address, channel_args=list(CHANNEL))
        with self._asking(ASKED_S):
            self._read_description(address)
        if not (self.contract.verification or allow_unverified):
            raise ModelError(
                f"{self._where}: not verified: nothing shows that it is the model that was trained; serve one that "
                "parotid-seg export wrote, or use it all the same with --allow-unverified"
            )

    def start(self, inputs: Inputs) -> _Sent:
        """Send a chunk. The labels arrive in the background."""
        size = sum(array.nbytes for array in inputs.values())
        if size > LARGEST_MESSAGE - ROOM:
            raise DeviceMemoryError(
                f"{self._where}: a request of {size >> 20} MiB, expected less than {LARGEST_MESSAGE >> 20}"
            )
        answer: Future[Any] = Future()

        def answered(result: Any, error: Exception | None) -> None:
            if error is None:
                answer.set_result(result)
            else:
                answer.set_exception(error)

        with self._asking(COMPUTED_S):
            self._client.async_infer(
                self._model,
                [self._tensor(name, array) for name, array in inputs.items()],
                answered,
                model_version=self._version,
                outputs=[self._grpc.InferRequestedOutput(OUTPUTS[0])],
                client_timeout=COMPUTED_S,
            )
        sizes = tuple(inputs[name].shape[0] for name in ("slices_back", "rows_back", "columns_back"))
        return _Sent(self, answer, sizes)

    def finished(self, answer: Future[Any], sizes: tuple[int, ...]) -> Mask:
        """Wait for a chunk's labels, and check them."""
        with self._asking(COMPUTED_S, f"; {RESUMES}"):
            try:
                result = answer.result(COMPUTED_S + DELIVERED_S)
            except TimeoutError as error:  # the client has reported neither
                self._fail("DEADLINE_EXCEEDED", "", COMPUTED_S + DELIVERED_S, f"; {RESUMES}", error)
        output = result.get_output(OUTPUTS[0])
        expected = ("UINT8", (1, *sizes) if self._has_request_axis else sizes)
        found = ("no labels", ()) if output is None else (output.datatype, tuple(output.shape))
        if found != expected:
            shown = f"{plain(found[0])[:20]} of shape {found[1][:8]}"
            raise ModelError(f"{self._where}: found {shown}, expected {expected[0]} of shape {expected[1]}")
        try:
            labels: Mask = result.as_numpy(OUTPUTS[0])
        except ValueError as error:  # numpy's error for bytes that do not fit the shape
            raise ModelError(f"{self._where}: found labels cut off, expected {expected[1]}") from error
        if labels.max() >= len(self.contract.labels):
            raise ModelError(
                f"{self._where}: found label {labels.max()}, expected 0 to {len(self.contract.labels) - 1}"
            )
        return labels[0] if self._has_request_axis else labels

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    def _tensor(self, name: str, array: Any) -> Any:
        if self._has_request_axis:
            array = array[None]
        tensor = self._grpc.InferInput(name, list(array.shape), "FP16" if array.dtype == np.float16 else "FP32")
        tensor.set_data_from_numpy(array)
        return tensor

    def _read_description(self, address: str) -> None:
        """Request the server's description of the model, and keep it."""
        server = self._client.get_server_metadata(client_timeout=ASKED_S)
        if not self._client.is_model_ready(self._model, client_timeout=ASKED_S):
            raise ModelError(f"{self._where}: no such model is ready there; ready are: {self._ready()}")
        metadata = self._client.get_model_metadata(self._model, client_timeout=ASKED_S)
        config = self._client.get_model_config(self._model, client_timeout=ASKED_S).config
        if len(metadata.versions) != 1:
            versions = plain(", ".join(metadata.versions)) or "none"
            raise ModelError(f"{self._where}: found versions {versions}, expected one, which the contract is of")
        (self._version,) = metadata.versions
        self.contract, self.model_sha256 = _contract(config, self._where)
        inputs, outputs = ([each.name for each in side] for side in (config.input, config.output))
        check_names(inputs, outputs, OUTPUTS[0], where=self._where)
        engine = f"{self._model} version {self._version} ({config.platform or config.backend})"
        name = plain(f"{server.name} {server.version}, {engine}")
        self.ran = ExecutionInfo(name, address, self.contract.precision)
        self._has_request_axis = config.max_batch_size > 0  # whether every array has a leading axis of requests

    def _ready(self) -> str:
        """Names of the models that are ready on the server."""
        index = self._client.get_model_repository_index(client_timeout=ASKED_S)
        names = sorted({each.name for each in index.models if each.state == "READY"})
        return plain(", ".join(names))[:LONGEST_REASON] or "none"

    @contextmanager
    def _asking(self, seconds: float, then: str = "") -> Iterator[None]:
        """Turn exceptions of the client into one line."""
        from tritonclient.utils import InferenceServerException

        try:
            yield
        except InferenceServerException as error:
            status = str(error.status() or "").removeprefix("StatusCode.")
            reason = plain(" ".join(str(error.message()).split()))[:LONGEST_REASON]
            self._fail(status, reason, seconds, then, error)

    def _fail(self, status: str, reason: str, seconds: float, then: str, error: Exception) -> NoReturn:
        if status == "RESOURCE_EXHAUSTED":
            raise DeviceMemoryError(f"{self._where}: a request of this size is not taken ({reason})") from error
        if status == "DEADLINE_EXCEEDED":
            raise ParotidSegError(f"{self._where}: no answer within {seconds:g} s{then}") from error
        if status in ("UNAVAILABLE", "CANCELLED"):
            raise ParotidSegError(
                f"{self._where}: cannot be reached, or has stopped ({reason}); "
                f"expected the gRPC port of a Triton server, usually 8001, without TLS{then}"
            ) from error
        raise ModelError(f"{self._where}: the server refused ({status or 'no status'}: {reason}){then}") from error


@dataclass(frozen=True)
class _Sent:
    """A chunk in flight; `sizes` is the shape of its labels."""

    backend: TritonBackend
    answer: Future[Any]
    sizes: tuple[int, ...]

    def result(self) -> Mask:
        """Wait for the labels."""
        return self.backend.finished(self.answer, self.sizes)


def check_address(text: str) -> str:
    """Check HOST:PORT (a name or an IPv4 address, or an IPv6 address in brackets, and a port) and return it unchanged.

    Raises:
        InputError: if it is anything else, a URL for example.
    """
    match = re.fullmatch(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?):([0-9]{1,5})", text)
    if match is None or not 1 <= int(match[2]) <= 65535 or not _is_host(match[1]):
        raise OptionError(
            f"--triton: found {plain(text)[:LONGEST_REASON]!r}, expected HOST:PORT, as localhost:8001 or [::1]:8001, "
            "without a scheme"
        )
    return text


def _is_host(text: str) -> bool:
    if not text.startswith("["):
        return True
    try:
        ipaddress.IPv6Address(text[1:-1])
    except ValueError:
        return False
    return True


def _contract(config: Any, where: str) -> tuple[Contract, str]:
    """The contract, and the hash of the model file, from a model's configuration.

    Raises:
        ModelError: if they are missing, changed or of another contract version.
    """
    values = {key: value.string_value for key, value in config.parameters.items()}
    for key in (METADATA_KEY, CONTRACT_HASH_KEY, MODEL_HASH_KEY):
        if key not in values:
            raise ModelError(f"{where}: found no parameter {key}, expected a model that parotid-seg export wrote")
    text, sha256 = values[METADATA_KEY], values[MODEL_HASH_KEY]
    if hashlib.sha256(text.encode()).hexdigest() != values[CONTRACT_HASH_KEY]:
        raise ModelError(f"{where}: the contract in its configuration was changed; write the repository again")
    if not re.fullmatch("[0-9a-f]{64}", sha256):
        raise ModelError(f"{where}: parameter {MODEL_HASH_KEY}: found {plain(sha256)[:80]!r}, expected a SHA-256")
    return Contract.from_json(text, where=where), sha256


def _import_client() -> ModuleType:
    """The client's module.

    Raises:
        InputError: if it is missing.
    """
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # otherwise it also logs the errors reported here to stderr
    try:
        from tritonclient import grpc
    except (ImportError, RuntimeError) as error:  # tritonclient raises RuntimeError if grpc is missing
        reason = " ".join(str(error).split())
        raise InputError(
            f"--triton: the package tritonclient with grpc is missing ({reason}): pip install 'parotid-seg[triton]'"
        ) from error
    return grpc  # type: ignore[no-any-return]
