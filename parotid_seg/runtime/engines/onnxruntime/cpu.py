"""ONNX models on onnxruntime's CPU provider, and code shared by all its providers."""

from __future__ import annotations

import base64
import hashlib
import os
import platform
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import onnxruntime

from parotid_seg.errors import ModelError, ParotidSegError, first_line
from parotid_seg.runtime.engines.base import OUTPUTS, Backend, Done, ExecutionInfo, check_names
from parotid_seg.runtime.engines.model_file import read_model
from parotid_seg.scan.chunks import Inputs
from parotid_seg.system import available_cores

PACKAGES = ("onnxruntime", "onnxruntime-gpu")
"""Both install the same files, and pip does not know this. Where both are installed, the one unpacked last works if
none of its files was replaced or removed since; images that come with onnxruntime are a usual case."""


class OnnxRuntimeBackend(Backend):
    """A model file on the CPU.

    Args:
        model: the .onnx file.
        threads: computing threads; default: one per core.
        output: one of `OUTPUTS`.

    Raises:
        ModelError: as `model_file.read_model`; if the model has other inputs, or no such output.
        ParotidSegError: if onnxruntime and onnxruntime-gpu have overwritten each other's files.
    """

    def __init__(self, model: Path, threads: int | None = None, output: str = OUTPUTS[0]) -> None:
        check_installation()
        content, self.contract, self.model_sha256 = read_model(model)
        options = session_options()
        # Shapes differ from chunk to chunk, and every pattern is another block of memory: a third more in all.
        options.enable_mem_pattern = False
        cores = available_cores()
        if threads or cores < (os.cpu_count() or 1):  # otherwise it uses, and pins threads to, all cores of the machine
            options.intra_op_num_threads = threads or cores
        session = make_session(model, content, options, ["CPUExecutionProvider"])
        check_session(session, output, model)
        self.ran = ExecutionInfo(f"onnxruntime {onnxruntime.__version__}", "cpu", computed_in(self.contract.precision))
        self._session, self._output, self._model = session, output, model

    def start(self, inputs: Inputs) -> Done:
        """Compute a chunk. Raises ModelError if the graph cannot be run."""
        try:
            return Done(self._session.run([self._output], dict(inputs))[0])
        except Exception as error:  # onnxruntime's exception classes derive from Exception only
            raise ModelError(f"{self.ran.backend} cannot run it ({first_line(error)})", path=self._model) from error


def computed_in(precision: str) -> str:
    """The type in which the CPU provider computes a model of this precision: on x86 FP16 products are computed in
    FP32."""
    return "fp32" if precision == "fp16" and platform.machine() in ("x86_64", "AMD64") else precision


def session_options() -> onnxruntime.SessionOptions:
    """Options of a session that logs nothing: its errors are raised as exceptions."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    return options


def make_session(
    model: Path,
    content: bytes,
    options: onnxruntime.SessionOptions,
    providers: Sequence[str | tuple[str, dict[str, Any]]],
    known: Callable[[Exception], ParotidSegError | None] = lambda _: None,
) -> onnxruntime.InferenceSession:
    """Load a model file's bytes with these providers only.

    Args:
        known: the error for an exception whose cause is a provider's device; None for any other.

    Raises:
        ModelError: if onnxruntime cannot load them.
        ParotidSegError: as `known` returns it.
    """
    try:
        return onnxruntime.InferenceSession(content, options, providers=providers, enable_fallback=0)
    except Exception as error:  # onnxruntime's exception classes derive from Exception only
        reason = f"not an ONNX model that onnxruntime can load ({first_line(error)})"
        raise known(error) or ModelError(reason, path=model) from error


def check_session(session: onnxruntime.InferenceSession, output: str, model: Path) -> None:
    """Raise ModelError unless a session has the inputs of every model and this output."""
    inputs, outputs = ([entry.name for entry in side] for side in (session.get_inputs(), session.get_outputs()))
    check_names(inputs, outputs, output, where=str(model))


def check_installation() -> None:
    """Refuse an environment in which onnxruntime and onnxruntime-gpu have overwritten each other's files.

    Nothing is read if only one of them is installed.

    Raises:
        ParotidSegError: with the command that repairs it.
    """
    installed: dict[str, metadata.Distribution] = {}
    for name in PACKAGES:
        try:
            installed[name] = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue
    if len(installed) < len(PACKAGES) or any(_is_imported_and_whole(each) for each in installed.values()):
        return
    cpu, gpu = (installed[name].version for name in PACKAGES)
    raise ParotidSegError(
        f"onnxruntime {cpu} and onnxruntime-gpu {gpu} have overwritten each other's files; keep one: pip uninstall -y "
        f"onnxruntime onnxruntime-gpu && pip install --no-deps onnxruntime-gpu=={gpu}"
    )


def _is_imported_and_whole(package: metadata.Distribution) -> bool:
    """Whether Python imports this package's files, and each is as pip installed it (by its record)."""
    files = (file for file in package.files or () if file.parts[0] == "onnxruntime")
    hashes = {Path(str(file.locate())).resolve(): file.hash for file in files if file.hash is not None}
    if Path(onnxruntime.__file__).resolve() not in hashes:
        return False
    return all(place.is_file() and _hash_of(place, recorded) == recorded.value for place, recorded in hashes.items())


def _hash_of(place: Path, recorded: metadata.FileHash) -> str:
    """A file's hash as pip records it (packaging.python.org/specifications/recording-installed-packages)."""
    with place.open("rb") as file:
        digest = hashlib.file_digest(file, recorded.mode).digest()
    return base64.urlsafe_b64encode(digest).decode().rstrip("=")
