"""Archives whose headers or first bytes unpack to much more than they are: not searched, and not held in memory."""

import bz2
import gzip
import lzma
import tarfile
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from parotid_seg.scan.other_formats import UNSEARCHED, unread

BOMB = 1 << 25
ROOM = 1 << 24


def found_in(path: Path) -> str:
    """What is said of an archive, within little memory."""
    tracemalloc.start()
    try:
        reason = unread(path)
        assert tracemalloc.get_traced_memory()[1] < ROOM
    finally:
        tracemalloc.stop()
    return reason


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress, bytes])
@pytest.mark.parametrize("kind", [tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE, tarfile.XGLTYPE])
def test_a_header_as_long_as_a_scan(kind: bytes, pack: Callable[[bytes], bytes], tmp_path: Path) -> None:
    first, long = tarfile.TarInfo("a.txt"), tarfile.TarInfo("long")
    first.size, long.type, long.size = 600, kind, BOMB
    for name, members in (("first", b""), ("second", first.tobuf() + bytes(1024))):
        path = tmp_path / f"{name}.tar"
        path.write_bytes(pack(members + long.tobuf() + bytes(BOMB)))
        assert found_in(path) == f"not read: {UNSEARCHED}; unpack it"


def test_a_zip_archive_whose_first_bytes_unpack_to_much(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_BZIP2) as archive:
        archive.writestr("a.txt", bytes(BOMB))
    assert found_in(tmp_path / "a.zip") == f"not read: {UNSEARCHED}; unpack it"


@pytest.mark.parametrize("mode", ["w:gz", "w:bz2", "w:xz", "w"])
def test_long_members_and_names_are_searched(mode: str, tmp_path: Path) -> None:
    (tmp_path / "plain.txt").write_bytes(bytes(1 << 22))
    for name, held in (("b.nii.gz", "not read: an archive that holds scans; unpack it"), ("b.txt", "")):
        with tarfile.open(tmp_path / "a.tar", mode) as archive:  # type: ignore[call-overload]
            archive.add(tmp_path / "plain.txt", "folder/" * 60 + "plain.txt")
            archive.add(tmp_path / "plain.txt", name)
        assert found_in(tmp_path / "a.tar") == held
