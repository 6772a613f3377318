"""ONNX models on onnxruntime's CUDA provider, with a check that it really runs them.

onnxruntime falls back: if CUDA does not load, a session runs on the CPU with a line in the log, and nodes without a
CUDA kernel run on the CPU without one. Both are therefore checked after the session is created.
"""

from __future__ import annotations

import contextlib
import ctypes
import io
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType

import onnxruntime

from parotid_seg.errors import InputError, ModelError
from parotid_seg.runtime.engines.base import OUTPUTS, USUAL_BATCH, ExecutionInfo
from parotid_seg.runtime.engines.gpu import load_driver
from parotid_seg.runtime.engines.model_file import read_model
from parotid_seg.runtime.engines.onnxruntime.cpu import check_installation, check_session, make_session, session_options
from parotid_seg.runtime.engines.onnxruntime.io_binding import SLOTS, BoundBackend, IoBindingSession
from parotid_seg.runtime.engines.onnxruntime.stream import INSTALL, CudaRuntimeError, CudaStream, device_error
from parotid_seg.runtime.engines.packing import labels_per_byte

PROVIDER = "CUDAExecutionProvider"
HEAVY = {
    *("MatMul", "Gemm", "FusedMatMul", "MatMulInteger", "QLinearMatMul"),
    *("Conv", "FusedConv", "ConvInteger", "QLinearConv", "ConvTranspose"),
    *("LayerNormalization", "SkipLayerNormalization", "SimplifiedLayerNormalization"),
    *("Softmax", "Attention", "MultiHeadAttention", "Gelu", "FastGelu", "BiasGelu", "ArgMax"),
}
"""Operators that must not run on the CPU. Shape arithmetic may: onnxruntime assigns it to the CPU on purpose. Its
option `session.disable_cpu_ep_fallback`, which forbids all nodes on the CPU, cannot therefore be used for models with
free sizes."""
OPTIONS = {
    "cudnn_conv_algo_search": "HEURISTIC",  # the default benchmarks every algorithm for every new shape
    "use_tf32": "0",  # the default rounds FP32 products to 10 bits of 23
}
"""Options of the CUDA provider; see onnxruntime.ai/docs/execution-providers/CUDA-ExecutionProvider.html."""


class OnnxRuntimeCudaBackend(BoundBackend):
    """A model file on an NVIDIA GPU.

    Inputs and outputs have fixed buffers on the GPU, and repeated shapes are replayed as CUDA graphs. Two chunks are in
    flight: one is computed while the host prepares the next; see `io_binding`. A chunk of less than `batch_size`
    samples is padded to as many: cuDNN plans the convolutions anew for each number of samples, which took 400 ms in
    FP16 on an NVIDIA H200, where 64 samples take 3 ms.

    Args:
        model: the .onnx file.
        device: number of the GPU.
        output: one of `OUTPUTS`.
        provider: more options of the CUDA provider besides `OPTIONS`, to compare them.

    Raises:
        ModelError: as `model_file.read_model`; if the model has other inputs or no such output; or if heavy nodes of it
            would run on the CPU.
        InputError: if onnxruntime has no CUDA provider, or it does not load: what is missing and how to install it.
        DeviceError: if the GPU or its driver cannot be used.
        DeviceMemoryError: if the model does not fit into the GPU's memory.
    """

    queue_depth = SLOTS

    def __init__(
        self,
        model: Path,
        *,
        device: int = 0,
        output: str = OUTPUTS[0],
        provider: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        check_installation()
        check_provider()
        content, self.contract, self.model_sha256 = read_model(model)
        with _quiet():
            self._stream = _new_stream(str(model), device)
            try:
                place = {"device_id": str(device), "user_compute_stream": str(self._stream.handle)}
                self._load(model, content, {**place, **OPTIONS, **provider}, output, device)
            except BaseException:
                self._stream.close()
                raise

    def _load(self, model: Path, content: bytes, provider: dict[str, str], output: str, device: int) -> None:
        graphs = True
        try:
            session = _session(model, content, {**provider, "enable_cuda_graph": "1"})
        except ModelError as error:
            # Some nodes have no CUDA kernel in this version of onnxruntime. `ran` reports it.
            if "graph capture" not in str(error):
                raise
            graphs, session = False, _session(model, content, provider)
        if PROVIDER not in session.get_providers():
            raise InputError(f"onnxruntime {onnxruntime.__version__}: CUDA does not run: {why_not()}")
        check_session(session, output, model)
        on_cpu = heavy_nodes(session, on="CPUExecutionProvider")
        if on_cpu:
            nodes = ", ".join(f"{count} {kind}" for kind, count in sorted(on_cpu.items()))
            raise ModelError(
                f"onnxruntime {onnxruntime.__version__} would run {nodes} of it on the CPU, expected all on "
                f"{PROVIDER}; use another version of it, or --device cpu",
                path=model,
            )
        # 8-bit products of a quantised graph are computed in FP32, as the provider has no kernels for them.
        precision = "fp32" if self.contract.precision == "int8" else self.contract.precision
        name = f"onnxruntime {onnxruntime.__version__} {'with' if graphs else 'without'} CUDA graphs"
        self.ran = ExecutionInfo(name, f"cuda:{device}", precision)
        number = labels_per_byte(len(self.contract.labels))
        self._bound = IoBindingSession(
            session, output, self._stream, "cuda", device, graphs=graphs, labels_per_byte=number
        )
        self.batch_size = USUAL_BATCH

    @property
    def batch_size(self) -> int:
        """See `Backend`."""
        return self._bound.samples

    @batch_size.setter
    def batch_size(self, samples: int) -> None:
        self._bound.samples = samples

    def close(self) -> None:
        """Free the GPU's memory."""
        super().close()
        self._stream.close()


def check_provider() -> None:
    """Raise InputError if the installed onnxruntime has no CUDA provider."""
    providers = onnxruntime.get_available_providers()
    if PROVIDER not in providers:
        raise InputError(
            f"onnxruntime {onnxruntime.__version__} has no {PROVIDER}, found {', '.join(providers)}; the package "
            f"onnxruntime-gpu has: {INSTALL}"
        )


def heavy_nodes(session: onnxruntime.InferenceSession, *, on: str) -> Counter[str]:
    """Number of nodes by heavy operator that a session runs on a provider; it must be set to record this."""
    return Counter(
        node.op_type
        for part in session.get_provider_graph_assignment_info()
        if part.ep_name == on
        for node in part.get_nodes()
        if node.op_type in HEAVY
    )


def recorded(options: onnxruntime.SessionOptions) -> onnxruntime.SessionOptions:
    """Set a session to record which provider runs which node."""
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    return options


def why_not() -> str:
    """Why the CUDA provider does not load, and how to install the missing part, in one line."""
    name = "onnxruntime_providers_cuda.dll" if sys.platform == "win32" else "libonnxruntime_providers_cuda.so"
    library = Path(onnxruntime.__file__).parent / "capi" / name
    try:
        ctypes.CDLL(str(library))
    except OSError as error:
        reason = " ".join(str(error).split())  # the dynamic linker names the first missing library
        driver = "libcuda.so" in reason or "nvcuda.dll" in reason
        return f"{reason}; it comes with " + ("the NVIDIA driver" if driver else f"this: {INSTALL}")
    return (
        f"its libraries load, but no session can be created; does the driver support CUDA {onnxruntime.cuda_version}?"
    )


def _new_stream(model: str, device: int) -> CudaStream:
    """A stream on a GPU.

    Raises:
        DeviceError: if the GPU cannot be used.
        InputError: if CUDA does not load.
    """
    try:
        return CudaStream(device)
    except (OSError, CudaRuntimeError) as error:
        known = device_error(error, model, device) if load_driver() else None
        raise known or InputError(f"onnxruntime {onnxruntime.__version__}: CUDA does not run: {why_not()}") from error


def _session(model: Path, content: bytes, provider: dict[str, str]) -> onnxruntime.InferenceSession:
    options, device = recorded(session_options()), int(provider["device_id"])
    return make_session(
        model, content, options, [(PROVIDER, provider)], lambda error: device_error(error, str(model), device)
    )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Load CUDA's libraries from pip's packages, and suppress onnxruntime's output about it.

    Failures are detected afterwards, and reported in one line. The log stays off: a GPU that fails later would write
    into it, too.
    """
    onnxruntime.set_default_logger_severity(4)
    with contextlib.redirect_stdout(io.StringIO()):
        onnxruntime.preload_dlls(directory="")
        yield
