"""Errors of CUDA's libraries, which onnxruntime reports only as text, as errors of this package."""

from __future__ import annotations

import re

import onnxruntime

from parotid_seg.errors import DeviceError, DeviceMemoryError, InputError, ParotidSegError
from parotid_seg.runtime.engines.gpu import find_gpu

PACKAGE = "onnxruntime-gpu[cuda,cudnn]>=1.27,<1.32"
"""Newer versions are not tested; their CUDA provider may be a package of its own."""
INSTALL = f"pip uninstall -y onnxruntime onnxruntime-gpu && pip install '{PACKAGE}'"
OUT_OF_MEMORY = (
    "Failed to allocate memory",
    "out of memory",
    "bad allocation",
    "smaller than requested bytes",
    "ErrorMemoryAllocation",
    "ALLOC_FAILED",
)
"""Messages of onnxruntime's arena, CUDA, cuBLAS and cuDNN when memory runs out. There is no exception class for it."""
FAILURE = re.compile(r"(CUDA|CUBLAS|CUDNN\w*|CUFFT|CURAND) (?:failure \d+: |error \w+: ?)([^;)\n]+)")
"""A library of CUDA and its message, as in "CUDA failure 719: unspecified launch failure ; GPU=0 ; ..." (onnxruntime's
cuda_call.cc and cudnn_fe_call.cc) and "CUDA error cudaErrorLaunchFailure:unspecified launch failure"."""


def device_error(error: BaseException, what: str, device: int) -> ParotidSegError | None:
    """The error of this package for one of CUDA's libraries; None if the GPU is not the cause.

    Args:
        error: raised by onnxruntime.
        what: what was to be put on the GPU, for the message.
        device: number of the GPU.

    Returns:
        DeviceMemoryError if memory ran out, InputError if a library is missing, else DeviceError.
    """
    text = str(error)
    if any(words in text for words in OUT_OF_MEMORY):
        return DeviceMemoryError(f"{what} does not fit into the memory of cuda:{device}")
    name = f"onnxruntime {onnxruntime.__version__}"
    if "cuDNN is unavailable" in text:
        return InputError(f"{name}: CUDA does not run: cuDNN is missing; it comes with this: {INSTALL}")
    found = FAILURE.search(text)
    if found is None:
        return None
    library, reason = found[1], found[2].strip()
    gpu = find_gpu(device)
    if "driver version is insufficient" in reason:
        supported = f"found one for CUDA {gpu.cuda}" if gpu else "found an older one"
        return DeviceError(
            f"{name}: the NVIDIA driver is too old: {supported}, expected CUDA {onnxruntime.cuda_version}"
        )
    if "no kernel image" in reason:
        return DeviceError(f"{name} has no kernels for cuda:{device} {gpu or ''}".rstrip())
    return DeviceError(f"{name}: cuda:{device} failed: {library}: {reason}")
