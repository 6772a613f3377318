"""The choice between backends."""

from __future__ import annotations

from pathlib import Path

from parotid_seg.errors import InputError, ModelError
from parotid_seg.runtime.backend import Backend
from parotid_seg.runtime.ort import OnnxRuntimeBackend

BACKENDS = ("auto", "onnxruntime")
DEVICES = ("auto", "cpu")


def load_backend(
    model: Path,
    backend: str = "auto",
    device: str = "auto",
    threads: int | None = None,
    *,
    allow_unverified: bool = False,
) -> Backend:
    """Load a model file.

    Args:
        model: the .onnx file.
        backend: one of `BACKENDS`; "auto" is onnxruntime.
        device: one of `DEVICES`; "auto" is the CPU.
        threads: computing threads; default: one a core.
        allow_unverified: whether a model may be used that `parotid-seg export` has not proven.

    Raises:
        InputError: for a backend or device this version does not have.
        ModelError: if the file is missing, no ONNX model of ours, changed, unverified, or its contract does not fit.
    """
    if backend not in BACKENDS:
        raise InputError(f"--backend: found {backend!r}, expected one of: {', '.join(BACKENDS)}")
    if device not in DEVICES:
        raise InputError(f"--device: found {device!r}, expected one of: {', '.join(DEVICES)}")
    loaded = OnnxRuntimeBackend(model, threads=threads)
    if not (loaded.contract.verification or allow_unverified):
        raise ModelError(
            f"{model}: not verified: nothing shows that it is the model that was trained; export its checkpoint "
            "(parotid-seg export), or use it all the same with --allow-unverified"
        )
    return loaded
