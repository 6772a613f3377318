"""What is said about a result: only of parotid glands is it known how large they are and that they must be there."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from parotid_seg.contract import Contract, Grid
from parotid_seg.errors import ScanError
from parotid_seg.flags import Flag, FlagCode
from parotid_seg.runtime.engines.base import Backend, Done
from parotid_seg.runtime.segmentation.segment import Segmentation, postprocess, prepare, segment_volume
from parotid_seg.runtime.segmentation.segmentation_options import SegmentationOptions
from parotid_seg.scan.chunks import Inputs
from parotid_seg.scan.volume import Orientation, Volume
from tests.dicom_series import ct_voxels

HU = (-200.0, 300.0)
PAROTIDS = ("background", "parotid_left", "parotid_right")


class Fake(Backend):
    """A loaded model that gives the slices it is asked for from a ready mask."""

    def __init__(self, mask: np.ndarray, labels: tuple[str, ...], channels: tuple[str, ...]) -> None:
        windows = tuple(HU if channel == "CT" else None for channel in channels)
        self.contract = Contract(
            labels, channels, windows, Grid(size=16, spacing_mm=12.0, offsets_mm=(0,), slice_step_mm=1.0)
        )
        self.slices = iter(mask)
        self.windows: list[Any] = []

    def start(self, inputs: Inputs) -> Done:
        self.windows.append(inputs["window"])
        return Done(np.stack([next(self.slices) for _ in range(len(inputs["slices_back"]))]))


def scan(*scales: float) -> Volume:
    """A block of soft tissue under fat, in air, with an uneven skin, for each scale; 0 is a CT in HU."""
    block = np.zeros((10, 30, 30), np.float32)
    for level in range(10):
        block[level, 5:25, 5 - level % 2 : 25 + level % 2] = 1
    hounsfield = np.where(block, np.random.default_rng(0).normal(-110, 20, block.shape).astype(np.float32), -1000)
    hounsfield[:, 7:23, 7:23] += 150 * block[:, 7:23, 7:23]
    voxels = [hounsfield if scale == 0 else block * scale for scale in scales]
    return Volume(np.stack(voxels), (5.0, 5.0, 5.0), Orientation((0, 1, 2), (False, False, False)))


def segment(mask: np.ndarray, labels: tuple[str, ...], *scales: float, channels: tuple[str, ...]) -> Segmentation:
    return segment_volume(Fake(mask, labels, channels), scan(*scales), SegmentationOptions(search="full"), batch_size=4)


def test_an_absent_tumour_is_no_error_and_no_flag() -> None:
    mask = np.zeros((10, 30, 30), np.uint8)
    mask[4:6, 8:12, 8:12] = 1
    found = segment(mask, ("background", "gland", "tumour"), 1e-3, 2e4, channels=("T1", "T2"))
    assert found.volumes_ml == pytest.approx({"gland": 4.0, "tumour": 0.0})
    assert found.flags == ()


def test_nothing_at_all_is_flagged_or_for_parotids_an_error() -> None:
    empty = np.zeros((10, 30, 30), np.uint8)
    found = segment(empty, ("background", "gland", "tumour"), 5.0, channels=("T1",))
    assert found.flags == (Flag(FlagCode.NOTHING_FOUND, "gland"), Flag(FlagCode.NOTHING_FOUND, "tumour"))
    with pytest.raises(ScanError, match=r"no parotid gland found \(parotid_left 0.0 ml.*is it T1, T2\?"):
        segment(empty, PAROTIDS, 5.0, 9.0, channels=("T1", "T2"))
    with pytest.raises(ScanError, match=r"no parotid gland found .*is it a CT in HU\?"):
        segment(empty, PAROTIDS, 0, channels=("CT",))


def test_unusual_parotids_are_flagged() -> None:
    mask = np.zeros((10, 30, 30), np.uint8)
    mask[0:2, 8:12, 18:22] = 1
    flags = segment(mask, PAROTIDS, 0, channels=("CT",)).flags
    assert flags == (
        Flag(FlagCode.UNUSUAL_VOLUME, "parotid_left", 4.0),
        Flag(FlagCode.CUT_BY_SCAN_END, "parotid_left"),
        Flag(FlagCode.STRUCTURE_MISSING, "parotid_right", 0.0),
    )


def test_only_the_ct_among_the_channels_must_be_in_hu() -> None:
    mask = np.ones((10, 30, 30), np.uint8)
    assert segment(mask, ("background", "gland"), 700.0, 0, channels=("T1", "CT")).volumes_ml["gland"] > 0
    with pytest.raises(ScanError, match="are not HU"):
        segment(mask, ("background", "gland"), 0, 700.0, channels=("T1", "CT"))
    with pytest.raises(ScanError, match=r"channels: found 1, expected 2 \(T1, CT\)"):
        segment(mask, ("background", "gland"), 700.0, channels=("T1", "CT"))


def test_the_windows_are_handed_to_the_model() -> None:
    backend = Fake(np.ones((10, 30, 30), np.uint8), ("background", "gland"), ("CT", "T1"))
    segment_volume(backend, scan(0, 3e-3), SegmentationOptions(search="full"), batch_size=4)
    for window in backend.windows:
        np.testing.assert_array_equal(window, [HU, (0, 1000)])


def test_a_gland_on_which_the_mirror_disagrees_is_flagged() -> None:
    mask = np.zeros((10, 30, 30), np.uint8)
    mask[3:8, 8:12, 8:12], mask[3:8, 8:12, 18:22] = 2, 1
    volume = scan(0)
    contract = Fake(mask, PAROTIDS, ("CT",)).contract
    covered = prepare(volume, contract).crop_to_grid()
    labels = mask[:, covered.rows, covered.columns]
    found = postprocess(labels, covered, volume, contract, agreement={"parotid_left": 0.91, "parotid_right": 0.93})
    assert found.flags == (Flag(FlagCode.UNCERTAIN, "parotid_left", 0.91),)
    assert found.agreement == {"parotid_left": 0.91, "parotid_right": 0.93}


def glands(left: int | None, right: int | None) -> np.ndarray:
    """A mask of two glands of 8 ml that begin at these columns."""
    mask = np.zeros((10, 30, 30), np.uint8)
    for value, column in enumerate((left, right), start=1):
        if column is not None:
            mask[3:7, 12:16, column : column + 4] = value
    return mask


@pytest.mark.parametrize("names", [("parotid_left", "parotid_right"), ("LeftParotid", "RightParotid")])
def test_glands_that_changed_sides_are_flagged(names: tuple[str, str]) -> None:
    labels = ("background", *names)
    for order in (labels, (labels[0], *labels[:0:-1])):
        left = next(name for name in names if "left" in name.lower())
        swapped = glands(8, 18) if order is labels else glands(18, 8)
        found = segment(swapped, order, 0, channels=("CT",))
        assert found.flags == (Flag(FlagCode.SIDES_SWAPPED, left, 50.0),)
    assert segment(glands(18, 8), labels, 0, channels=("CT",)).flags == ()
    assert segment(glands(21, 17), labels, 0, channels=("CT",)).flags == (), "two of one side are in their order"


@pytest.mark.parametrize("channel", ["CT", "T1"])
def test_one_gland_alone_is_compared_with_the_middle_of_the_body(channel: str) -> None:
    def flags(left: int | None, right: int | None) -> tuple[Flag, ...]:
        return segment(glands(left, right), PAROTIDS, 0 if channel == "CT" else 7.0, channels=(channel,)).flags

    beyond, missing = FlagCode.ONLY_GLAND_ON_OTHER_SIDE, FlagCode.STRUCTURE_MISSING
    assert flags(6, None) == (Flag(beyond, "parotid_left", 35.0), Flag(missing, "parotid_right", 0.0))
    assert flags(None, 20) == (Flag(beyond, "parotid_right", 35.0), Flag(missing, "parotid_left", 0.0))
    for left, right in ((20, None), (None, 6), (10, None), (None, 16)):
        (flag,) = flags(left, right)
        assert flag.code is missing, "on its side, or near the middle"


def test_a_speck_on_the_other_side_is_no_gland() -> None:
    mask = glands(18, None)
    mask[5, 14, 24] = 2
    assert segment(mask, PAROTIDS, 0, channels=("CT",)).flags == (
        Flag(FlagCode.STRUCTURE_MISSING, "parotid_right", 0.125),
    )


def cropped(volume: Volume, rows: slice, columns: slice) -> Volume:
    return replace(volume, voxels=volume.voxels[:, :, rows, columns])


@pytest.mark.parametrize(
    ("rows", "columns", "cut"),
    [
        (slice(None), slice(None), ()),
        (slice(0, 14), slice(None), ("parotid_left", "parotid_right")),
        (slice(14, None), slice(None), ("parotid_left", "parotid_right")),
        (slice(None), slice(0, 20), ("parotid_left",)),
        (slice(None), slice(10, None), ("parotid_right",)),
    ],
)
def test_a_scan_that_ends_within_a_gland_is_flagged(rows: slice, columns: slice, cut: tuple[str, ...]) -> None:
    volume, mask = cropped(scan(0), rows, columns), glands(18, 8)[:, rows, columns]
    contract = replace(Fake(mask, PAROTIDS, ("CT",)).contract, grid=Grid(size=48, spacing_mm=4.0, offsets_mm=(0,)))
    covered = prepare(volume, contract).crop_to_grid()
    assert mask[:, covered.rows, covered.columns].shape == mask.shape
    flags = postprocess(mask, covered, volume, contract).flags
    assert [flag.structure for flag in flags if flag.code is FlagCode.CUT_IN_PLANE] == list(cut)


@pytest.mark.parametrize(("step_mm", "size"), [(5.0, 100), (1.0, 400), (0.5, 600)])
def test_a_gland_at_the_edge_of_the_grid_is_flagged(step_mm: float, size: int) -> None:
    """Whatever the spacing, and though the grid's filter reaches over its last pixel."""
    grid = Grid(size=16, spacing_mm=2.25, kernel_mm=4.0, offsets_mm=(0,))
    contract = Contract(("background", "gland"), ("CT",), (HU,), grid)
    voxels = ct_voxels((4, size, size))[None]
    volume = Volume(voxels, (3.0, step_mm, step_mm), Orientation((0, 1, 2), (False, False, False)))
    covered = prepare(volume, contract).crop_to_grid()
    assert covered.rows.stop < size
    assert covered.columns.stop < size
    found = covered.in_plane["columns_back"].any(axis=1)
    middle, last = covered.voxels.shape[2] // 2, int(np.flatnonzero(found)[-1])
    for column, expected in ((last, True), (last - 1, True), (last // 2, False)):
        labels = np.zeros(covered.voxels.shape[1:], np.uint8)
        labels[1:3, middle, column] = 1
        flags = postprocess(labels, covered, volume, contract).flags
        assert (Flag(FlagCode.CUT_IN_PLANE, "gland") in flags) == expected, column


def test_structures_that_are_no_parotid_glands_may_lie_anywhere() -> None:
    labels = ("background", "eye_left", "eye_right")
    assert segment(glands(8, 18), labels, 5.0, channels=("T1",)).flags == ()
