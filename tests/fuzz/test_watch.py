"""The watch over the disk sees what it is there for."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.fuzz.mutate import feed
from tests.fuzz.watch import WATCH


def by_descriptor(outside: Path) -> None:
    os.close(os.open(outside / "new", os.O_WRONLY | os.O_CREAT))


STEPS = {
    "a file is written": lambda outside: (outside / "new").write_text("x"),
    "a file is appended to": lambda outside: (outside / "old").open("a"),
    "a file is opened by number": by_descriptor,
    "a file is removed": lambda outside: (outside / "old").unlink(),
    "a tree is removed": lambda outside: shutil.rmtree(outside / "full"),
    "a folder is made": lambda outside: (outside / "new").mkdir(),
    "a file is moved out": lambda outside: Path("inside/file").rename(outside / "new"),
    "a file is moved in": lambda outside: (outside / "old").rename("inside/new"),
    "a link is made": lambda outside: (outside / "new").symlink_to("old"),
    "a link in the folder is written through": lambda _: Path("inside/link/new").write_text("x"),
    "a path climbs out": lambda _: Path("inside/../outside/new").write_text("x"),
    "rights are changed": lambda outside: (outside / "old").chmod(0o777),
    "a temporary file is made": lambda outside: tempfile.mkstemp(dir=outside),
    "a program is started": lambda _: subprocess.run([sys.executable, "-c", ""], check=True),
}


@pytest.fixture(autouse=True)
def watched() -> None:
    """These tests watch themselves."""


@pytest.fixture
def outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("inside", "outside", "outside/full"):
        (tmp_path / name).mkdir()
    for name in ("inside/file", "outside/old", "outside/full/old"):
        (tmp_path / name).write_text("old")
    (tmp_path / "inside" / "link").symlink_to(tmp_path / "outside")
    return tmp_path / "outside"


def everything_in(folder: Path) -> dict[str, tuple[int, int]]:
    return {str(path): (path.lstat().st_size, path.lstat().st_mode) for path in sorted(folder.rglob("*"))}


@pytest.mark.parametrize("step", STEPS.values(), ids=STEPS)
def test_a_step_outside_is_refused_and_kept_even_if_the_error_is_caught(
    outside: Path, step: Callable[..., Any]
) -> None:
    before = everything_in(outside)
    with pytest.raises(AssertionError), WATCH.only_in(Path("inside")), contextlib.suppress(OSError):
        step(outside)
    assert WATCH.found
    assert everything_in(outside) == before
    WATCH.found.clear()


def test_steps_inside_and_reading_elsewhere_are_free(outside: Path) -> None:
    with WATCH.only_in(Path("inside")):
        Path("inside/new").write_text((outside / "old").read_text())
        Path("inside/new").rename("inside/newer")
        Path("inside/newer").unlink()
        with Path(os.devnull).open("w") as nothing:
            nothing.write("x")


def test_a_loop_names_the_input_that_did_it(outside: Path) -> None:
    def read(content: bytes) -> None:
        if len(content) < 4:
            with contextlib.suppress(OSError):
                (outside / "new").write_bytes(content)

    line = r"mutant \d+ of seed 0: .*open .*outside/new"
    with pytest.raises(AssertionError, match=line), WATCH.only_in(Path("inside")):
        feed(read, [b"a good file"], 200)
    WATCH.found.clear()
