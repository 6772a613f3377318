"""ONNX models on onnxruntime's CPU provider."""

from __future__ import annotations

import hashlib
from importlib import metadata
from pathlib import Path

import onnxruntime

from parotid_seg.errors import ModelError, ParotidSegError
from parotid_seg.runtime.backend import INPUTS, OUTPUTS, USUAL_BATCH, Done, Ran
from parotid_seg.runtime.model_file import read_model
from parotid_seg.scan.chunks import Inputs


class OnnxRuntimeBackend:
    """A model file on the CPU.

    Args:
        model: the .onnx file.
        threads: computing threads; default: one a core.
        output: one of `OUTPUTS`.

    Raises:
        ModelError: as `model_file.read_model`, if the model's inputs are others than ours, or if it has no such output.
        ParotidSegError: if both onnxruntime and onnxruntime-gpu are installed.
    """

    batch_size = USUAL_BATCH
    largest_batch: int | None = None
    ahead = 1

    def __init__(self, model: Path, threads: int | None = None, output: str = OUTPUTS[0]) -> None:
        check_single_onnxruntime()
        content, self.contract = read_model(model)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        if threads:
            options.intra_op_num_threads = threads
        try:
            session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime raises its own classes, all derived from Exception only
            reason = str(error).splitlines()[0]
            raise ModelError(f"{model}: not an ONNX model that onnxruntime can load ({reason})") from error
        found = tuple(sorted(entry.name for entry in session.get_inputs()))
        if found != tuple(sorted(INPUTS)):
            raise ModelError(f"{model}: found inputs {', '.join(found)}, expected {', '.join(sorted(INPUTS))}")
        outputs = [entry.name for entry in session.get_outputs()]
        if output not in outputs:
            raise ModelError(f"{model}: found outputs {', '.join(outputs)}, expected {output}")
        self.model_sha256 = hashlib.sha256(content).hexdigest()
        self.ran = Ran(f"onnxruntime {onnxruntime.__version__}", "cpu", self.contract.precision)
        self._session, self._output = session, output

    def fits(self, inputs: Inputs) -> bool:
        """It takes any shape."""
        return True

    def start(self, inputs: Inputs) -> Done:
        """Compute a chunk."""
        return Done(self._session.run([self._output], dict(inputs))[0])

    def close(self) -> None:
        """Nothing is held but memory."""


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
