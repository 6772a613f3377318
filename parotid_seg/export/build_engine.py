"""Builds a TensorRT or TensorRT-RTX engine with its sidecar from a model file."""

from __future__ import annotations

import dataclasses
import hashlib
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from parotid_seg.errors import InputError, ModelError, OptionError
from parotid_seg.export.engine_shapes import input_shapes
from parotid_seg.files import atomic_write, make_folder, scratch_folder, write_bytes
from parotid_seg.runtime.engines.engine_file import (
    BatchProfile,
    EngineOptions,
    Shapes,
    Sidecar,
    sidecar_path,
)
from parotid_seg.runtime.engines.gpu import Gpu, find_gpu
from parotid_seg.runtime.engines.model_file import read_model
from parotid_seg.runtime.engines.tensorrt.library import (
    Library,
    import_library,
    library_named,
    log_of,
)
from parotid_seg.wording import Progress, Say


def build_engine(
    onnx_path: Path,
    out: Path,
    *,
    library: str,
    profile: BatchProfile,
    options: EngineOptions,
    report: Say = lambda _: None,
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
    content, contract, onnx_sha256 = read_model(onnx_path)
    shapes = input_shapes(contract, profile)
    make_folder(out.parent)
    report(f"building {out} with {described.title} {trt.__version__} for {profile}")
    started = time.perf_counter()
    plan = _Build(trt, described, onnx_path, options, progress).run(content, shapes, log_of(library), timing_cache)
    sidecar = Sidecar(
        contract=contract,
        precision=contract.precision,
        onnx_name=onnx_path.name,
        onnx_sha256=onnx_sha256,
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
