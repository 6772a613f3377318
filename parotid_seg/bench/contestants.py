"""Which engines take part: those that are installed and run the model here, or those that were named."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from parotid_seg.contract import Contract
from parotid_seg.errors import InputError, OptionError, ParotidSegError
from parotid_seg.runtime.engines.autotune import Candidate, Say
from parotid_seg.runtime.engines.available import on_cpu, on_gpu
from parotid_seg.runtime.engines.base import OUTPUTS
from parotid_seg.runtime.engines.engine_file import read_sidecar
from parotid_seg.runtime.engines.gpu import find_gpu
from parotid_seg.runtime.engines.load import BACKENDS, gpu_index
from parotid_seg.runtime.engines.model_file import read_model
from parotid_seg.runtime.engines.openvino import import_openvino
from parotid_seg.runtime.engines.tensorrt.engine import TensorRtBackend
from parotid_seg.runtime.engines.tensorrt.library import LIBRARIES

NAMES = BACKENDS[1:]
"""What can be named; "auto" is what all of them are compared for."""
Runnable = Callable[[Path, str], Path]
"""A model file and a backend's name to the file that this backend runs: `export.engine.runnable`."""


class Field(NamedTuple):
    """Who takes part.

    Attributes:
        candidates: the engines.
        contract: the model's.
        gpu: number of the GPU that takes part; None if none does.
    """

    candidates: list[Candidate]
    contract: Contract
    gpu: int | None


def contestants(model: Path, backends: Sequence[str], device: str, runnable: Runnable, say: Say) -> Field:
    """The engines, and what they have in common.

    Args:
        model: the .onnx or .engine file.
        backends: some of `NAMES`; none means all that can be used here.
        device: see `runtime.engines.load.DEVICES`; "auto" is the CPU and the first GPU.
        runnable: see there.
        say: told why something is not used.

    Raises:
        InputError: for a backend or device that there is none of, that is not installed, or that does not fit.
        ModelError: if the file is no model of ours.
    """
    for backend in backends:
        if backend not in NAMES:
            raise OptionError(f"--backend: found {backend!r}, expected one of: {', '.join(NAMES)}")
    index = gpu_index(device)
    if model.suffix == ".engine":
        sidecar = read_sidecar(model)
        for backend in backends:
            if backend != sidecar.library:
                raise OptionError(f"--backend {backend}: found {model.name}, an engine for {sidecar.library}")
        if device == "cpu":
            raise OptionError(f"--device cpu: found {model.name}, an engine, expected auto or cuda")
        return Field([_engine(model, index or 0)], sidecar.contract, index or 0)
    contract = read_model(model)[1]
    if "openvino" in backends:
        import_openvino()
    on_the_cpu = on_cpu(model, contract, None, OUTPUTS[0], say) if device in ("auto", "cpu") else []
    on_the_gpu = [] if device == "cpu" else _on_gpu(model, contract, index, backends, runnable, say)
    if backends:
        on_the_cpu, on_the_gpu = (
            [each for each in side if each.backend in backends] for side in (on_the_cpu, on_the_gpu)
        )
    found = on_the_cpu + on_the_gpu
    for backend in backends or ("any",):
        if not any(backend in (candidate.backend, "any") for candidate in found):
            raise InputError(f"--backend: found {backend}, which cannot run {model.name} here on --device {device}")
    return Field(found, contract, (index or 0) if on_the_gpu else None)


def _on_gpu(
    model: Path, contract: Contract, index: int | None, backends: Sequence[str], runnable: Runnable, say: Say
) -> list[Candidate]:
    """onnxruntime on CUDA if it is there, and engines that were named or lie beside the model."""
    number = index or 0
    engines = [backend for backend in backends if backend in LIBRARIES]
    if find_gpu(number) is None:
        if engines:
            raise InputError(f"--backend {engines[0]}: runs on NVIDIA GPUs, found none")
        return []
    found: list[Candidate] = []
    if not engines or "onnxruntime" in backends:
        from parotid_seg.runtime.engines.onnxruntime.cuda import check_provider

        try:
            check_provider()
            found += on_gpu(model, contract, number, OUTPUTS[0], say)
        except ParotidSegError as error:
            if index is not None and "onnxruntime" in backends:
                raise
            say(f"onnxruntime does not use the GPU: {error}")
    found += [_engine(runnable(model, backend), number) for backend in engines]
    beside = model.with_suffix(".engine")
    if not backends and beside.is_file():
        found.append(_engine(beside, number))
    return found


def _engine(engine: Path, index: int) -> Candidate:
    sidecar = read_sidecar(engine)
    name = f"{LIBRARIES[sidecar.library].title} {sidecar.precision.upper()}"
    return Candidate(name, sidecar.library, sidecar.precision, engine, partial(TensorRtBackend, engine, device=index))
