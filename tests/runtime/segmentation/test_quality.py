"""Features of glands, and their expected DSC by a model's calibration."""

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from parotid_seg.contract import Contract, Grid
from parotid_seg.flags import FlagCode
from parotid_seg.metrics import dice
from parotid_seg.runtime.segmentation.features import FEATURES, gland_features
from parotid_seg.runtime.segmentation.segment import Segmentation, postprocess
from parotid_seg.scan.chunks import crop_to_grid
from parotid_seg.scan.components import label_boxes
from parotid_seg.scan.volume import Mask, Orientation, Volume
from tests.calibrations import BOTH

CONTRACT = Contract(
    ("background", "parotid_left", "parotid_right"), ("CT",), ((-200.0, 300.0),), Grid(), calibrations=(BOTH,)
)
AS_STORED = Orientation((0, 1, 2), (False, False, False))


def balls(spacing_mm: tuple[float, float, float], left_mm: float, right_mm: float) -> tuple[NDArray[np.int16], Mask]:
    """A head of 40 HU and 120 x 180 x 180 mm, and two glands of 60 HU: spheres of these radii."""
    shape = tuple(round(size / mm) for size, mm in zip((120, 180, 180), spacing_mm, strict=True))
    z, y, x = (np.arange(size) * mm for size, mm in zip(shape, spacing_mm, strict=True))
    mask = np.zeros(shape, np.uint8)
    for value, radius, middle in ((1, left_mm, 135), (2, right_mm, 45)):
        off = (z[:, None, None] - 60) ** 2 + (y[:, None] - 90) ** 2 + (x - middle) ** 2
        mask[off < radius**2] = value
    return np.where(mask > 0, 60, 40).astype(np.int16), mask


def values(spacing_mm: tuple[float, float, float], left_mm: float, right_mm: float, value: int = 1) -> dict[str, float]:
    hu, mask = balls(spacing_mm, left_mm, right_mm)
    sizes = [np.count_nonzero(mask == each) * float(np.prod(spacing_mm)) / 1000 for each in (1, 2)]
    box = label_boxes(mask, 2)[value - 1]
    assert box is not None
    found = gland_features(mask, hu, (-200.0, 300.0), spacing_mm, value, box, sizes[value - 1], sizes[2 - value])
    assert found is not None
    return found


def test_features_of_spheres() -> None:
    found = values((3.0, 3.0, 3.0), 20, 16)
    assert tuple(found) == FEATURES
    assert found["volume"] == pytest.approx(math.log(4 / 3 * math.pi * 8), abs=0.03)
    assert found["side_ratio"] == pytest.approx(3 * math.log(20 / 16), abs=0.05)
    assert found["fill"] == pytest.approx(math.pi / 6, abs=0.05)
    assert found["contrast"] == pytest.approx(20 / 500)
    assert 0.8 < found["slice_overlap"] < 0.95
    other = values((3.0, 3.0, 3.0), 20, 16, value=2)
    assert other["side_ratio"] == found["side_ratio"]
    assert other["volume"] < found["volume"]


@pytest.mark.parametrize("spacing_mm", [(1.0, 1.0, 1.0), (2.5, 0.98, 0.98), (3.0, 4.0, 4.0)])
def test_features_hardly_depend_on_the_voxels(spacing_mm: tuple[float, float, float]) -> None:
    usual, found = values((3.0, 3.0, 3.0), 20, 20), values(spacing_mm, 20, 20)
    for name, most in (
        ("volume", 0.06),
        ("side_ratio", 0.06),
        ("slice_overlap", 0.02),
        ("fill", 0.08),
        ("contrast", 0.005),
    ):
        assert found[name] == pytest.approx(usual[name], abs=most), name


@pytest.mark.parametrize("size", [4, 5])
def test_points_as_far_apart_as_the_voxels_meet_each_of_them_once(size: int) -> None:
    mask = np.zeros((12, 12, 12), np.uint8)
    mask[2 : 2 + size, 2 : 2 + size, 2 : 2 + size] = 1
    mask[3, 2] = 0
    box = label_boxes(mask, 1)[0]
    assert box is not None
    found = gland_features(mask, mask, (0.0, 1.0), (3.0, 3.0, 3.0), 1, box, 1.0, 0.0)
    assert found is not None
    assert found["fill"] == pytest.approx(1 - 1 / size**2)
    inside = mask[2 : 2 + size] == 1
    assert found["slice_overlap"] == dice(inside[:-1], inside[1:])


def test_a_feature_at_the_edge_of_the_scan_and_of_a_speck() -> None:
    hu, mask = balls((3.0, 3.0, 3.0), 20, 20)
    box = label_boxes(mask[20:], 2)[0]
    assert box is not None
    cut = gland_features(mask[20:], hu[20:], (-200.0, 300.0), (3.0, 3.0, 3.0), 1, box, 16.0, 0.0)
    assert cut is not None
    assert cut["side_ratio"] == 0.0
    inside = mask[20:27] == 1
    assert cut["slice_overlap"] == dice(inside[:-1], inside[1:])
    assert cut["contrast"] == pytest.approx(20 / 500)
    speck = np.zeros((9, 60, 60), np.uint8)
    speck[4, 30, 30] = 1
    alone = gland_features(speck, speck, (0.0, 1.0), (3.0, 3.0, 3.0), 1, label_boxes(speck, 1)[0] or (), 0.03, 0.0)  # type: ignore[arg-type]
    assert alone is not None
    assert (alone["slice_overlap"], alone["fill"], alone["contrast"]) == (0.0, 1.0, 1.0)


def estimated(contract: Contract = CONTRACT, left_mm: float = 20, right_mm: float = 20) -> Segmentation:
    hu, mask = balls((3.0, 3.0, 3.0), left_mm, right_mm)
    volume = Volume(hu[None], (3.0, 3.0, 3.0), AS_STORED)
    covered = crop_to_grid(volume, np.array([[-200.0, 300.0]], np.float32), contract.grid)
    return postprocess(mask[:, covered.rows, covered.columns], covered, volume, contract)


def test_expected_dsc_and_floor_of_a_scan() -> None:
    result = estimated()
    features = values((3.0, 3.0, 3.0), 20, 20)
    expected = 0.8 + 0.05 * (features["volume"] - 3.0) / 0.5 + 0.02 * features["contrast"] / 0.1
    assert list(result.expected_dsc) == list(result.floor_dsc) == ["parotid_left", "parotid_right"]
    assert result.expected_dsc["parotid_left"] == pytest.approx(expected, abs=1e-3)
    assert result.floor_dsc["parotid_left"] == pytest.approx(expected - 0.1, abs=1e-3)
    assert not any(flag.code == FlagCode.LOW_EXPECTED_DSC for flag in result.flags)
    right = result.only(["parotid_right"], CONTRACT.labels)
    assert list(right.expected_dsc) == list(right.floor_dsc) == ["parotid_right"]


def test_a_gland_of_low_expected_dsc_is_flagged_and_a_missing_one_has_none() -> None:
    (flag,) = (flag for flag in estimated(right_mm=12).flags if flag.code == FlagCode.LOW_EXPECTED_DSC)
    assert (flag.structure, flag.detail) == ("parotid_right", f"{flag.value - 0.1:.2f}")  # type: ignore[operator]
    assert flag.value is not None
    assert flag.value < 0.75
    assert list(estimated(right_mm=5).expected_dsc) == ["parotid_left"]


def test_a_model_without_calibration_gives_none() -> None:
    result = estimated(dataclasses.replace(CONTRACT, calibrations=()))
    assert result.expected_dsc == result.floor_dsc == {}
    left = dataclasses.replace(BOTH, structures=("parotid_left",))
    assert list(estimated(dataclasses.replace(CONTRACT, calibrations=(left,))).floor_dsc) == ["parotid_left"]


@pytest.mark.parametrize(
    ("off", "expected"), [({"volume": 9.0}, 0.8 + 3 * 0.05), ({"volume": -9.0}, 0.8 - 3 * 0.05), ({}, 0.8)]
)
def test_the_line_is_not_followed_beyond_three_deviations(off: dict[str, Any], expected: float) -> None:
    estimate = BOTH.estimate({"volume": 3.0, "contrast": 0.0} | off)
    assert estimate == pytest.approx((expected, expected - 0.1, expected < 0.75))


def test_estimates_stay_between_0_and_1() -> None:
    good, bad = (dataclasses.replace(BOTH, intercept=intercept) for intercept in (1.2, 0.05))
    assert good.estimate({"volume": 3.0, "contrast": 0.0}).expected_dsc == 1.0
    assert bad.estimate({"volume": 3.0, "contrast": 0.0}).floor_dsc == 0.0
