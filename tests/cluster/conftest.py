"""A cluster counts the cores it may use, and some tests start two workers."""

from collections.abc import Iterator

import pytest

from tests.workers import every_core


@pytest.fixture(scope="module", autouse=True)
def cores() -> Iterator[None]:
    with every_core():
        yield
