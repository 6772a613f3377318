"""Padding values that tissue has, too: what lies in the patient stays, what lies outside the image becomes air."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from parotid_seg.dicom.read.series_volume import find_series, read_series
from parotid_seg.flags import Flag, FlagCode
from tests.dicom_series import ct_voxels, write_series

SHAPE = (7, 40, 44)


def read(paths: list[Path]) -> tuple[NDArray[Any], list[Flag]]:
    """Intensities (slices, rows, columns) of the one series, and its flags on padding."""
    volume = read_series(find_series(paths).series[0]).volume
    codes = (FlagCode.PADDING, FlagCode.PADDING_IN_BODY)
    return volume.orientation.to_storage(volume.voxels[0]).T, [flag for flag in volume.flags if flag.code in codes]


def stating(
    low: int, high: int | None = None, vr: str = "SS", slices: Sequence[int] = range(SHAPE[0])
) -> Callable[..., None]:
    """A change that states padding values in some slices."""

    def change(index: int, dataset: Dataset) -> None:
        if index in slices:
            dataset.add_new("PixelPaddingValue", vr, low)
            if high is not None:
                dataset.add_new("PixelPaddingRangeLimit", vr, high)

    return change


def in_corner(voxels: NDArray[np.int16], value: int) -> tuple[NDArray[np.int16], NDArray[np.bool_]]:
    """The same with a corner outside the circle of reconstruction, and where that is."""
    corner = np.zeros(SHAPE, bool)
    corner[:, :10, :10] = np.add.outer(np.arange(10), np.arange(10)) < 10
    return np.where(corner, value, voxels).astype(np.int16), corner


@pytest.mark.parametrize(("low", "high", "detail"), [(0, None, "0"), (0, 100, "0 to 100"), (-150, 300, "-150 to 300")])
def test_tissue_is_no_padding(tmp_path: Path, low: int, high: int | None, detail: str) -> None:
    voxels = ct_voxels(SHAPE)
    voxels[3, 5:30, 5:30] = 0
    found, flags = read(write_series(tmp_path / "ct", voxels, dtype=np.int16, intercept=0, change=stating(low, high)))
    np.testing.assert_array_equal(found, voxels)
    share = np.mean((voxels >= low) & (voxels <= (low if high is None else high)))
    assert flags == [Flag(FlagCode.PADDING_IN_BODY, value=cast(float, pytest.approx(share)), detail=detail)]


@pytest.mark.parametrize("value", [0, 50, 3071])
def test_a_corner_of_a_value_that_tissue_has_is_padding(tmp_path: Path, value: int) -> None:
    voxels, corner = in_corner(ct_voxels(SHAPE), value)
    voxels[2, 20, 20] = value
    found, flags = read(write_series(tmp_path / "ct", voxels, dtype=np.int16, intercept=0, change=stating(value)))
    np.testing.assert_array_equal(found[~corner], voxels[~corner])
    assert np.unique(found[corner]).tolist() == [voxels[~corner].min()]
    assert flags[0] == Flag(FlagCode.PADDING, value=corner.mean(), detail=f"{voxels[~corner].min()}")
    assert [flag.code for flag in flags[1:]] == [FlagCode.PADDING_IN_BODY]


def test_a_range_that_covers_air_and_tissue(tmp_path: Path) -> None:
    voxels, corner = in_corner(ct_voxels(SHAPE), -2000)
    found, _ = read(write_series(tmp_path / "ct", voxels, dtype=np.int16, intercept=0, change=stating(-2000, 100)))
    np.testing.assert_array_equal(found[~corner], voxels[~corner])
    assert np.unique(found[corner]).tolist() == [voxels[~corner].min()]


@pytest.mark.parametrize("slices", [(0,), (2, 3), range(7)])
def test_padding_may_be_stated_in_some_slices(tmp_path: Path, slices: range | tuple[int, ...]) -> None:
    voxels, corner = in_corner(ct_voxels(SHAPE), 0)
    paths = write_series(tmp_path / "ct", voxels, dtype=np.int16, intercept=0, change=stating(0, slices=slices))
    found, _ = read(paths)
    stated = np.zeros(SHAPE, bool)
    stated[list(slices)] = True
    np.testing.assert_array_equal(found[~(corner & stated)], voxels[~(corner & stated)])
    assert (found[corner & stated] < -900).all()


@pytest.mark.parametrize(
    ("dtype", "intercept", "vr", "value"),
    [
        (np.int16, 0, "SS", -2000),
        (np.int16, 0, "US", 63536),
        (np.uint16, -32768, "US", 30768),
        (np.uint16, 0, "US", 63536),
        (np.uint16, 0, "SS", -2000),
    ],
)
def test_padding_in_words_with_and_without_sign(
    tmp_path: Path, dtype: type[np.integer], intercept: int, vr: str, value: int
) -> None:
    """The value is often written as if the words were of the other kind."""
    voxels, corner = in_corner(
        ct_voxels(SHAPE).clip(0) if intercept == 0 and dtype is np.uint16 else ct_voxels(SHAPE), 0
    )

    def change(index: int, dataset: Dataset) -> None:
        words = np.frombuffer(dataset.PixelData, np.uint16).copy()
        words[corner[index].ravel()] = value % 65536
        dataset.PixelData = words.tobytes()
        dataset.add_new("PixelPaddingValue", vr, value)

    found, flags = read(write_series(tmp_path / "ct", voxels, dtype=dtype, intercept=intercept, change=change))
    np.testing.assert_array_equal(found[~corner], voxels[~corner])
    assert np.unique(found[corner]).tolist() == [voxels[~corner].min()]
    assert [flag.code for flag in flags] == [FlagCode.PADDING]
