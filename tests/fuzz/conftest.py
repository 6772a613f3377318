"""How many inputs the fuzz loops take."""

from __future__ import annotations

from collections.abc import Callable

import pytest


@pytest.fixture
def inputs(request) -> Callable[[int], int]:
    """How many inputs a loop takes: its own number, or what `--fuzz-inputs` says."""
    asked = request.config.getoption("--fuzz-inputs")
    return lambda usual: usual if asked is None else asked
