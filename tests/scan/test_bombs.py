"""Small files that claim or unpack to much more: refused in one line, without the memory for it."""

import gzip
import struct
import sys
import zlib
from functools import partial
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
from pydicom.uid import DeflatedExplicitVRLittleEndian, RLELossless

from parotid_seg.scan.foreign import FREE_BYTES, MOST_EXPANSION, MOST_VOXELS
from tests.dicom_series import ct_voxels, write_series
from tests.processes.forked import LIGHT, Forked
from tests.scan import limited

ROOM = 700 << 20
"""Bytes that a process may have beyond what it has when the package is imported: below that of each bomb."""
pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="limits memory as Linux does")]


def read(path: Path, room: int = ROOM) -> str:
    """What a process with little memory says of a file."""
    process = Forked(partial(limited.read, path, room), server=LIGHT)
    told, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    return told.strip()


def header(shape: tuple[int, int, int], dtype: type[np.int16] = np.int16) -> bytes:
    made = nibabel.Nifti1Header()
    made.set_data_dtype(dtype)
    made.set_data_shape(shape)
    made.set_sform(np.diag([2.0, 2.0, 2.0, 1.0]), 1)
    made["pixdim"][1:4] = 2
    made["vox_offset"] = 352
    made["magic"] = b"n+1"
    return made.binaryblock + bytes(4)


def packed(start: bytes, zeros: int) -> bytes:
    """Bytes and then so many zeros, deflated; a block of zeros is packed once and repeated."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    begin = packer.compress(start) + packer.flush(zlib.Z_FULL_FLUSH)
    block = packer.compress(bytes(1 << 24)) + packer.flush(zlib.Z_FULL_FLUSH)
    return begin + block * (zeros >> 24) + packer.flush()


def gzipped(start: bytes, zeros: int) -> bytes:
    """The same as a gzip file; its checksum is wrong, but comes last."""
    return gzip.compress(b"")[:10] + packed(start, zeros) + bytes(8)


def test_a_gzip_bomb_behind_a_small_header(tmp_path: Path) -> None:
    """3 GB that the header says nothing of: only what it says is unpacked."""
    path = tmp_path / "a.nii.gz"
    small = np.arange(20**3, dtype=np.int16).tobytes(order="F")
    path.write_bytes(gzipped(header((20, 20, 20)) + small, 3 << 30))
    assert path.stat().st_size < 4 << 20
    assert read(path) == "read more_voxels"


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_a_header_that_claims_more_than_the_file_holds(name: str, tmp_path: Path) -> None:
    content = header((1000, 1000, 1000)) + bytes(1000)
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith("gz") else content)
    assert "reading it would take 1907 MB of memory, expected at most 768 MB" in read(tmp_path / name)


def test_a_header_that_claims_more_voxels_than_a_scan_may_have(tmp_path: Path) -> None:
    (tmp_path / "a.nii").write_bytes(header((1200, 1200, 1200)))
    assert f"found {1200**3} voxels, expected at most {MOST_VOXELS}" in read(tmp_path / "a.nii")


def test_a_bomb_whose_header_says_so(tmp_path: Path) -> None:
    """1.6 GB of zeros in 1.6 MB."""
    (tmp_path / "a.nii.gz").write_bytes(gzipped(header((1024, 1024, 800)), 1600 << 20))
    assert "reading it would take 1600 MB of memory, expected at most 768 MB" in read(tmp_path / "a.nii.gz")


def test_a_scan_of_the_usual_size_needs_little_more_than_its_voxels(tmp_path: Path) -> None:
    """100 MB of voxels that shrink to nothing: read within 225 MB."""
    voxels = np.zeros((512, 512, 200), np.int16)
    voxels[::7] = 40
    (tmp_path / "a.nii.gz").write_bytes(gzip.compress(header(voxels.shape) + voxels.tobytes(order="F"), 1))
    assert read(tmp_path / "a.nii.gz", 225 << 20) == "read"


def test_a_pair_that_claims_more_than_its_image_holds(tmp_path: Path) -> None:
    (tmp_path / "a.hdr").write_bytes(header((1000, 1000, 1000))[:348].replace(b"n+1", b"ni1"))
    (tmp_path / "a.img").write_bytes(bytes(1000))
    assert "reading it would take 1907 MB" in read(tmp_path / "a.hdr")


NRRD = (
    "NRRD0004\ntype: short\ndimension: 3\nspace: left-posterior-superior\nsizes: {sizes}\n"
    "space directions: (2,0,0) (0,2,0) (0,0,2)\nendian: little\nencoding: {encoding}\nspace origin: (0,0,0)\n\n"
)


@pytest.mark.parametrize("encoding", ["raw", "gzip", "bzip2", "ascii"])
def test_a_nrrd_header_that_claims_more_than_the_file_holds(encoding: str, tmp_path: Path) -> None:
    (tmp_path / "a.nrrd").write_text(NRRD.format(sizes="1000 1000 1000", encoding=encoding))
    assert "reading it would take 5722 MB of memory, expected at most 768 MB" in read(tmp_path / "a.nrrd")


def test_a_nrrd_bomb_behind_small_sizes(tmp_path: Path) -> None:
    with (tmp_path / "a.nrrd").open("wb") as file:
        file.write(NRRD.format(sizes="20 20 20", encoding="gzip").encode())
        file.write(gzipped(b"", 1600 << 20))
    assert "found more than 16000 bytes, expected 16000" in read(tmp_path / "a.nrrd")


def test_a_deflated_dicom_bomb(tmp_path: Path) -> None:
    """1 MB that inflates to 1 GB."""
    paths = write_series(tmp_path / "ct", ct_voxels((7, 16, 16)), transfer_syntax=DeflatedExplicitVRLittleEndian)
    dataset = pydicom.dcmread(paths[0])
    content = paths[0].read_bytes()
    at = 132 + 12 + dataset.file_meta.FileMetaInformationGroupLength
    plain = zlib.decompress(content[at:], -15)
    element = struct.pack("<HH", 0x7FE1, 0x0010) + b"OB\0\0" + struct.pack("<I", 1 << 30)
    paths[0].write_bytes(content[:at] + packed(plain + element, 1 << 30))
    assert "inflates to more than 256 MB" in read(tmp_path / "ct")


def test_a_series_of_small_files_that_unpacks_to_much_more(tmp_path: Path) -> None:
    """18 files of half a MB with slices of 4096 x 4096."""
    (one,) = write_series(tmp_path / "one", np.full((1, 4096, 4096), 40), transfer_syntax=RLELossless)
    large = pydicom.dcmread(one)
    paths = write_series(tmp_path / "ct", ct_voxels((18, 16, 16)), transfer_syntax=RLELossless)
    for path in paths:
        dataset = pydicom.dcmread(path)
        dataset.Rows, dataset.Columns, dataset.PixelSpacing = 4096, 4096, [0.1, 0.1]
        dataset["PixelData"] = large["PixelData"]
        dataset.save_as(path)
    assert sum(path.stat().st_size for path in paths) < 10 << 20
    assert "reading it would take 2016 MB of memory, expected at most 768 MB" in read(tmp_path / "ct")


def test_the_limits_are_documented() -> None:
    text = (Path(__file__).parents[2] / "docs" / "runtime.md").read_text()
    for number in (f"{MOST_VOXELS}", f"{FREE_BYTES >> 20} MB", f"{MOST_EXPANSION} bytes"):
        assert number in text
