"""Finds the engine that runs a model on this machine: beside the model, in the user's cache, or built there."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from parotid_seg.errors import DeviceError, InputError, ModelError, OptionError
from parotid_seg.export.build_engine import build_engine
from parotid_seg.runtime.engines.autotune import cache_folder, is_private, make_private
from parotid_seg.runtime.engines.engine_file import (
    ENGINE_BATCH,
    BatchProfile,
    EngineOptions,
    Sidecar,
    check_engine,
    judge_engine,
    read_sidecar,
    sidecar_path,
    unsupported,
)
from parotid_seg.runtime.engines.gpu import find_gpu
from parotid_seg.runtime.engines.model_file import read_model
from parotid_seg.runtime.engines.registry import gpu_number
from parotid_seg.runtime.engines.tensorrt.cuda_context import import_pycuda
from parotid_seg.runtime.engines.tensorrt.library import LIBRARIES, import_library, known_capabilities
from parotid_seg.wording import Progress, Say


def usable_engine(engine: Path, *, report: Say = lambda _: None, progress: Progress | None = None) -> Path:
    """An engine that can be used here: the requested one; if that is for another GPU or version of its library, one
    that is built from its ONNX file into the user's cache. The requested file is never changed.

    Raises:
        InputError: if its library or PyCUDA is not installed.
        ModelError: if it was damaged or replaced, or does not fit and none can be built; with the reasons.
        OutputError: if one cannot be written.
    """
    sidecar = read_sidecar(engine)
    trt = import_library(sidecar.library)
    verdict = judge_engine(engine, sidecar, trt.__version__, find_gpu(), known_capabilities(trt))
    if not verdict.reasons:
        return engine
    if verdict.rebuild_from is None or verdict.options is None:
        raise verdict.refusal(engine)
    import_pycuda(sidecar.library)
    report(
        f"{engine}: not used here: {'; '.join(verdict.reasons)}; instead one from the cache, built from "
        f"{sidecar.onnx_name}, whose masks were not compared"
    )
    return _cached(verdict.rebuild_from, sidecar.library, sidecar.batch, verdict.options, report, progress)


def runnable(
    model: Path,
    backend: str,
    device: str = "auto",
    *,
    report: Say = lambda _: None,
    progress: Progress | None = None,
) -> Path:
    """The file to load for a model and a backend: the model itself, or an engine if the backend needs one.

    That of a model file is the engine beside it, if it is of this library and was built from this very file; else one
    in the user's cache folder, built once.

    Args:
        model: a model file; or an engine, used as by `usable_engine`.
        backend: "auto" or a name of `registry.ENGINES`.
        device: "auto", "cpu", "cuda" or "cuda:N".
        report, progress: see `build_engine`.

    Raises:
        InputError: if there is no GPU, the library or PyCUDA is missing, an engine file is another library's, or the
            device is a GPU that differs from the first, for which engines are judged and built.
        DeviceError: if the library makes no engines for the GPU.
        ModelError: if the file is not a parotid-seg model, or no engine can be built from it here.
        OutputError: if an engine cannot be written.
    """
    if model.suffix == ".engine":
        library = read_sidecar(model).library
        if backend in LIBRARIES and backend != library:
            found, expected = LIBRARIES[library].title, LIBRARIES[backend].title
            raise InputError(f"found an engine of {found}, expected one of {expected}", path=model)
        _check_device(device)
        return usable_engine(model, report=report, progress=progress)
    if backend not in LIBRARIES:
        return model
    _check_device(device)
    return _engine_of(model, backend, report, progress)


def _check_device(device: str) -> None:
    """Raise InputError if it is a GPU of another kind than the first."""
    number, first = gpu_number(device), find_gpu()
    if not number or (requested := find_gpu(number)) is None or requested == first:
        return
    raise OptionError(
        f"--device {device}: found {requested}, expected the same GPU as cuda:0, {first}, because engines are built "
        f"and checked on that; set CUDA_VISIBLE_DEVICES={number} and use --device cuda"
    )


def _engine_of(model: Path, library: str, report: Say, progress: Progress | None) -> Path:
    """The engine of a model file for this machine's GPU; see `runnable`."""
    described = LIBRARIES[library]
    gpu = find_gpu()
    if gpu is None:
        raise InputError(f"{described.title}: no NVIDIA GPU found to run {model} on")
    trt = import_library(library)
    if reason := unsupported(library, gpu, known_capabilities(trt)):
        raise DeviceError(f"{described.title} {trt.__version__} makes no engines for this GPU: {reason}")
    import_pycuda(library)  # before minutes of building: without it none runs
    beside = model.with_suffix(".engine")
    if _built_from(beside, library, read_model(model).sha256, report):
        return usable_engine(beside, report=report, progress=progress)
    return _cached(model, library, ENGINE_BATCH, EngineOptions(), report, progress)


def _cached(
    model: Path,
    library: str,
    profile: BatchProfile,
    options: EngineOptions,
    report: Say,
    progress: Progress | None,
) -> Path:
    """The engine of a model file for this machine's GPU in the user's cache; built if there is none."""
    trt, gpu, onnx_sha256 = import_library(library), find_gpu(), read_model(model).sha256
    assert gpu is not None
    on = re.sub("[^a-z0-9]+", "-", gpu.name.lower()).strip("-")
    facts = [model.stem, onnx_sha256[:16], library, trt.__version__, on, f"{profile.min}-{profile.opt}-{profile.max}"]
    if options.for_library(library) != EngineOptions().for_library(library):
        facts.append(hashlib.sha256(repr(options).encode()).hexdigest()[:8])
    cached = cache_folder() / "engines" / f"{'-'.join(facts)}.engine"
    trusted = (cached.parent, cached, sidecar_path(cached))
    if sidecar := _built_from(cached, library, onnx_sha256, report):
        reasons = check_engine(cached, sidecar, trt.__version__, gpu, known_capabilities(trt))
        if not reasons and not all(map(is_private, trusted)):
            reasons = ("others may write to it",)
        if not reasons:
            return cached
        report(f"{cached}: built again: {'; '.join(reasons)}")
    make_private(cached.parent)
    build_engine(model, cached, library=library, profile=profile, options=options, report=report, progress=progress)
    make_private(*trusted)
    return cached


def _built_from(engine: Path, library: str, onnx_sha256: str, report: Say) -> Sidecar | None:
    """The sidecar of an engine, if it is of this library and was built from the model file of this hash."""
    if not sidecar_path(engine).is_file():
        if engine.is_file():
            report(f"{engine}: not used: there is no {sidecar_path(engine).name} beside it")
        return None
    try:
        sidecar = read_sidecar(engine)
    except ModelError as error:
        report(f"{engine}: not used: {error}")
        return None
    if sidecar.library != library:
        return None
    if sidecar.onnx_sha256 != onnx_sha256:
        report(f"{engine}: not used: it was built from another model")
        return None
    return sidecar
