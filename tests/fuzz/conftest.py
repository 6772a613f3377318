"""How many inputs the fuzz loops take, and what they may do to the disk: nothing but in their folders."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.fuzz import mutate
from tests.fuzz.watch import WATCH, left_in


@pytest.fixture
def inputs(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], int]:
    """How many inputs a loop takes: its own number, or what `--fuzz-inputs` says."""
    monkeypatch.setattr(mutate, "FIRST", request.config.getoption("--fuzz-first"))
    asked = request.config.getoption("--fuzz-inputs")
    return lambda usual: usual if asked is None else asked


@pytest.fixture
def folders() -> tuple[Path, ...]:
    """Folders that a module's tests share."""
    return ()


@pytest.fixture(autouse=True)
def watched(tmp_path: Path, folders: tuple[Path, ...], monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Fails a test that writes elsewhere than in its folder, which is inside another that stays as it is."""
    current = tmp_path / "current"
    current.mkdir()
    monkeypatch.chdir(current)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    before = left_in(tmp_path.parent)
    with WATCH.only_in(tmp_path, *folders):
        yield
    assert left_in(current) == {}
    assert set(left_in(tmp_path.parent)) == set(before)
