"""Builds a TensorRT or TensorRT-RTX engine with its sidecar from a model file, and finds the engine to run here."""

from __future__ import annotations

import dataclasses
import hashlib
import re
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from parotid_seg.errors import DeviceError, InputError, ModelError, OptionError
from parotid_seg.export.engine_shapes import input_shapes
from parotid_seg.files import atomic_write, make_folder, scratch_folder, write_bytes
from parotid_seg.runtime.engines.autotune import cache_folder, is_private, make_private
from parotid_seg.runtime.engines.engine_file import (
    ENGINE_BATCH,
    BatchProfile,
    EngineOptions,
    Shapes,
    Sidecar,
    check_engine,
    judge_engine,
    read_sidecar,
    sidecar_path,
    unsupported,
)
from parotid_seg.runtime.engines.gpu import Gpu, find_gpu
from parotid_seg.runtime.engines.model_file import read_model
from parotid_seg.runtime.engines.tensorrt.cuda_context import import_pycuda
from parotid_seg.runtime.engines.tensorrt.library import (
    LIBRARIES,
    Library,
    import_library,
    known_capabilities,
    library_named,
    log_of,
)

Report = Callable[[str], None]
Progress = Callable[[str, int, int], None]


def build_engine(
    onnx_path: Path,
    out: Path,
    *,
    library: str,
    profile: BatchProfile,
    options: EngineOptions,
    report: Report = lambda _: None,
    progress: Progress | None = None,
    timing_cache: Path | None = None,
    prove: Callable[[Path], dict[str, Any]] = lambda _: {},
) -> Sidecar:
    """Build an engine; `out` and its sidecar appear when both are complete and verified.

    The engine computes in the types of the ONNX graph (strongly typed) and keeps the names of its layers.

    Args:
        onnx_path: a parotid-seg model file. If it lies beside `out`, another can be built where this one does not fit.
        out: the engine file to make; the sidecar is `out` with .json added.
        library: "tensorrt", which needs the GPU that will run it, or "tensorrt-rtx", which needs none.
        profile: batch sizes, see `engine_shapes.input_shapes`.
        options: how to build it.
        report: called with one line for each event.
        progress: called with the current phase, the steps done, and the steps of the whole build.
        timing_cache: file with kernel timings for the next build on this GPU; made if missing.
        prove: called with the engine under a temporary name with its sidecar, before either appears. It raises an error
            to reject them; its result becomes the sidecar's verification.

    Raises:
        InputError: for an unusable argument, a missing package or GPU.
        ModelError: if the file is not a parotid-seg model or the library cannot build it.
        OutputError: if a file cannot be written.
    """
    described = library_named(library)
    trt, gpu = ready_to_build(library, options, timing_cache)
    options = options.for_library(library)
    content, contract = read_model(onnx_path)
    shapes = input_shapes(contract, profile)
    make_folder(out.parent)
    report(f"building {out} with {described.title} {trt.__version__} for {profile}")
    started = time.perf_counter()
    plan = _Build(trt, described, onnx_path, options, progress).run(content, shapes, log_of(library), timing_cache)
    sidecar = Sidecar(
        contract=contract,
        precision=contract.precision,
        onnx_name=onnx_path.name,
        onnx_sha256=hashlib.sha256(content).hexdigest(),
        library=library,
        library_version=trt.__version__,
        gpu=gpu.name if gpu else None,
        compute_capability=gpu.compute_capability if gpu else None,
        cuda=gpu.cuda if gpu else None,
        batch=profile,
        shapes=shapes,
        options=options,
        engine_sha256=hashlib.sha256(plan).hexdigest(),
    )
    sidecar = _verified_and_written(plan, sidecar, out, prove)
    report(f"wrote {out}, {len(plan) / 1e6:.1f} MB, in {time.perf_counter() - started:.1f} s")
    return sidecar


def _verified_and_written(plan: bytes, sidecar: Sidecar, out: Path, prove: Callable[[Path], dict[str, Any]]) -> Sidecar:
    """The sidecar with the verification of its engine, after both are written. Errors of `prove` reject them."""
    with scratch_folder() as folder:
        engine = folder / out.name
        engine.write_bytes(plan)
        sidecar_path(engine).write_text(sidecar.to_json())
        sidecar = dataclasses.replace(sidecar, verification=prove(engine))
    with atomic_write(sidecar_path(out)) as partial:
        partial.write_text(sidecar.to_json())
        write_bytes(plan, out)  # before the sidecar, so that no sidecar lies beside an older engine
    return sidecar


def ready_to_build(library: str, options: EngineOptions, timing_cache: Path | None) -> tuple[ModuleType, Gpu | None]:
    """The library, and the GPU it builds on if it needs one; arguments as in `build_engine`.

    Raises:
        InputError: if either is missing, or the library does not support the options.
    """
    described = library_named(library)
    options.for_library(library)
    if timing_cache is not None and not described.keeps_timings:
        raise OptionError(f"--timing-cache: {described.title} keeps none; leave it out")
    gpu = find_gpu() if described.needs_gpu else None
    if described.needs_gpu and gpu is None:
        raise InputError(
            f"{described.title}: no NVIDIA GPU found; it builds only on the GPU that will run the engine "
            "(tensorrt-rtx builds without one)"
        )
    return import_library(library), gpu


def usable_engine(engine: Path, *, report: Report = lambda _: None, progress: Progress | None = None) -> Path:
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


def runnable(model: Path, backend: str, *, report: Report = lambda _: None, progress: Progress | None = None) -> Path:
    """The file to load for a model and a backend: the model itself, or an engine if the backend needs one.

    That of a model file is the engine beside it, if it is of this library and was built from this very file; else one
    in the user's cache folder, built once.

    Args:
        model: a model file; or an engine, used as by `usable_engine`.
        backend: "auto" or a name of `registry.ENGINES`.
        report, progress: see `build_engine`.

    Raises:
        InputError: if there is no GPU, the library or PyCUDA is missing, or an engine file is another library's.
        DeviceError: if the library makes no engines for the GPU.
        ModelError: if the file is not a parotid-seg model, or no engine can be built from it here.
        OutputError: if an engine cannot be written.
    """
    if model.suffix == ".engine":
        library = read_sidecar(model).library
        if backend in LIBRARIES and backend != library:
            found, expected = LIBRARIES[library].title, LIBRARIES[backend].title
            raise InputError(f"found an engine of {found}, expected one of {expected}", path=model)
        return usable_engine(model, report=report, progress=progress)
    return _engine_of(model, backend, report, progress) if backend in LIBRARIES else model


def _engine_of(model: Path, library: str, report: Report, progress: Progress | None) -> Path:
    """The engine of a model file for this machine's GPU; see `runnable`."""
    described = library_named(library)
    gpu = find_gpu()
    if gpu is None:
        raise InputError(f"{described.title}: no NVIDIA GPU found to run {model} on")
    trt = import_library(library)
    if reason := unsupported(library, gpu, known_capabilities(trt)):
        raise DeviceError(f"{described.title} {trt.__version__} makes no engines for this GPU: {reason}")
    import_pycuda(library)  # before minutes of building: without it none runs
    beside = model.with_suffix(".engine")
    if _built_from(beside, library, _model_hash(model), report):
        return usable_engine(beside, report=report, progress=progress)
    return _cached(model, library, ENGINE_BATCH, EngineOptions(), report, progress)


def _cached(
    model: Path,
    library: str,
    profile: BatchProfile,
    options: EngineOptions,
    report: Report,
    progress: Progress | None,
) -> Path:
    """The engine of a model file for this machine's GPU in the user's cache; built if there is none."""
    trt, gpu, onnx_sha256 = import_library(library), find_gpu(), _model_hash(model)
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


def _model_hash(model: Path) -> str:
    """The hash of a parotid-seg model file. Raises ModelError if it is none."""
    return hashlib.sha256(read_model(model)[0]).hexdigest()


def _built_from(engine: Path, library: str, onnx_sha256: str, report: Report) -> Sidecar | None:
    """The sidecar of an engine, if it is of this library and was built from the model file of this hash."""
    if not sidecar_path(engine).is_file():
        return None
    try:
        sidecar = read_sidecar(engine)
    except ModelError as error:
        report(f"{engine}: not used: {error}")
        return None
    return sidecar if (sidecar.library, sidecar.onnx_sha256) == (library, onnx_sha256) else None


class _Build:
    """One build: parse, configure, build. The parser and the network must live until its end."""

    def __init__(
        self, trt: ModuleType, library: Library, onnx_path: Path, options: EngineOptions, progress: Progress | None
    ) -> None:
        self.trt, self.library, self.onnx_path, self.options = trt, library, onnx_path, options
        self.monitor = _monitor(trt, progress) if progress else None

    def run(self, content: bytes, shapes: Shapes, log: Any, timing_cache: Path | None) -> bytes:
        """The engine's bytes."""
        log.clear()
        try:
            builder = self.trt.Builder(log)
        except TypeError as error:  # the binding's error if no object was created
            raise InputError(f"{self.library.title}: does not start: {log.said()}") from error
        network, parser = parse(self.trt, builder, content, log, self.onnx_path)
        config = self._configured(builder)
        config.add_optimization_profile(self._profile(builder, network, shapes))
        cache = None if timing_cache is None else _load_timings(config, timing_cache)
        plan = builder.build_serialized_network(network, config)
        del parser
        if self.monitor is not None and self.monitor.stopped_by is not None:
            raise self.monitor.stopped_by
        if plan is None:
            limit = self.options.workspace_mib
            within = "" if limit is None else f" within a workspace of {limit} MiB"
            raise ModelError(f"{self.library.title} cannot build it{within}: {log.said()}", path=self.onnx_path)
        if cache is not None and timing_cache is not None:
            with atomic_write(timing_cache) as partial:
                partial.write_bytes(cache.serialize())
        return bytes(plan)

    def _configured(self, builder: Any) -> Any:
        trt, options = self.trt, self.options
        config = builder.create_builder_config()
        config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
        # a chunk is a small part of what the profile allows; without this TensorRT may want memory for all of it. It is
        # TensorRT-RTX's default, and may become TensorRT's and no longer be a choice
        resized = getattr(trt.PreviewFeature, "RUNTIME_ACTIVATION_RESIZE_10_10", None)
        if resized is not None:
            config.set_preview_feature(resized, True)
        if options.workspace_mib is not None:
            config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_mib << 20)
        # without this a library may allocate while a chunk is computed, which no CUDA graph can capture
        user_allocates = getattr(trt.BuilderFlag, "REQUIRE_USER_ALLOCATION", None)
        if user_allocates is not None:
            config.set_flag(user_allocates)
        if not options.tf32:  # the library's own default is to round FP32 products to TF32 without a word
            config.clear_flag(trt.BuilderFlag.TF32)
        if options.version_compatible:
            config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
        if self.library.needs_gpu and options.runs_on != "this-gpu":
            levels = trt.HardwareCompatibilityLevel
            same = options.runs_on == "same-capability"
            config.hardware_compatibility_level = levels.SAME_COMPUTE_CAPABILITY if same else levels.AMPERE_PLUS
        if self.monitor is not None:
            config.progress_monitor = self.monitor
        return config

    def _profile(self, builder: Any, network: Any, shapes: Shapes) -> Any:
        found = sorted(network.get_input(index).name for index in range(network.num_inputs))
        if found != sorted(shapes):
            expected = ", ".join(sorted(shapes))
            raise ModelError(f"found inputs {', '.join(found)}, expected {expected}", path=self.onnx_path)
        profile = builder.create_optimization_profile()
        for name, three in shapes.items():
            profile.set_shape(name, *three)
        return profile


def parse(trt: ModuleType, builder: Any, content: bytes, log: Any, path: Path) -> tuple[Any, Any]:
    """An ONNX model as the library's network, strongly typed, and the parser, which must live as long.

    Raises:
        ModelError: with the parser's messages if it cannot parse the file.
    """
    typed = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)  # before TensorRT 11 a choice
    network = builder.create_network(0 if typed is None else 1 << int(typed))
    parser = trt.OnnxParser(network, log)
    if not parser.parse(content):
        errors = "; ".join(" ".join(str(parser.get_error(index)).split()) for index in range(parser.num_errors))
        raise ModelError(f"{trt.__name__}'s parser does not take it: {errors}", path=path)
    return network, parser


def _load_timings(config: Any, path: Path) -> Any:
    """The timing cache in a file; a new one if the file is missing or belongs to another GPU or version."""
    stored = path.read_bytes() if path.is_file() else b""
    cache = config.create_timing_cache(stored)
    if cache is None or not config.set_timing_cache(cache, False):
        cache = config.create_timing_cache(b"")
        config.set_timing_cache(cache, False)
    return cache


def _monitor(trt: ModuleType, progress: Progress) -> Any:
    """Pass the library's progress to `progress`: the innermost phase, and the steps of the outermost one."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[name-defined, misc]  # known only once imported
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.stopped_by: BaseException | None = None
            self._lock = threading.Lock()  # the library may call from several threads
            self._whole, self._done, self._steps = "", 0, 0

        def phase_start(self, phase: str, parent: str | None, steps: int) -> None:
            if parent is None:
                self._whole, self._done, self._steps = phase, 0, steps
            self._tell(phase)

        def phase_finish(self, phase: str) -> None:
            if phase == self._whole:
                self._done = self._steps
                self._tell(phase)

        def step_complete(self, phase: str, step: int) -> bool:
            if phase == self._whole:
                self._done = step + 1
                self._tell(phase)
            return self.stopped_by is None

        def _tell(self, phase: str) -> None:
            """Call `progress`. Its exception must not pass through the library: it stops the build and is raised
            later."""
            if self.stopped_by is not None:
                return
            try:
                with self._lock:
                    progress(phase, self._done, self._steps)
            except BaseException as error:
                self.stopped_by = error

    return Monitor()
