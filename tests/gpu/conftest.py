"""The libraries of engines that can be used on this machine's GPU."""

import importlib.util

import pytest

from parotid_seg.runtime.engines.engine_file import unsupported
from parotid_seg.runtime.engines.gpu import find_gpu
from parotid_seg.runtime.engines.tensorrt.library import LIBRARIES, import_library, known_capabilities


@pytest.fixture(params=LIBRARIES, scope="session")
def library(request: pytest.FixtureRequest) -> str:
    """One that is installed and has code for the GPU: TensorRT-RTX has none for an H100."""
    name: str = request.param
    if importlib.util.find_spec(LIBRARIES[name].module) is None:
        pytest.skip(f"{name} is missing: pip install {name}")
    if reason := unsupported(name, find_gpu(), known_capabilities(import_library(name))):
        pytest.skip(reason)
    return name
