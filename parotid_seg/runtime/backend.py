"""What runs a model file: the small interface all engines share, and the choice between them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from parotid_seg.contract import Contract
from parotid_seg.errors import InputError
from parotid_seg.scan.volume import Mask

BACKENDS = ("auto", "onnxruntime")
DEVICES = ("auto", "cpu")


@dataclass(frozen=True)
class Ran:
    """What really runs the model, for run.json and summary.csv.

    Attributes:
        backend: engine and its version.
        device: where it runs.
        precision: type it computes in.
    """

    backend: str
    device: str
    precision: str


class Backend(Protocol):
    """A loaded model. It is made once and segments any number of chunks.

    Attributes:
        contract: what the model file promises.
        model_sha256: hash of the model file.
        ran: what really runs it.
        loads: how often this process has loaded a model with this backend.
    """

    loads: ClassVar[int]
    contract: Contract
    model_sha256: str
    ran: Ran

    def run(self, inputs: dict[str, NDArray[np.float16] | NDArray[np.float32]]) -> Mask:
        """One chunk (see `scan.grid.Chunk`) to labels (B, H, W)."""
        ...


def load_backend(model: Path, backend: str = "auto", device: str = "auto", threads: int | None = None) -> Backend:
    """Load a model file.

    Args:
        model: the .onnx file.
        backend: one of `BACKENDS`; "auto" is onnxruntime.
        device: one of `DEVICES`; "auto" is the CPU.
        threads: computing threads; default: one a core.

    Raises:
        InputError: for a backend or device this version does not have.
        ModelError: if the file is missing, no ONNX model of ours, or its contract does not fit.
    """
    if backend not in BACKENDS:
        raise InputError(f"--backend: found {backend!r}, expected one of: {', '.join(BACKENDS)}")
    if device not in DEVICES:
        raise InputError(f"--device: found {device!r}, expected one of: {', '.join(DEVICES)}")
    from parotid_seg.runtime.ort import OnnxRuntimeBackend

    return OnnxRuntimeBackend(model, threads=threads)
