"""Features by which a scan outside the operating range is noticed, and the flags of each."""

import dataclasses
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage

from parotid_seg.calibration import FeatureRange, OperatingRange
from parotid_seg.contract import Contract, Grid
from parotid_seg.flags import Flag, FlagCode
from parotid_seg.runtime.report.flag_text import RANGE_WORDS, sentence
from parotid_seg.runtime.segmentation.features import SCAN_FEATURES, STRUCTURE_FEATURES
from parotid_seg.runtime.segmentation.segment import Segmentation, postprocess
from parotid_seg.scan.chunks import crop_to_grid
from parotid_seg.scan.volume import Mask, Orientation, Volume

AS_STORED = Orientation((0, 1, 2), (False, False, False))
WINDOW = (-200.0, 300.0)
LIMITS = OperatingRange(
    scan=(
        FeatureRange("sharpness", 2.0, 15.0),
        FeatureRange("soft_tissue", 30.0, 50.0),
        FeatureRange("bone_behind", 0.2, 1.0),
        FeatureRange("distance_of_sides_mm", 80.0, 100.0),
        FeatureRange("turn_mm", 0.0, 8.0),
        FeatureRange("difference_of_sides", 0.0, 15.0),
        FeatureRange("difference_below_skin", 0.0, 15.0),
    ),
    structures=(FeatureRange("intensity", 45.0, 70.0), FeatureRange("slice_overlap", 0.88, 1.0)),
    margin=0.5,
    patients=30,
    made="made up",
)
CONTRACT = Contract(("background", "parotid_left", "parotid_right"), ("CT",), (WINDOW,), Grid(), operating_range=LIMITS)
SPACING_MM = (3.0, 2.25, 2.25)
Scan = tuple[NDArray[Any], Mask]


def head(spacing_mm: tuple[float, float, float] = SPACING_MM, turn_mm: float = 0.0, apart_mm: float = 90.0) -> Scan:
    """A head of 40 HU with noise in air, 20 slices of 160 x 160 mm at the lower end and narrower above, and two glands
    of 60 HU and 18 mm radius."""
    shape = tuple(round(size / mm) for size, mm in zip((60, 200, 200), spacing_mm, strict=True))
    z, y, x = (np.arange(size) * mm for size, mm in zip(shape, spacing_mm, strict=True))
    mask = np.zeros(shape, np.uint8)
    for value, side in ((1, 1), (2, -1)):
        off = (y[:, None] - 100 - side * turn_mm / 2) ** 2 + (x - 100 - side * apart_mm / 2) ** 2
        mask[((z[:, None, None] - 30) ** 2 + off) < 18**2] = value
    body = (abs(y[:, None] - 100) < 80) & (abs(x - 100) < 80 - z[:, None, None] / 3)
    noise = ndimage.gaussian_filter(np.random.default_rng(0).normal(0, 1, shape), [0, 1, 1])
    hu = np.where(body, np.where(mask > 0, 60, 40) + 8 * noise / noise.std(), -1000)
    return hu.astype(np.float32), mask


def segmented(scan: Scan, contract: Contract = CONTRACT, spacing_mm: Any = SPACING_MM) -> Segmentation:
    hu, mask = scan
    volume = Volume(hu.round().astype(np.int16)[None], spacing_mm, AS_STORED)
    covered = crop_to_grid(volume, np.array([WINDOW], np.float32), contract.grid)
    return postprocess(np.ascontiguousarray(mask[:, covered.rows, covered.columns]), covered, volume, contract)


def outside(result: Segmentation) -> set[tuple[str, str]]:
    """Structure and feature of each flag on the operating range."""
    return {(flag.structure, flag.detail.split(",")[0]) for flag in result.flags if flag.code == FlagCode.OUTSIDE_RANGE}


def test_a_usual_scan_has_no_flag() -> None:
    assert segmented(head()).flags == ()
    assert segmented(with_skull(head())).flags == ()


@pytest.mark.parametrize("spacing_mm", [(3.0, 1.0, 1.0), (1.0, 2.25, 2.25), (3.0, 4.0, 4.0)])
def test_the_size_of_the_voxels_hardly_matters(spacing_mm: tuple[float, float, float]) -> None:
    sharper = dataclasses.replace(LIMITS, scan=LIMITS.scan[1:])  # its noise is white, so it depends on the voxels
    assert (
        outside(segmented(head(spacing_mm), dataclasses.replace(CONTRACT, operating_range=sharper), spacing_mm))
        == set()
    )


def noisy(scan: Scan) -> Scan:
    hu, mask = scan
    return np.where(hu > -900, hu + np.random.default_rng(1).normal(0, 60, hu.shape), hu), mask


def blurred(scan: Scan) -> Scan:
    hu, mask = scan
    return np.where(hu > -900, np.where(mask > 0, 60, 40), hu), mask


def brighter(scan: Scan) -> Scan:
    hu, mask = scan
    return np.where(hu > -900, hu + np.where(mask > 0, 0, 25), hu), mask


def with_skull(scan: Scan) -> Scan:
    hu, mask = scan
    changed = hu.copy()
    changed[13:, -25:-23, 30:60] = 800  # behind the glands, in the upper third of the slices
    return changed, mask


def upside_down(scan: Scan) -> Scan:
    hu, mask = scan
    return hu[::-1], mask[::-1]


def with_contrast_agent(scan: Scan) -> Scan:
    hu, mask = scan
    return hu + 30 * (mask > 0), mask


def one_removed(scan: Scan) -> Scan:
    hu, mask = scan
    return np.where(mask == 1, -100, hu), mask


def with_bolus(scan: Scan) -> Scan:
    hu, mask = scan
    changed = hu.copy()
    for level, slice_hu in enumerate(changed):
        skin = np.nonzero(hu[level, 40] > -500)[0][-1] + 1
        slice_hu[10:-10, skin : skin + 4] = 0  # 9 mm on the left cheek
    return changed, mask


def ragged(scan: Scan) -> Scan:
    hu, mask = scan
    changed = mask.copy()
    changed[::2, :, 70:] = np.roll(mask[::2, :, 70:], 14, axis=1) * (mask[::2, :, 70:] > 0)
    return np.where((mask == 1) & (changed == 0), 60, hu), changed


def cut_off(scan: Scan) -> Scan:
    """No data from 15 mm beyond the middle of the left gland on."""
    hu, mask = scan
    return np.where(np.arange(hu.shape[2]) < 71, hu, -1000), np.where(np.arange(hu.shape[2]) < 70, mask, 0)


@pytest.mark.parametrize(
    ("scan", "found"),
    [
        (noisy(head()), ("", "sharpness")),
        (blurred(head()), ("", "sharpness")),
        (brighter(head()), ("", "soft tissue")),
        (upside_down(with_skull(head())), ("", "bone behind")),
        (head(apart_mm=70), ("", "distance of sides mm")),
        (head(turn_mm=14), ("", "turn mm")),
        (with_contrast_agent(head()), ("parotid_right", "intensity")),
        (one_removed(head()), ("", "difference of sides")),
        (with_bolus(head()), ("", "difference below skin")),
        (ragged(head()), ("parotid_left", "slice overlap")),
    ],
)
def test_each_feature_is_flagged(scan: Scan, found: tuple[str, str]) -> None:
    result = segmented(scan)
    assert found in outside(result)
    assert {type(flag.value) for flag in result.flags} == {float}  # a scalar of NumPy has no form in JSON


def test_a_flag_says_what_was_found_and_expected() -> None:
    result = segmented(head(turn_mm=14))
    (flag,) = result.flags
    assert flag.value == pytest.approx(14, abs=1)
    assert flag.detail == "turn mm, expected 0 to 8"
    (words,) = {sentence(flag) for flag in result.flags}
    assert words.startswith(
        "scan outside the model's operating range: offset of the glands from front to back in mm (a turned head?), "
        "expected 0 to 8, found 1"
    )
    of_gland = sentence(Flag(FlagCode.OUTSIDE_RANGE, "parotid_left", 91.0, str(LIMITS.structures[0])))
    assert of_gland.startswith("left parotid outside the model's operating range: its mean intensity (")
    assert of_gland.endswith("), expected 45 to 70, found 91")


def test_every_feature_has_words() -> None:
    assert list(RANGE_WORDS) == [name.replace("_", " ") for name in (*SCAN_FEATURES, *STRUCTURE_FEATURES)]


@pytest.mark.parametrize("stated", [LIMITS, None])
def test_a_gland_beside_the_end_of_the_field_of_view_is_flagged(stated: OperatingRange | None) -> None:
    contract = dataclasses.replace(CONTRACT, operating_range=stated)
    hu, mask = cut_off(head())
    flags = segmented((hu, mask), contract).flags
    assert flags.count(Flag(FlagCode.CUT_IN_PLANE, "parotid_left")) == 1
    assert Flag(FlagCode.CUT_IN_PLANE, "parotid_right") not in flags
    mirrored = hu[:, :, ::-1], np.array([0, 2, 1], np.uint8)[mask[:, :, ::-1]]
    assert Flag(FlagCode.CUT_IN_PLANE, "parotid_right") in segmented(mirrored, contract).flags


def test_a_gland_at_the_edge_of_the_scan_has_one_flag_of_it() -> None:
    hu, mask = cut_off(head())
    result = segmented((hu[:, :, :71], mask[:, :, :71]))
    assert result.flags.count(Flag(FlagCode.CUT_IN_PLANE, "parotid_left")) == 1


@pytest.mark.parametrize(("channel", "slices", "flagged"), [("CT", 20, True), ("CT", 1, False), ("T1", 20, False)])
def test_little_skin_and_mr_say_nothing_of_the_field_of_view(channel: str, slices: int, flagged: bool) -> None:
    hu, mask = cut_off(head())
    beyond = abs(np.arange(len(mask)) - 10) >= slices
    mask = np.where(beyond[:, None, None] & (mask == 1), 0, mask)
    contract = dataclasses.replace(CONTRACT, channels=(channel,), operating_range=None)
    assert (Flag(FlagCode.CUT_IN_PLANE, "parotid_left") in segmented((hu, mask), contract).flags) == flagged


def test_no_range_gives_no_flag() -> None:
    assert segmented(head(turn_mm=14), dataclasses.replace(CONTRACT, operating_range=None)).flags == ()


def test_one_gland_alone_has_no_features_of_two_sides() -> None:
    hu, mask = head(turn_mm=14)
    result = segmented((hu, np.where(mask == 1, 1, 0).astype(np.uint8)))
    assert outside(result) == set()
    assert {flag.code for flag in result.flags} == {FlagCode.STRUCTURE_MISSING}


@pytest.mark.parametrize("stated", [LIMITS, None])
def test_a_mask_that_leaves_the_skin_is_flagged(stated: OperatingRange | None) -> None:
    hu, mask = head()
    cut = np.where(np.arange(hu.shape[2]) > 66, -1000, hu)  # through the left gland
    result = segmented((cut, mask), dataclasses.replace(CONTRACT, operating_range=stated))
    (flag,) = (flag for flag in result.flags if flag.code == FlagCode.LEAVES_SKIN)
    in_air = (mask[:, :, 67:] == 1).sum() / (mask == 1).sum()
    assert flag.structure == "parotid_left"
    assert flag.value == pytest.approx(in_air, abs=0.06)
    assert sentence(flag).startswith(f"left parotid: {flag.value:.0%} of it lie in air, outside the patient's skin")


def test_air_is_no_reason_for_a_flag_in_mr() -> None:
    hu, mask = head()
    contract = dataclasses.replace(CONTRACT, channels=("T1",), operating_range=None)
    assert segmented((np.where(mask > 0, -1000, hu), mask), contract).flags == ()


def test_the_limits_of_this_test_name_all_features() -> None:
    assert tuple(each.name for each in LIMITS.scan) == SCAN_FEATURES
    assert tuple(each.name for each in LIMITS.structures) == STRUCTURE_FEATURES
