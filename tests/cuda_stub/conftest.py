"""The real onnxruntime-gpu on CUDA libraries that compute nothing and record every event.

It needs an environment of its own, since onnxruntime-gpu and onnxruntime share files: `make .venv-cuda-stub/.ready`.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest

from parotid_seg.export.onnx_file import with_contract
from parotid_seg.models import DEFAULT_MODEL
from parotid_seg.runtime.engines.model_file import read_model
from parotid_seg.runtime.engines.rewriting.gpu_graph import _fused
from parotid_seg.runtime.engines.rewriting.precision import FALLBACKS, lower, with_whole_weights
from tests.cuda_stub.build import LIBRARIES
from tests.processes.workers import shared_folder

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
PYTHON = ROOT / ".venv-cuda-stub" / "bin" / "python"

RunStub = Callable[..., Any]
"""Runs a program in the environment of the stub."""


@pytest.fixture(scope="session")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the stub's libraries."""
    if not PYTHON.is_file():
        pytest.skip("no environment with onnxruntime-gpu: make .venv-cuda-stub/.ready")
    missing = [tool for tool in ("gcc", "nm") if shutil.which(tool) is None]
    if missing:
        pytest.skip(f"no {' and no '.join(missing)} to build the CUDA stub with")

    def build(folder: Path) -> None:
        subprocess.run([PYTHON, HERE / "build.py", folder], check=True)

    return shared_folder(tmp_path_factory, "cuda-stub", build)


@pytest.fixture(scope="session")
def stub(libraries: Path, tmp_path_factory: pytest.TempPathFactory) -> RunStub:
    def run(*arguments: str | Path, program: str = "child.py", without: str | None = None) -> Any:
        """What a program prints.

        Args:
            arguments: of the program: for child.py a scenario and a model.
            program: a file of this folder.
            without: a library that is missing.
        """
        folder = libraries
        if without is not None:
            _skip_if_installed(without)
            folder = tmp_path_factory.mktemp("libraries")
            for name in set(LIBRARIES) - {without}:
                (folder / name).symlink_to(libraries / name)
        preloaded = " ".join(str(folder / name) for name in LIBRARIES if name != without)
        done = subprocess.run(
            [PYTHON, HERE / program, *arguments],
            env=os.environ | {"LD_LIBRARY_PATH": str(folder), "LD_PRELOAD": preloaded, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )
        assert (done.returncode, done.stderr) == (0, ""), done.stderr
        return json.loads(done.stdout)

    return run


@pytest.fixture(scope="session")
def half(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The packaged model in FP16, whose masks nobody has compared."""

    def make(folder: Path) -> None:
        resampling = FALLBACKS[0]
        model = lower(with_whole_weights(onnx.load(DEFAULT_MODEL)), "fp16", resampling.holds)
        contract = dataclasses.replace(read_model(DEFAULT_MODEL).contract, precision="fp16")
        (folder / "half.onnx").write_bytes(with_contract(model, contract))

    return shared_folder(tmp_path_factory, "half", make) / "half.onnx"


@pytest.fixture(scope="session", params=["fp32", "fp16", "fp32 fused", "fp16 fused"])
def computed(
    request: pytest.FixtureRequest, stub: RunStub, half: Path, tmp_path_factory: pytest.TempPathFactory
) -> Any:
    """What the scenario `chunks` prints, of the packaged model, of the same in FP16, and of both fused."""
    precision, _, is_fused = request.param.partition(" ")
    model = DEFAULT_MODEL if precision == "fp32" else half
    if is_fused:
        made = tmp_path_factory.mktemp("fused") / "fused.onnx"
        made.write_bytes(_fused(read_model(model)))
        model = made
    return {"graph": request.param, "precision": precision, **stub("chunks", model)}


def _skip_if_installed(library: str) -> None:
    code = f"import ctypes; ctypes.CDLL({library!r})"
    if subprocess.run([PYTHON, "-c", code], capture_output=True, check=False).returncode == 0:
        pytest.skip(f"this machine has a {library} of its own")
