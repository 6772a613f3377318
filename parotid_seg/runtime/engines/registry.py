"""The engines for `--backend`. A new engine is a module with the two functions of `Implementation`, and a line in
`ENGINES`.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, cast

from parotid_seg.errors import OptionError, ParotidSegError
from parotid_seg.wording import Say

if TYPE_CHECKING:
    from parotid_seg.contract import Contract
    from parotid_seg.runtime.engines.autotune import Candidate
    from parotid_seg.runtime.engines.base import Backend

AUTO = "auto"
CPU, CUDA = "cpu", "cuda"
ONNX_FILE, ENGINE_FILE = ".onnx", ".engine"


@dataclass(frozen=True)
class Engine:
    """Properties of an engine that are known without importing it.

    Attributes:
        name: its name for `--backend`.
        module: the module with its `Implementation`.
        runs: ending of the files it runs.
        devices: "cpu", "cuda" or both.
        packages: its packages; a change of their versions may change its speed and its rounding.
    """

    name: str
    module: str
    runs: str
    devices: tuple[str, ...]
    packages: tuple[str, ...]

    def implementation(self) -> Implementation:
        """Import the engine's module, for which its packages need not be installed."""
        return cast(Implementation, importlib.import_module(f"parotid_seg.runtime.engines.{self.module}"))


@dataclass(frozen=True)
class Request:
    """A model file to load.

    Attributes:
        model: the file.
        contract: its contract.
        gpu: number of the GPU that runs it; None for the CPU.
        threads: computing threads on the CPU; None for one per core.
        output: one of `base.OUTPUTS`.
        say: called with one line for each unused file or engine, with the reason.
    """

    model: Path
    contract: Contract
    gpu: int | None
    threads: int | None
    output: str
    say: Say


class Implementation(Protocol):
    """The module of an engine."""

    def load(self, request: Request) -> Backend:
        """Load exactly this file.

        Raises:
            OptionError: if the engine is not installed, with the command that installs it.
            ModelError: if it cannot run the file.
        """
        ...

    def candidates(self, request: Request) -> Sequence[Candidate]:
        """The ways to run the model that `--backend auto` may choose from, the file itself first; none if the engine is
        not installed.

        Raises:
            ParotidSegError: if the engine is installed, but the device cannot be used.
        """
        ...


ENGINES = {
    engine.name: engine
    for engine in (
        Engine(
            "onnxruntime", "onnxruntime.onnxruntime_engine", ONNX_FILE, (CPU, CUDA), ("onnxruntime", "onnxruntime-gpu")
        ),
        Engine("openvino", "openvino", ONNX_FILE, (CPU,), ("openvino",)),
        Engine("tensorrt", "tensorrt.tensorrt_engine", ENGINE_FILE, (CUDA,), ("tensorrt",)),
        Engine("tensorrt-rtx", "tensorrt.tensorrt_engine", ENGINE_FILE, (CUDA,), ("tensorrt-rtx",)),
        Engine("onnxruntime-rtx", "onnxruntime.rtx", ONNX_FILE, (CUDA,), ("onnxruntime-ep-nv-tensorrt-rtx-cu13",)),
    )
}


def engine_named(name: str) -> Engine | None:
    """An engine by its name; None for "auto".

    Raises:
        OptionError: for any other name.
    """
    if name != AUTO and name not in ENGINES:
        raise OptionError(f"--backend: found {name!r}, expected one of: {', '.join((AUTO, *ENGINES))}")
    return ENGINES.get(name)


def gpu_number(device: str) -> int | None:
    """The number of the GPU in a device's name; None for "auto" and "cpu".

    Raises:
        OptionError: for any other name.
    """
    kind, _, number = device.partition(":")
    if device in (AUTO, CPU, CUDA):
        return 0 if device == CUDA else None
    if kind != CUDA or not (number.isascii() and number.isdecimal()):
        raise OptionError(f"--device: found {device!r}, expected one of: auto, cpu, cuda, cuda:N")
    return int(number)


def candidates(request: Request, engines: Sequence[Engine] = tuple(ENGINES.values())) -> list[Candidate]:
    """The ways to run a model on a device, those of the reference engine first.

    Raises:
        ParotidSegError: as `Implementation.candidates`.
    """
    device = CPU if request.gpu is None else CUDA
    able = [engine for engine in engines if device in engine.devices and engine.runs == request.model.suffix]
    pairs = [(engine, each) for engine in able for each in engine.implementation().candidates(request)]
    found = [each for engine, each in pairs if each.backend == engine.name]
    return found if request.gpu is None else [replace(each, check=compute_a_sample) for each in found]


def compute_a_sample(backend: Backend) -> None:
    """Compute one sample on a GPU: its libraries may load although it cannot run them, for example without kernels for
    it or without cuDNN.

    Raises:
        ParotidSegError: as computing raises it; the model is closed.
    """
    from parotid_seg.runtime.engines.engine_benchmark import usual_chunk

    try:
        backend.start(usual_chunk(backend.contract, 1)).result()
    except ParotidSegError:
        with suppress(ParotidSegError):  # of a lost GPU nothing can be freed
            backend.close()
        raise
