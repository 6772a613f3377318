"""Stored values become intensities: every transfer syntax, word and scaling, and padding that is no tissue."""

from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from parotid_seg.errors import ScanError
from parotid_seg.flags import Flag, FlagCode
from tests.dicom.reading import compress_with_gdcm, read_only
from tests.dicom_series import ct_voxels, write_enhanced, write_series

pytestmark = pytest.mark.slow


SHAPE = (7, 32, 36)
UNCOMPRESSED = [ImplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian]
COMPRESSED = {RLELossless: "numpy", JPEGLSLossless: "jpeg_ls", JPEG2000Lossless: "openjpeg"}
"""And the module that encodes it."""


def words_of(dataset: pydicom.Dataset) -> NDArray[Any]:
    """The stored words, to change in place."""
    words = np.frombuffer(dataset.PixelData, f"<{'ui'[dataset.PixelRepresentation]}{dataset.BitsAllocated // 8}").copy()
    return words.reshape(-1, dataset.Rows, dataset.Columns)


@pytest.mark.parametrize("syntax", [*UNCOMPRESSED, *COMPRESSED])
@pytest.mark.parametrize("dtype", [np.uint16, np.int16])
def test_every_transfer_syntax(tmp_path: Path, syntax: pydicom.uid.UID, dtype: type[np.integer]) -> None:
    pytest.importorskip(COMPRESSED.get(syntax, "numpy"))
    voxels = ct_voxels(SHAPE)
    intercept = -1024 if dtype is np.uint16 else 0
    paths = write_series(tmp_path / "ct", voxels, dtype=dtype, intercept=intercept, transfer_syntax=syntax)
    assert pydicom.dcmread(paths[0]).file_meta.TransferSyntaxUID == syntax
    np.testing.assert_array_equal(read_only(paths)[0], voxels)


@pytest.mark.parametrize("syntax", [*UNCOMPRESSED, *COMPRESSED])
def test_every_transfer_syntax_of_multi_frame_files(tmp_path: Path, syntax: pydicom.uid.UID) -> None:
    pytest.importorskip(COMPRESSED.get(syntax, "numpy"))
    voxels = ct_voxels(SHAPE)
    path = write_enhanced(tmp_path / "all.dcm", voxels, order=[3, 0, 6, 1, 2, 5, 4], transfer_syntax=syntax)
    np.testing.assert_array_equal(read_only([path])[0], voxels)


@pytest.mark.parametrize("dtype", [np.uint16, np.int16])
def test_jpeg_lossless(tmp_path: Path, dtype: type[np.integer]) -> None:
    voxels = ct_voxels(SHAPE)
    paths = write_series(tmp_path / "ct", voxels, dtype=dtype, intercept=-1024 if dtype is np.uint16 else 0)
    for path in paths:
        compress_with_gdcm(path, "JPEGLosslessProcess14_1")
    assert pydicom.dcmread(paths[0]).file_meta.TransferSyntaxUID == JPEGLosslessSV1
    np.testing.assert_array_equal(read_only(paths)[0], voxels)


@pytest.mark.parametrize(
    ("dtype", "bits", "intercept"), [(np.uint16, 12, -1024), (np.int16, 12, 0), (np.uint16, 12, 0), (np.int16, 16, 0)]
)
@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRBigEndian, RLELossless])
def test_bits_that_do_not_count_do_not_count(
    tmp_path: Path, dtype: type[np.integer], bits: int, intercept: int, syntax: pydicom.uid.UID
) -> None:
    voxels = ct_voxels(SHAPE).clip(intercept, 2047)

    def change(index: int, dataset: pydicom.Dataset) -> None:
        words = words_of(dataset).view(np.uint16)
        garbage = np.random.default_rng(index).integers(0, 1 << 16, size=words.shape).astype(np.uint16)
        counting = np.uint16((1 << bits) - 1)
        dataset.PixelData = ((words & counting) | (garbage & ~counting)).tobytes()

    written = {"dtype": dtype, "bits_stored": bits, "intercept": intercept, "transfer_syntax": syntax}
    np.testing.assert_array_equal(read_only(write_series(tmp_path / "ct", voxels, change=change, **written))[0], voxels)


def test_bits_that_count_may_be_the_highest(tmp_path: Path) -> None:
    voxels = ct_voxels(SHAPE).clip(-1024, 2047)

    def change(index: object, dataset: pydicom.Dataset) -> None:
        dataset.HighBit, dataset.PixelData = 15, (words_of(dataset) << 4 | 9).tobytes()

    paths = write_series(tmp_path / "ct", voxels, bits_stored=12, change=change)
    np.testing.assert_array_equal(read_only(paths)[0], voxels)


@pytest.mark.parametrize(
    ("slope", "intercept", "dtype"),
    [(1.0, -1024.0, np.int16), (2.0, -2048.0, np.int16), (0.5, 0.0, np.float32), (1.0, -0.5, np.float32)],
)
def test_slope_and_intercept(tmp_path: Path, slope: float, intercept: float, dtype: type[np.number]) -> None:
    stored = np.arange(7 * 16 * 20).reshape(7, 16, 20)
    voxels = stored * slope + intercept
    found, _ = read_only(write_series(tmp_path / "ct", voxels, slope=slope, intercept=intercept))
    np.testing.assert_array_equal(found, voxels)
    assert found.dtype == dtype


def test_whole_numbers_that_do_not_fit_become_float32(tmp_path: Path) -> None:
    voxels = np.arange(7 * 16 * 20).reshape(7, 16, 20) + 40000
    found, _ = read_only(write_series(tmp_path / "ct", voxels, intercept=0))
    np.testing.assert_array_equal(found, voxels)
    assert found.dtype == np.float32


@pytest.mark.parametrize("bits", [8, 32])
def test_words_of_other_sizes(tmp_path: Path, bits: int) -> None:
    voxels = ct_voxels(SHAPE).clip(-100, 150)
    dtype: type[np.integer] = np.uint8 if bits == 8 else np.int32
    np.testing.assert_array_equal(
        read_only(write_series(tmp_path / "ct", voxels, dtype=dtype, intercept=-100))[0], voxels
    )


def test_grey_images_that_say_so_loosely(tmp_path: Path) -> None:
    def change(_: object, dataset: pydicom.Dataset) -> None:
        del dataset.SamplesPerPixel
        dataset.PhotometricInterpretation = "monochrome2"

    voxels = ct_voxels(SHAPE)
    np.testing.assert_array_equal(read_only(write_series(tmp_path / "ct", voxels, change=change))[0], voxels)


@pytest.mark.parametrize("intercepts", [[-1024, -1000, 7, 0, 30000, -5, 1], [-1024, 0.5, 0, 1, 2, 3, 4]])
def test_scaling_may_vary_from_slice_to_slice(tmp_path: Path, intercepts: list[float]) -> None:
    def change(index: int, dataset: pydicom.Dataset) -> None:
        dataset.RescaleIntercept = intercepts[index]

    voxels = ct_voxels(SHAPE)
    found, _ = read_only(write_series(tmp_path / "ct", voxels, change=change))
    np.testing.assert_array_equal(found, voxels + 1024 + np.array(intercepts)[:, None, None])


def test_scaling_may_vary_from_frame_to_frame(tmp_path: Path) -> None:
    def change(index: object, dataset: pydicom.Dataset) -> None:
        for place, frame in enumerate(dataset.PerFrameFunctionalGroupsSequence):
            frame.PixelValueTransformationSequence[0].RescaleSlope = place + 1

    voxels = ct_voxels(SHAPE)
    found, _ = read_only([write_enhanced(tmp_path / "all.dcm", voxels, order=range(7), change=change)])
    np.testing.assert_array_equal(found, (voxels.astype(int) + 1024) * np.arange(1, 8)[:, None, None] - 1024)


@pytest.mark.parametrize(
    ("vr", "value", "limit", "stored"),
    [
        ("SS", -2000, None, [-2000]),
        ("US", 63536, None, [-2000]),  # the same bits, as some scanners write it
        ("SS", -2000, -1990, [-2000, -1995, -1990]),
        ("SS", -32768, None, [-32768]),
    ],
)
@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, RLELossless])
def test_padding_becomes_air(
    tmp_path: Path, vr: str, value: int, limit: int | None, stored: list[int], syntax: pydicom.uid.UID
) -> None:
    voxels = ct_voxels(SHAPE)

    def change(index: object, dataset: pydicom.Dataset) -> None:
        words = words_of(dataset)
        words[0, :5, :6] = np.resize(stored, (5, 6))
        dataset.PixelData = words.tobytes()
        dataset.add_new("PixelPaddingValue", vr, value)
        if limit is not None:
            dataset.add_new("PixelPaddingRangeLimit", vr, limit)

    written = {"dtype": np.int16, "intercept": 0, "transfer_syntax": syntax}
    found, volume = read_only(write_series(tmp_path / "ct", voxels, change=change, **written))
    rest = np.ones(SHAPE, bool)
    rest[:, :5, :6] = False
    np.testing.assert_array_equal(found[rest], voxels[rest])
    assert np.unique(found[~rest]).tolist() == [voxels[rest].min()]
    assert volume.flags == (Flag(FlagCode.PADDING, value=30 / (32 * 36), detail=str(voxels[rest].min())),)


def test_padding_beyond_the_bits_that_count(tmp_path: Path) -> None:
    """Such a value cannot be told from tissue once the upper bits are gone."""
    voxels = ct_voxels(SHAPE).clip(-1024, 2000)

    def change(index: object, dataset: pydicom.Dataset) -> None:
        words = words_of(dataset)
        words[0, :4] = 0xF830
        dataset.PixelData, dataset.PixelPaddingValue = words.tobytes(), 0xF830

    found, _ = read_only(write_series(tmp_path / "ct", voxels, bits_stored=12, change=change))
    np.testing.assert_array_equal(found[:, 4:], voxels[:, 4:])
    assert np.unique(found[:, :4]).tolist() == [voxels[:, 4:].min()]


def test_a_slice_that_is_all_padding_becomes_the_volumes_air(tmp_path: Path) -> None:
    def change(index: int, dataset: pydicom.Dataset) -> None:
        dataset.PixelPaddingValue = 5
        if index == 3:
            dataset.PixelData = np.full(SHAPE[1:], 5, np.uint16).tobytes()

    voxels = ct_voxels(SHAPE)
    found, _ = read_only(write_series(tmp_path / "ct", voxels, change=change))
    rest = np.delete(found, 3, axis=0)
    assert np.unique(found[3]).tolist() == [rest.min()]


def test_a_series_that_is_all_padding_is_refused(tmp_path: Path) -> None:
    paths = write_series(
        tmp_path / "ct", ct_voxels(SHAPE) * 0, change=lambda index, dataset: setattr(dataset, "PixelPaddingValue", 1024)
    )
    with pytest.raises(ScanError, match="every voxel is padding"):
        read_only(paths)


def test_loss_is_told(tmp_path: Path) -> None:
    paths = write_series(
        tmp_path / "ct", ct_voxels(SHAPE), change=lambda index, dataset: setattr(dataset, "LossyImageCompression", "01")
    )
    assert read_only(paths)[1].flags == (Flag(FlagCode.LOSSY_COMPRESSION),)
