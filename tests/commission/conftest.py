"""A packaged example that is as small as the drawn scans."""

from pathlib import Path

import pytest

from parotid_seg.commission import commissioning
from tests.commission.data import data_set, run


@pytest.fixture(scope="session")
def small_example(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return data_set(tmp_path_factory.mktemp("example"), 1)


@pytest.fixture
def drawn_example(small_example: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commissioning, "example_folder", lambda: small_example)


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four patients; it is only read."""
    return data_set(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="session")
def first(data: Path, small_example: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A commissioning of the model that is right; it is only read."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("parotid_seg.commission.commissioning.example_folder", lambda: small_example)
        out = tmp_path_factory.mktemp("first")
        run(data, out)
    return out
