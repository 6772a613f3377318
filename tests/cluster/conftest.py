"""Ray of this machine, with all cores and without what tests need not wait for."""

from collections.abc import Iterator

import pytest

from tests.processes.workers import every_core

QUICKER = {"RAY_worker_niceness": "0", "RAY_enable_metrics_collection": "0"}
"""By default Ray's processes let all others of the machine go first, and so the tests' other workers. And they count
what nobody reads."""


@pytest.fixture(scope="module", autouse=True)
def cores() -> Iterator[None]:
    """A cluster counts the cores it may use, and some tests start two workers."""
    with every_core(), pytest.MonkeyPatch.context() as patch:
        for name, value in QUICKER.items():
            patch.setenv(name, value)
        yield
