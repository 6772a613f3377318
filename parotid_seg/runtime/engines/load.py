"""Chooses engine and device for a model file: the requested ones, or an error; with "auto" a measured choice."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from parotid_seg.contract import Contract
from parotid_seg.errors import ModelError, OptionError, ParotidSegError
from parotid_seg.files import hash_file
from parotid_seg.runtime.engines.autotune import Candidate, choose, place_for
from parotid_seg.runtime.engines.base import OUTPUTS, Backend
from parotid_seg.runtime.engines.engine_file import read_sidecar
from parotid_seg.runtime.engines.gpu import find_gpu, find_gpus
from parotid_seg.runtime.engines.model_file import output_names, read_model
from parotid_seg.runtime.engines.registry import (
    AUTO,
    CPU,
    CUDA,
    ENGINE_FILE,
    ENGINES,
    Engine,
    Request,
    candidates,
    compute_a_sample,
    engine_named,
    gpu_number,
)
from parotid_seg.system import available_cores, cpu_name, versions_of
from parotid_seg.wording import Say

if TYPE_CHECKING:
    from parotid_seg.runtime.engines.engine_benchmark import EngineBenchmark

log = logging.getLogger(__name__)

BATCHES = {CPU: (8, 16, 32), CUDA: (16, 32, 64, 128, 256)}
"""Batch sizes to try, by device. A GPU computes a small batch faster than its kernels can be launched."""


def load_backend(
    model: Path,
    backend: str = AUTO,
    device: str = AUTO,
    *,
    threads: int | None = None,
    output: str = OUTPUTS[0],
    allow_unverified: bool = False,
    say: Say = lambda _: None,
) -> Backend:
    """Load a model file or an engine.

    Args:
        model: the .onnx or .engine file.
        backend: a name of `registry.ENGINES`, which runs exactly this file; or "auto": the fastest that is installed
            and gives the same masks, by a short benchmark that runs once per machine (see `choose`).
        device: "cpu", "cuda", "cuda:N" or "auto": the first usable GPU if there is one, else the CPU.
        threads: computing threads on the CPU; default: one per core.
        output: one of `OUTPUTS`.
        allow_unverified: whether a model may be used that `parotid-seg export` has not verified.
        say: called with one line on the choice of "auto" and its reason, and on each unused file or device.

    Raises:
        InputError: for a backend or device that does not exist, does not fit the file or each other, or is not
            installed (with the command that installs it).
        ModelError: if the file is missing, not a parotid-seg model, changed, unverified, or its contract does not fit.
    """
    index = gpu_index(device)
    engine, contract = check_fit(model, backend, device, say)
    if not (contract.verification or allow_unverified):
        raise ModelError(
            f"{model}: not verified: nothing shows that it is the model that was trained; export its checkpoint "
            "(parotid-seg export), or use it all the same with --allow-unverified"
        )
    log.info("model %s: %s of %s", model, ", ".join(contract.labels[1:]), " + ".join(contract.channels))
    request = Request(model, contract, index, threads, output, say)
    for gpu in _places(device, index, engine):
        try:
            return _load(engine, replace(request, gpu=gpu))
        except ParotidSegError as error:
            if device != AUTO or gpu is None or (engine and CPU not in engine.devices):
                raise
            say(f"{find_gpu(gpu)} is not used, but the CPU: {error}")
    raise AssertionError("the CPU is the last place")


def check_fit(model: Path, backend: str, device: str, say: Say = lambda _: None) -> tuple[Engine | None, Contract]:
    """Check that a file, a backend and a device fit each other.

    Returns:
        The requested engine, or the one that an engine file needs (None for "auto"), and the model's contract.

    Raises:
        InputError: if they do not fit.
        ModelError: if the file is missing or not a parotid-seg model.
    """
    engine = engine_named(backend)
    if model.suffix == ENGINE_FILE:
        sidecar = read_sidecar(model)
        if backend not in (AUTO, sidecar.library):
            raise OptionError(f"--backend {backend}: found {model.name}, an engine for {sidecar.library}")
        if device == CPU:
            raise OptionError(
                f"--device cpu: found {model.name}, an engine, expected auto or cuda; engines run on GPUs"
            )
        return ENGINES[sidecar.library], sidecar.contract
    if engine and engine.runs == ENGINE_FILE:
        raise OptionError(
            f"--backend {backend}: runs engines, found {model.name}, expected an .engine file (--model); "
            f"parotid-seg export --engine {backend} builds one"
        )
    if engine and device.startswith(CUDA) and CUDA not in engine.devices:
        raise OptionError(f"--backend {backend}: runs on the CPU, found --device {device}, expected auto or cpu")
    return engine, read_model(model).contract


def _places(device: str, index: int | None, engine: Engine | None) -> Iterator[int | None]:
    """Numbers of GPUs, and None for the CPU, in the order in which they are tried."""
    if index is not None:
        yield index
        return
    on_gpu, on_cpu = (engine is None or each in engine.devices for each in (CUDA, CPU))
    if device == AUTO and on_gpu and (not on_cpu or find_gpu(0)):
        yield 0
    if on_cpu:
        yield None


def _load(engine: Engine | None, request: Request) -> Backend:
    """Load exactly this file if an engine is named, else the best of all candidates. On a GPU the size of batches is
    measured in both cases."""
    if engine is not None and request.gpu is None:
        return engine.implementation().load(request)
    available = candidates(request) if engine is None else [_exactly(engine, request)]
    if len(available) == 1 and request.gpu is None:
        loaded = available[0].load()
        request.say(f"{available[0].name}: the only engine for this model here")
        return loaded
    sizes, contract = BATCHES[CPU if request.gpu is None else CUDA], request.contract
    tried = {
        "output": request.output,
        "candidates": [(each.name, each.file.name) for each in available],
        "sizes": sizes,
    }
    place = place_for({**facts_of(request.model), **_machine(request), **tried})
    return choose(available, contract.precision, sizes, partial(_benchmark, contract), place, request.say)


def _benchmark(contract: Contract) -> EngineBenchmark:
    from parotid_seg.runtime.engines.engine_benchmark import EngineBenchmark

    return EngineBenchmark(contract)


def _exactly(engine: Engine, request: Request) -> Candidate:
    """A file on one engine, with no other to compare it with."""
    return Candidate(
        f"{engine.name} {request.contract.precision.upper()}",
        engine.name,
        request.contract.precision,
        request.model,
        partial(engine.implementation().load, request),
        check=compute_a_sample,
    )


def _machine(request: Request) -> dict[str, object]:
    if request.gpu is not None:
        return {"gpu": str(find_gpu(request.gpu))}
    return {"cpu": cpu_name(), "cores": available_cores(), "threads": request.threads}


def facts_of(model: Path) -> dict[str, object]:
    """The facts besides the machine that a choice depends on: model files and versions."""
    files = [model, *(model.with_suffix(f".{precision}.onnx") for precision in ("int8", "fp16"))]
    packages = [package for engine in ENGINES.values() for package in engine.packages]
    return {
        "files": [hash_file(file) for file in files if file.is_file()],
        "versions": versions_of((*packages, "parotid-seg")),
    }


def output_for(model: Path, tta: bool, say: Say = lambda _: None) -> str:
    """The output to load a model for: probabilities if two samples are averaged and the model has them.

    Args:
        model: the .onnx or .engine file.
        tta: whether each sample's mirror image is computed, too.
        say: called with one line if the model has no probabilities to average.

    Raises:
        ModelError: if the file is not a parotid-seg model.
    """
    labels, probabilities = OUTPUTS
    if not tta:
        return labels
    if model.suffix != ".engine" and probabilities in output_names(model):
        return probabilities
    say(
        f"{model.name} gives no probabilities to average: --tta only reports how certain the masks are and does not "
        "change them"
    )
    return labels


def gpu_index(device: str) -> int | None:
    """The number of the GPU in a device name; None for "auto" and "cpu".

    Raises:
        InputError: for any other name, or if there is no such GPU.
    """
    index = gpu_number(device)
    if index is None:
        return None
    gpus = find_gpus()
    if not gpus:
        raise OptionError(f"--device {device}: found no NVIDIA GPU, expected one that its driver shows (nvidia-smi -L)")
    if index >= len(gpus):
        listed = ", ".join(f"cuda:{each} {gpu}" for each, gpu in enumerate(gpus))
        raise OptionError(f"--device {device}: no such GPU, found {listed}")
    return index
