"""Files that the process trusts: only its own, undamaged, and the latest few."""

import os
from pathlib import Path

import pytest

from parotid_seg.runtime.engines.private_file import KEPT, read_private, write_private


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "private"


def test_a_file_is_used_again_whatever_files_are_for_others_by_default(folder: Path) -> None:
    before = os.umask(0)
    try:
        write_private(b"code", folder / "a.blob")
    finally:
        os.umask(before)
    found = read_private(folder / "a.blob")
    assert found is not None
    assert bytes(found) == b"code"


def test_the_latest_used_are_kept(folder: Path) -> None:
    write_private(b"another kind", folder / "0.kernels")
    os.utime(folder / "0.kernels", (0, 0))
    names = [f"{number}.blob" for number in range(KEPT)]
    for age, name in enumerate(reversed(names)):
        write_private(b"code", folder / name)
        os.utime(folder / name, (1000 - age, 1000 - age))
    assert read_private(folder / "0.blob") is not None  # was the first written, with the oldest date
    write_private(b"code", folder / "new.blob")
    assert sorted(each.name for each in folder.iterdir()) == sorted(["0.kernels", "new.blob", *names[:1], *names[2:]])
