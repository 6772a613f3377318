"""ONNX models on onnxruntime's CPU provider."""

from __future__ import annotations

import hashlib
from importlib import metadata
from pathlib import Path
from typing import ClassVar

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from parotid_seg.contract import METADATA_KEY, Contract
from parotid_seg.errors import ModelError, ParotidSegError
from parotid_seg.runtime.backend import Ran
from parotid_seg.scan.volume import Mask

INPUTS = ("slices", "window", "rows", "columns", "neighbours", "slices_back", "rows_back", "columns_back")


class OnnxRuntimeBackend:
    """A model file on the CPU.

    Args:
        model: the .onnx file.
        threads: computing threads; default: one a core.

    Raises:
        ModelError: if the file is missing, not an ONNX model, without a contract, or of another contract version.
        ParotidSegError: if both onnxruntime and onnxruntime-gpu are installed.
    """

    loads: ClassVar[int] = 0

    def __init__(self, model: Path, threads: int | None = None) -> None:
        check_single_onnxruntime()
        content = read_model(model)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        if threads:
            options.intra_op_num_threads = threads
        try:
            session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime raises its own classes, all derived from Exception only
            reason = str(error).splitlines()[0]
            raise ModelError(f"{model}: not an ONNX model that onnxruntime can load ({reason})") from error
        text = session.get_modelmeta().custom_metadata_map.get(METADATA_KEY)
        if text is None:
            raise ModelError(f"{model}: an ONNX model, but without parotid-seg's contract in its metadata")
        found = tuple(sorted(entry.name for entry in session.get_inputs()))
        self.contract = Contract.from_json(text, where=str(model))
        if found != tuple(sorted(INPUTS)):
            raise ModelError(f"{model}: found inputs {', '.join(found)}, expected {', '.join(sorted(INPUTS))}")
        self.model_sha256 = hashlib.sha256(content).hexdigest()
        self.ran = Ran(f"onnxruntime {onnxruntime.__version__}", "cpu", self.contract.precision)
        self._session = session
        type(self).loads += 1

    def run(self, inputs: dict[str, NDArray[np.float16] | NDArray[np.float32]]) -> Mask:
        """One chunk (see `scan.grid.Chunk`) to labels (S, H, W)."""
        labels: Mask = self._session.run(["labels"], inputs)[0]
        return labels


def read_model(model: Path) -> bytes:
    """A model file's bytes.

    Raises:
        ModelError: if it is missing or cannot be read.
    """
    try:
        return model.read_bytes()
    except OSError as error:
        raise ModelError(f"{model}: the model file cannot be read ({error.strerror})") from error


def check_single_onnxruntime() -> None:
    """Refuse an environment in which onnxruntime and onnxruntime-gpu have overwritten each other's files.

    Raises:
        ParotidSegError: naming the one line that repairs it.
    """
    versions = {}
    for name in ("onnxruntime", "onnxruntime-gpu"):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    if len(versions) == 2:
        gpu = versions["onnxruntime-gpu"]
        raise ParotidSegError(
            f"onnxruntime {versions['onnxruntime']} and onnxruntime-gpu {gpu} are installed on top of each other and "
            "share files; keep one: pip uninstall -y onnxruntime onnxruntime-gpu && "
            f"pip install --no-deps onnxruntime-gpu=={gpu}"
        )
