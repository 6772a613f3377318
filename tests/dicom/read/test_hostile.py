"""Files that lie: whatever is in them, finding and reading ends in a series, a line or a ScanError, and in no time."""

import contextlib
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
import pydicom.data
import pytest
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    RLELossless,
)

from parotid_seg.dicom.read import file as dicom_file
from parotid_seg.dicom.read.series_volume import find_series, read_series
from parotid_seg.errors import ScanError
from parotid_seg.runtime.inspection import inspect
from tests.dicom_series import ct_voxels, write_enhanced, write_series

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:The value length", "ignore:Invalid value for VR")]
SHAPE = (7, 32, 36)
SHIPPED = sorted(path for path in Path(pydicom.data.__file__).parent.rglob("*") if path.is_file())
DEEP = 5000


def refusal(paths: list[Path]) -> str:
    found = find_series(paths)
    assert found.series == ()
    return next(str(left) for left in found.left_out if left.refused)


def try_all(paths: list[Path]) -> int:
    """Find and read what can be; the number of series."""
    found = find_series(paths)
    assert found.series or found.left_out
    assert all("\n" not in str(left) for left in found.left_out)
    for series in found.series:
        with contextlib.suppress(ScanError):
            assert np.isfinite(read_series(series).volume.voxels).all()
    return len(found.series)


@pytest.mark.parametrize("folder", sorted({path.parent for path in SHIPPED}), ids=lambda path: path.name)
def test_every_file_that_ships_with_pydicom(folder: Path) -> None:
    paths = [path for path in SHIPPED if path.parent == folder]
    for path in paths:
        try_all([path])
    try_all(paths)


def test_all_that_ships_with_pydicom_at_once() -> None:
    found = find_series(SHIPPED)
    used = {each.path for series in found.series for each in series.slices}
    assert len(used) + sum(left.count for left in found.left_out) >= len(SHIPPED)
    assert inspect(Path(pydicom.data.__file__).parent)


@pytest.mark.parametrize("kind", ["series", "enhanced", "compressed"])
def test_cut_and_overwritten_files(tmp_path: Path, kind: str) -> None:
    if kind == "series":
        paths = write_series(tmp_path / "ct", ct_voxels(SHAPE))
    else:
        syntax = RLELossless if kind == "compressed" else ImplicitVRLittleEndian
        paths = [write_enhanced(tmp_path / "all.dcm", ct_voxels(SHAPE), transfer_syntax=syntax)]
    content = paths[0].read_bytes()
    header = len(content) - (len(content) if kind == "compressed" else np.prod(SHAPE[1:]) * 2)
    random = np.random.default_rng(0)
    read = 0
    for attempt in range(45):
        spoilt = bytearray(content)
        if attempt % 3 == 0:
            spoilt = spoilt[: random.integers(len(content))]
        else:
            for _ in range(random.integers(1, 6)):
                spoilt[random.integers(132, min(len(content), max(header, 3000)))] = random.integers(256)
        paths[0].write_bytes(spoilt)
        read += try_all(paths)
    assert 0 < read < 45


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, RLELossless])
def test_absurd_sizes_are_refused_before_room_is_made(tmp_path: Path, syntax: pydicom.uid.UID) -> None:
    def change(index: object, dataset: pydicom.Dataset) -> None:
        dataset.Rows = dataset.Columns = 65535

    paths = write_series(tmp_path / "ct", ct_voxels(SHAPE))
    for index, path in enumerate(paths):
        spoil(path, change, index)
    assert "found 1 images of 65535 x 65535 voxels, expected at most" in refusal(paths)


def spoil(path: Path, change: Callable[..., None], index: int = 0) -> None:
    dataset = pydicom.dcmread(path)
    change(index, dataset)
    dataset.save_as(path)


def test_sizes_beyond_the_files_are_refused(tmp_path: Path) -> None:
    paths = write_series(tmp_path / "ct", ct_voxels(SHAPE))
    for path in paths:
        spoil(path, lambda index, dataset: setattr(dataset, "Rows", 8192))
    assert "cut off: found 2316 bytes of pixel data, expected 589824" in refusal(paths)


def test_more_pixels_than_the_size_has_are_refused(tmp_path: Path) -> None:
    paths = write_series(tmp_path / "ct", ct_voxels(SHAPE))
    for path in paths:
        spoil(path, lambda index, dataset: setattr(dataset, "Rows", 31))
    (series,) = find_series(paths).series
    with pytest.raises(ScanError, match="found 2304 bytes of pixel data, expected 2232"):
        read_series(series)


@pytest.mark.parametrize(("syntax", "rows"), [(RLELossless, 8192), (JPEG2000Lossless, 8192), (JPEG2000Lossless, 16)])
def test_compressed_images_of_another_size_are_refused(tmp_path: Path, syntax: pydicom.uid.UID, rows: int) -> None:
    pytest.importorskip("openjpeg")
    paths = write_series(tmp_path / "ct", ct_voxels(SHAPE), transfer_syntax=syntax)
    for path in paths:
        spoil(path, lambda index, dataset: setattr(dataset, "Rows", rows))
    (series,) = find_series(paths).series
    said = (
        f"found a compressed image of 32 x 36, expected {rows} x 36"
        if syntax == JPEG2000Lossless
        else "pixels that cannot be decoded as RLE Lossless"
    )
    with pytest.raises(ScanError, match=said):
        read_series(series)


@pytest.mark.parametrize(
    ("syntax", "at", "byte", "said"),
    [
        (JPEG2000Lossless, 42, 0xC2, "found a compressed image of 67 bits a pixel, expected at most 16"),
        (JPEG2000Lossless, 41, 3, "found a compressed image of 3 values a pixel, expected 1"),
        (JPEGLSLossless, 6, 77, "found a compressed image of 77 bits a pixel, expected at most 16"),
        (JPEGLSLossless, 15, 0x68, "a compressed image does not begin as one"),
    ],
)
def test_compressed_images_that_do_not_begin_as_such_are_refused(
    tmp_path: Path, syntax: pydicom.uid.UID, at: int, byte: int, said: str
) -> None:
    """A decoder may end the process over them."""
    pytest.importorskip("openjpeg")
    pytest.importorskip("jpeg_ls")
    paths = write_series(tmp_path / "ct", ct_voxels(SHAPE), transfer_syntax=syntax)
    content = bytearray(paths[1].read_bytes())
    content[content.index(b"\xff\x4f\xff\x51" if syntax == JPEG2000Lossless else b"\xff\xd8\xff") + at] = byte
    paths[1].write_bytes(content)
    (series,) = find_series(paths).series
    with pytest.raises(ScanError, match=said):
        read_series(series)


@pytest.mark.parametrize("frames", [8, 10**9])
def test_more_frames_than_there_are_is_refused(tmp_path: Path, frames: int) -> None:
    path = write_enhanced(tmp_path / "all.dcm", ct_voxels(SHAPE))
    spoil(path, lambda index, dataset: setattr(dataset, "NumberOfFrames", frames))
    said = "cut off: found" if frames == 8 else f"found {frames} images of 32 x 36 voxels"
    assert said in refusal([path])


def test_a_length_of_gigabytes_in_a_small_file(tmp_path: Path) -> None:
    paths = write_series(tmp_path / "ct", ct_voxels(SHAPE), transfer_syntax=ImplicitVRLittleEndian)
    for tag in ((0x0008, 0x103E), (0x7FE0, 0x0010)):
        content = paths[2].read_bytes()
        at = content.index(struct.pack("<HH", *tag)) + 4
        paths[2].write_bytes(content[:at] + struct.pack("<I", 0x7FFFFFF0) + content[at + 4 :])
        try_all(paths)
        if tag[0] == 0x0008:
            assert "found an attribute of 2147483632 bytes, expected at most 65536" in refusal(paths)
        paths[2].write_bytes(content)


def test_text_without_end_is_refused(tmp_path: Path) -> None:
    paths = write_series(
        tmp_path / "ct",
        ct_voxels(SHAPE),
        transfer_syntax=ImplicitVRLittleEndian,
        change=lambda index, dataset: setattr(dataset, "SeriesDescription", "x" * 100_000) if index == 2 else None,
    )
    assert "found an attribute of 100000 bytes" in refusal(paths)


@pytest.mark.parametrize("tag", [(0x0009, 0x1001), (0x5200, 0x9229)])
def test_sequences_without_end_are_refused(tmp_path: Path, tag: tuple[int, int]) -> None:
    paths = write_series(tmp_path / "ct", ct_voxels(SHAPE))
    content = paths[2].read_bytes()
    at = content.index(b"\x10\x00\x10\x00PN") if tag[0] == 9 else content.index(b"\xe0\x7f\x10\x00O")
    nested = struct.pack("<HH", *tag) + b"SQ\0\0" + b"\xff" * 4 + b"\xfe\xff\x00\xe0" + b"\xff" * 4
    paths[2].write_bytes(content[:at] + nested * DEEP + content[at:])
    assert f"{paths[2].name}" in refusal(paths)


def test_what_inflates_without_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dicom_file, "LARGEST_INFLATED", 2000)
    monkeypatch.setattr(dicom_file, "MOST_EXPANSION", 1)
    paths = write_series(tmp_path / "ct", ct_voxels(SHAPE), transfer_syntax=DeflatedExplicitVRLittleEndian)
    assert "inflates to more than" in refusal(paths)


@pytest.mark.parametrize("keyword", ["SeriesInstanceUID", "StudyInstanceUID", "FrameOfReferenceUID", "SOPInstanceUID"])
@pytest.mark.parametrize("value", ["../../etc/passwd", "1.2\0.3", "<b>1</b>", "1." * 60])
def test_uids_that_are_none_are_refused(tmp_path: Path, keyword: str, value: str) -> None:
    paths = write_series(tmp_path / "ct", ct_voxels((7, 4, 4)))
    for path in paths[:2]:
        dataset = pydicom.dcmread(path)
        dataset.add(pydicom.DataElement(keyword, "LO", value))
        dataset.file_meta.MediaStorageSOPInstanceUID = "1.2.3"
        dataset.save_as(path)
    message = refusal(paths)
    assert f"no usable {keyword}, expected at most 64 digits and dots" in message
    assert value not in message


def test_an_image_that_does_not_say_that_it_is_grey_is_refused(tmp_path: Path) -> None:
    change = lambda index, dataset: delattr(dataset, "PhotometricInterpretation")  # noqa: E731
    paths = write_series(tmp_path / "ct", ct_voxels((7, 4, 4)), change=change)
    assert "no PhotometricInterpretation" in refusal(paths)


def test_a_sign_that_is_none_is_refused(tmp_path: Path) -> None:
    change = lambda index, dataset: setattr(dataset, "PixelRepresentation", 2)  # noqa: E731
    paths = write_series(tmp_path / "ct", ct_voxels((7, 4, 4)), change=change)
    assert "found PixelRepresentation 2, expected 0 (unsigned) or 1 (signed)" in refusal(paths)


def test_numbers_that_are_none_are_refused(tmp_path: Path) -> None:
    for number, value in enumerate(["nan\\0\\0", "1e999\\0\\0", "1e300\\0\\0", "a\\b\\c", "1\\2", ""]):
        paths = write_series(tmp_path / str(number), ct_voxels((7, 4, 4)))
        dataset = pydicom.dcmread(paths[0])
        dataset.add(pydicom.DataElement("ImagePositionPatient", "LO", value))
        dataset.save_as(paths[0])
        assert "no usable ImagePositionPatient" in refusal(paths)
