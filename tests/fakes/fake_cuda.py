"""A GPU that is none: PyCUDA, the driver and TensorRT as far as our engine uses them, with numpy for device memory.

What it is strict about is what goes wrong on a real one: every call needs the context to be current; streams do nothing
until they are waited for, so a buffer that is written too early shows in the labels; addresses are never used twice, so
freed memory is found; a graph replays the addresses it was captured with, and only while its context is as it was then.
An engine's file is `PLAN` and an ONNX model, which onnxruntime runs when the stream gets there.
"""

from __future__ import annotations

import enum
import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnxruntime
import pytest

from parotid_seg.contract import Contract
from parotid_seg.export import build_engine as engine_module
from parotid_seg.export import engine_proof as proof_module
from parotid_seg.export import find_engine as find_module
from parotid_seg.export.engine_shapes import input_shapes
from parotid_seg.runtime.engines.engine_file import BatchProfile
from parotid_seg.runtime.engines.gpu import Gpu
from parotid_seg.runtime.engines.tensorrt import cuda_context as cuda_module
from parotid_seg.runtime.engines.tensorrt import library as trt_library
from parotid_seg.runtime.engines.tensorrt import tensorrt_engine as trt_module
from tests.fakes.fake_gpu import FakeGpu, fake_pycuda
from tests.fakes.sidecars import write_sidecar

PLAN = b"plan:"
VERSIONS = {"tensorrt": "10.13.0", "tensorrt-rtx": "1.7.1"}
ADA = Gpu("NVIDIA RTX 4000 Ada", (8, 9), "13.0")
SCRATCH_OF_A_LOOK = 100_000


def install(monkeypatch: pytest.MonkeyPatch) -> FakeGpu:
    """Put the fakes where `runtime.engines.tensorrt.tensorrt_engine` imports the real ones from."""
    gpu = FakeGpu()
    fakes = {described.module: fake_tensorrt(gpu, name) for name, described in trt_library.LIBRARIES.items()}
    package: Any = ModuleType("pycuda")
    package.driver = fake_pycuda(gpu)
    fakes |= {"pycuda": package, "pycuda.driver": package.driver}
    for name, fake in fakes.items():
        monkeypatch.setitem(sys.modules, name, fake)
    logs: dict[str, object] = {}
    uncached = trt_library.log_of.__wrapped__  # the cached one would carry a fake's log over to other tests
    for module in (trt_module, engine_module):
        monkeypatch.setattr(module, "log_of", lambda name: logs.setdefault(name, uncached(name)))
    for module in (trt_module, engine_module, find_module, proof_module):
        monkeypatch.setattr(module, "find_gpu", lambda index=0: ADA if index == 0 else None)
    monkeypatch.setattr(cuda_module, "load_driver", lambda: gpu.driver)
    monkeypatch.setattr(engine_module, "_Build", FakeBuild)
    return gpu


def write_engine(path: Path, onnx: Path, contract: Contract, library: str, batch: BatchProfile) -> Path:
    """The fake's engine file of a model, with its sidecar."""
    path.write_bytes(PLAN + onnx.read_bytes())
    write_sidecar(
        path,
        contract,
        precision=contract.precision,
        library=library,
        library_version=VERSIONS[library],
        gpu=ADA.name,
        compute_capability=ADA.compute_capability,
        batch=batch,
        shapes=input_shapes(contract, batch),
    )
    return path


class FakeBuild:
    """Builds an engine file of a model as `export.build_engine` asks for it."""

    def __init__(self, *_: object) -> None:
        pass

    def run(self, content: bytes, *_: object) -> bytes:
        return PLAN + content


def made_enum(name: str, members: list[str]) -> Any:
    return enum.Enum(name, members)


class Diagnostics(enum.IntEnum):
    """Some of TensorRT-RTX's `EngineInvalidityDiagnostics`."""

    VERSION_MISMATCH = 1
    UNSUPPORTED_CC = 2
    MALFORMED_ENGINE = 32


def fake_tensorrt(gpu: FakeGpu, name: str) -> ModuleType:
    described = trt_library.LIBRARIES[name]
    module: Any = ModuleType(described.module)
    module.__version__ = VERSIONS[name]

    class ILogger:
        Severity = enum.Enum("Severity", ["INTERNAL_ERROR", "ERROR", "WARNING"])

    class Runtime:
        def __init__(self, log: Any) -> None:
            gpu.need_current()
            self.log = lambda text: log.log(ILogger.Severity.ERROR, text)
            gpu.runtimes.append(self)

        def deserialize_cuda_engine(self, serialized_engine: bytes) -> FakeEngine | None:
            gpu.need_current()
            if not serialized_engine.startswith(PLAN):
                self.log("The engine plan file is\nno plan")
                return None
            if len(serialized_engine) + gpu.used > gpu.limit:
                self.log("[defaultAllocator.cpp::allocate::17] Error Code 2: OutOfMemory (Requested size was ...)")
                return None
            return FakeEngine(gpu, module, self.log, serialized_engine[len(PLAN) :])

    class JitRuntime(Runtime):
        """Of TensorRT-RTX."""

        def get_engine_validity(self, buffer: bytes) -> tuple[enum.Enum, int]:
            return module.EngineValidity[gpu.validity], Diagnostics.UNSUPPORTED_CC | Diagnostics.MALFORMED_ENGINE

    module.ILogger, module.Runtime = ILogger, Runtime
    module.TensorIOMode = made_enum("TensorIOMode", ["NONE", "INPUT", "OUTPUT"])
    module.DataType = made_enum("DataType", ["FLOAT", "HALF", "UINT8"])
    module.nptype = {
        module.DataType.FLOAT: np.float32,
        module.DataType.HALF: np.float16,
        module.DataType.UINT8: np.uint8,
    }.__getitem__
    module.ExecutionContextAllocationStrategy = made_enum("Strategy", ["STATIC", "ON_PROFILE_CHANGE", "USER_MANAGED"])
    if described.captures:
        module.CudaGraphStrategy = made_enum("CudaGraphStrategy", ["DISABLED", "WHOLE_GRAPH_CAPTURE"])
        module.DynamicShapesKernelSpecializationStrategy = made_enum("Specialization", ["LAZY", "EAGER", "NONE"])
        module.ComputeCapability = made_enum("ComputeCapability", ["NONE", "CURRENT", "SM86", "SM89", "SM120"])
        module.EngineValidity = made_enum("EngineValidity", ["VALID", "SUBOPTIMAL", "INVALID"])
        module.EngineInvalidityDiagnostics = Diagnostics
        module.Runtime = JitRuntime
    return module


class FakeRuntimeCache:
    """Of TensorRT-RTX: kernels by the shapes they are for."""

    def __init__(self, gpu: FakeGpu) -> None:
        self.gpu = gpu
        self.kernels: set[str] = set()

    def serialize(self) -> bytes:
        self.gpu.need_current()
        return json.dumps(["kernels", *sorted(self.kernels)]).encode()

    def deserialize(self, blob: bytes) -> bool:
        self.gpu.need_current()
        mark, *kernels = json.loads(blob)
        self.kernels |= set(kernels)
        return bool(mark == "kernels")


class FakeRuntimeConfig:
    """Of TensorRT-RTX."""

    def __init__(self, gpu: FakeGpu) -> None:
        self.gpu = gpu
        self.cuda_graph_strategy: enum.Enum | None = None
        self.dynamic_shapes_kernel_specialization_strategy: enum.Enum | None = None
        self.allocation: enum.Enum | None = None
        self.cache: FakeRuntimeCache | None = None

    def set_execution_context_allocation_strategy(self, strategy: enum.Enum) -> None:
        self.allocation = strategy

    def create_runtime_cache(self) -> FakeRuntimeCache:
        return FakeRuntimeCache(self.gpu)

    def set_runtime_cache(self, cache: FakeRuntimeCache) -> bool:
        self.cache = cache
        return True


class FakeEngine:
    def __init__(self, gpu: FakeGpu, module: ModuleType, log: Callable[[str], None], model: bytes) -> None:
        self.gpu, self.module, self.log = gpu, module, log
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        self.session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        self.inputs = {entry.name: entry.type for entry in self.session.get_inputs()}
        self.outputs = {entry.name: entry.type for entry in self.session.get_outputs()}
        self.classes = next((e.shape[1] for e in self.session.get_outputs() if e.name == "probabilities"), 0)
        self.names = [*self.inputs, *self.outputs]
        self.num_io_tensors = len(self.names)
        self.device_memory_size_v2 = 64 * SCRATCH_OF_A_LOOK

    def __del__(self) -> None:
        self.gpu.gone.append(("engine", bool(self.gpu.stack)))

    def get_tensor_name(self, index: int) -> str:
        return self.names[index]

    def get_tensor_mode(self, name: str) -> enum.Enum:
        return self.module.TensorIOMode.INPUT if name in self.inputs else self.module.TensorIOMode.OUTPUT

    def get_tensor_dtype(self, name: str) -> enum.Enum:
        types = {"tensor(float)": "FLOAT", "tensor(float16)": "HALF", "tensor(uint8)": "UINT8"}
        return self.module.DataType[types[(self.inputs | self.outputs)[name]]]

    def create_runtime_config(self) -> FakeRuntimeConfig:
        assert hasattr(self.module, "CudaGraphStrategy")
        self.gpu.configs.append(FakeRuntimeConfig(self.gpu))
        return self.gpu.configs[-1]

    def create_execution_context(self, strategy: enum.Enum | FakeRuntimeConfig) -> FakeExecutionContext:
        self.gpu.need_current()
        config = strategy if isinstance(strategy, FakeRuntimeConfig) else None
        assert (
            strategy if config is None else config.allocation
        ) is self.module.ExecutionContextAllocationStrategy.USER_MANAGED
        self.gpu.contexts.append(FakeExecutionContext(self, config))
        return self.gpu.contexts[-1]


class FakeExecutionContext:
    def __init__(self, engine: FakeEngine, config: FakeRuntimeConfig | None) -> None:
        self.engine, self.gpu, self.config = engine, engine.gpu, config
        self.profile: int | None = None
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}
        self.scratch = (0, 0)
        self.flushed = False
        self.state = 0

    def changed(self) -> None:
        self.flushed, self.state = False, self.state + 1

    def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool:
        assert stream_handle in self.gpu.streams
        self.profile = profile_index
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        assert name in self.engine.inputs
        assert self.profile == 0
        self.shapes[name] = shape
        self.changed()
        return True

    def infer_shapes(self) -> list[str]:
        return [name for name in self.engine.inputs if name not in self.shapes]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        out, rows, columns = (self.shapes[each][0] for each in ("slices_back", "rows_back", "columns_back"))
        return (out, rows, columns) if name == "labels" else (out, self.engine.classes, rows, columns)

    def update_device_memory_size_for_shapes(self) -> int:
        return self.shapes["neighbours"][0] * SCRATCH_OF_A_LOOK

    def set_device_memory(self, memory: int, size: int) -> None:
        self.scratch = (memory, size)

    def set_tensor_address(self, name: str, memory: int) -> bool:
        assert memory % 256 == 0
        self.addresses[name] = memory
        return True

    def execute_async_v3(self, stream_handle: int) -> bool:
        self.gpu.need_current()
        found = self.gpu.streams[stream_handle]
        if (
            set(self.addresses) != set(self.engine.names)
            or self.scratch[1] < self.update_device_memory_size_for_shapes()
        ):
            self.engine.log("API Usage Error: something is not set")
            return False
        if found.captured is not None and not self.flushed:
            self.engine.log("API Usage Error: operation not permitted when stream is capturing")
            return False
        self.flushed = True
        if self.config is not None and self.config.cache is not None:
            strategy = self.config.dynamic_shapes_kernel_specialization_strategy
            kernels, needed = self.config.cache.kernels, str(sorted(self.shapes.items()))
            if strategy is not None and strategy.name == "EAGER":
                kernels.add(needed)
            self.gpu.fallbacks += needed not in kernels
        shapes, addresses, scratch, state = dict(self.shapes), dict(self.addresses), self.scratch, self.state

        def run() -> None:
            assert self.state == state, "the context has other shapes by now"
            self.gpu.bytes_at(*scratch)[:] = 0xEF
            inputs = {name: self.read(name, addresses[name], shapes[name]) for name in self.engine.inputs}
            results = self.engine.session.run(list(self.engine.outputs), inputs)
            for name, result in zip(self.engine.outputs, results, strict=True):
                flat = np.ascontiguousarray(result).reshape(-1).view(np.uint8)
                self.gpu.bytes_at(addresses[name], flat.nbytes)[:] = flat

        found.add("compute", run)
        return True

    def read(self, name: str, address: int, shape: tuple[int, ...]) -> np.ndarray:
        dtype = np.dtype(self.engine.module.nptype(self.engine.get_tensor_dtype(name)))
        content = self.gpu.bytes_at(address, math.prod(shape) * dtype.itemsize)
        return content.copy().view(dtype).reshape(shape)
