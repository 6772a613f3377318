"""What the runtime's tests share."""

import pytest

from parotid_seg.models import DEFAULT_MODEL
from parotid_seg.runtime.engines.base import Backend
from parotid_seg.runtime.engines.load import load_backend


@pytest.fixture(scope="session")
def model() -> Backend:
    """The packaged model."""
    return load_backend(DEFAULT_MODEL, "onnxruntime", "cpu")
