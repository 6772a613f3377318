"""A calibration and an operating range from patients that the model was not trained on: the floor holds, one in ten of
such patients is outside, and few patients give none."""

import dataclasses
import math

import numpy as np
import pytest

from parotid_seg.calibration import Calibration, OperatingRange
from parotid_seg.contract import Contract, Grid
from parotid_seg.runtime.fit_calibration import (
    Gland,
    SeenPatient,
    calibrate,
    extension_of,
    glands_of,
    left_out_estimates,
    operating_range,
    seen_patient,
)
from parotid_seg.runtime.segmentation.features import FEATURES, SCAN_FEATURES, STRUCTURE_FEATURES, RangeFeatures
from parotid_seg.scan.volume import Orientation, Volume
from tests.runtime.segmentation.test_range_features import AS_STORED, SPACING_MM, head, with_skull

CONTRACT = Contract(("background", "parotid_left", "parotid_right"), ("MR",), (None,), Grid())
SIDES = CONTRACT.labels[1:]


def drawn_glands(patients: int, seed: int = 0, spread: float = 0.05) -> list[Gland]:
    """Glands whose DSC rises with the volume and falls with the difference of sides."""
    rng, glands = np.random.default_rng(seed), []
    for patient in range(patients):
        for side in SIDES:
            features = dict(zip(FEATURES, rng.normal(0, 1, len(FEATURES)), strict=True))
            dsc = 0.75 + 0.06 * features["volume"] - 0.04 * features["side_ratio"] + rng.normal(0, spread)
            glands.append(Gland(f"p{patient}", side, features, float(np.clip(dsc, 0, 1))))
    return glands


def calibration(glands: list[Gland]) -> Calibration:
    (made,) = calibrate(glands, CONTRACT, "made up")
    return made


def test_the_line_is_found() -> None:
    made = calibration(drawn_glands(200))
    weights = {each.name: each.weight for each in made.features}
    assert weights["volume"] == pytest.approx(0.06, abs=0.008)
    assert weights["side_ratio"] == pytest.approx(-0.04, abs=0.008)
    assert all(abs(weights[name]) < 0.01 for name in ("slice_overlap", "fill", "contrast"))
    assert made.intercept == pytest.approx(0.75, abs=0.02)
    assert made.correlation > 0.75
    assert (made.structures, made.patients, made.glands, made.made) == (SIDES, 200, 400, "made up")


def test_the_floor_holds_for_nine_of_ten_glands_of_other_patients() -> None:
    made = [calibration(drawn_glands(20, seed)) for seed in range(20)]
    others = drawn_glands(500, seed=99)
    held = [np.mean([each.estimate(one.features).floor_dsc <= one.dsc for one in others]) for each in made]
    assert 0.88 <= np.mean(held) <= 0.95
    flagged = [np.mean([each.estimate(one.features).low for one in others]) for each in made]
    assert 0.1 <= np.mean(flagged) <= 0.2


def test_the_margin_is_the_conformal_quantile_of_the_errors() -> None:
    glands = drawn_glands(25)
    errors = np.sort(left_out_estimates(SIDES, glands) - [each.dsc for each in glands])
    assert calibration(glands).margin == pytest.approx(errors[math.ceil(0.9 * 51) - 1], abs=1e-5)


def test_patients_are_left_out_whole() -> None:
    glands = drawn_glands(12)
    wrong = [dataclasses.replace(each, dsc=0.0) if each.patient == "p3" else each for each in glands]
    before, after = (left_out_estimates(SIDES, each) for each in (glands, wrong))
    of_patient = [each.patient == "p3" for each in glands]
    assert before[of_patient] == pytest.approx(after[of_patient])
    assert not np.allclose(before, after)


def test_a_contour_of_something_else_hardly_moves_the_line() -> None:
    glands = drawn_glands(40)
    wrong = [*glands[:-1], dataclasses.replace(glands[-1], dsc=0.0)]
    one, other = calibration(glands), calibration(wrong)
    assert other.intercept == pytest.approx(one.intercept, abs=0.007)
    assert np.mean([each.dsc for each in wrong]) < np.mean([each.dsc for each in glands]) - 0.008


def test_too_few_patients_give_none() -> None:
    assert calibrate(drawn_glands(9), CONTRACT, "") == ()
    assert len(calibrate(drawn_glands(10), CONTRACT, "")) == 1
    assert calibrate(drawn_glands(10)[:-1], CONTRACT, "") == ()


def test_a_feature_without_variation_is_left_out() -> None:
    glands = [dataclasses.replace(each, features=each.features | {"contrast": 0.5}) for each in drawn_glands(12)]
    assert [each.name for each in calibration(glands).features] == [name for name in FEATURES if name != "contrast"]


def test_left_and_right_share_a_calibration_and_others_have_their_own() -> None:
    contract = dataclasses.replace(CONTRACT, labels=("background", "lump", *SIDES))
    lumps = [dataclasses.replace(each, structure="lump") for each in drawn_glands(20, seed=5)]
    made = calibrate([*drawn_glands(20), *lumps], contract, "")
    assert [(each.structures, each.glands) for each in made] == [(("lump",), 40), (SIDES, 40)]
    assert made[0].intercept != made[1].intercept


def test_glands_of_a_patient() -> None:
    rng = np.random.default_rng(0)
    voxels = rng.normal(100, 20, (1, 20, 40, 40)).astype(np.float32)
    contour = np.zeros((20, 40, 40), np.uint8)
    contour[5:15, 10:20, 25:35], contour[5:15, 10:20, 5:15] = 1, 2
    mask = contour.copy()
    mask[5:10][mask[5:10] == 1] = 0
    volume = Volume(voxels, (3.0, 3.0, 3.0), Orientation((0, 1, 2), (False, False, False)))
    left, right = glands_of("a", volume, mask, contour, CONTRACT)
    assert left.structure == "parotid_left"
    assert left.dsc == pytest.approx(2 / 3)
    assert (right.patient, right.structure, right.dsc) == ("a", "parotid_right", 1.0)
    assert left.features["side_ratio"] == right.features["side_ratio"] == pytest.approx(math.log(2))
    only_right = glands_of("a", volume, np.where(mask == 2, mask, 0).astype(np.uint8), contour, CONTRACT)
    assert [each.structure for each in only_right] == ["parotid_right"]
    without = np.where(contour == 2, contour, 0).astype(np.uint8)
    assert [each.structure for each in glands_of("a", volume, mask, without, CONTRACT)] == ["parotid_right"]


def drawn(patients: int, seed: int = 0) -> list[SeenPatient]:
    """Patients whose features are of a normal distribution around 5."""
    rng = np.random.default_rng(seed)

    def values(names: tuple[str, ...]) -> dict[str, float]:
        return dict(zip(names, rng.normal(5, 1, len(names)), strict=True))

    return [
        SeenPatient(
            f"p{number}",
            RangeFeatures(values(SCAN_FEATURES), {side: values(STRUCTURE_FEATURES) for side in SIDES}, {}, {}),
        )
        for number in range(patients)
    ]


def made_from(patients: list[SeenPatient]) -> OperatingRange:
    made = operating_range(patients, "made up")
    assert made is not None
    return made


def outside(limits: OperatingRange, patients: list[SeenPatient]) -> float:
    return float(
        np.mean([any(True for _ in limits.outside_of(each.seen.scan, each.seen.structures)) for each in patients])
    )


def test_one_in_ten_of_other_patients_is_outside() -> None:
    others = drawn(300, seed=99)
    shares = [outside(made_from(drawn(25, seed)), others) for seed in range(8)]
    assert 0.03 < np.mean(shares) <= 0.12


def test_a_range_is_the_percentiles_and_a_margin() -> None:
    patients = drawn(40)
    made = made_from(patients)
    assert (made.patients, made.made) == (40, "made up")
    for limits in made.scan:
        low, high = np.quantile([each.seen.scan[limits.name] for each in patients], [0.05, 0.95])
        assert limits.low == pytest.approx(max(0, low - made.margin * (high - low)), abs=1e-4)
        margin = made.margin * {"turn_mm": 3, "sharpness": 1.5}.get(limits.name, 1)
        assert limits.high == pytest.approx(high + margin * (high - low), abs=1e-4)
    assert f"{made.margin:.2f} of their distance" in made.origin


def test_turned_heads_and_noise_count_as_less_far_outside() -> None:
    ends = dict.fromkeys((("scan", name) for name in SCAN_FEATURES), (10.0, 20.0))
    found = {
        (name, value): extension_of(RangeFeatures({name: value}, {}, {}, {}), ends)
        for name in ("turn_mm", "sharpness", "bone_behind")
        for value in (4.0, 26.0)
    }
    assert found == pytest.approx(
        {
            ("turn_mm", 4.0): 0.6,
            ("turn_mm", 26.0): 0.2,
            ("sharpness", 4.0): 0.6,
            ("sharpness", 26.0): 0.4,
            ("bone_behind", 4.0): 0.6,
            ("bone_behind", 26.0): 0.6,
        }
    )


def test_patients_are_left_out() -> None:
    patients = drawn(20)
    far = SeenPatient("far", RangeFeatures({**patients[0].seen.scan, "turn_mm": 50.0}, {}, {}, {}))
    limits = made_from([*patients, far])
    assert [each.name for _, each, _ in limits.outside_of(far.seen.scan, {})] == ["turn_mm"]


def test_a_range_of_what_is_never_negative_begins_at_0_or_above() -> None:
    patients = [
        each._replace(
            seen=each.seen._replace(scan={"turn_mm": abs(each.seen.scan["turn_mm"] - 5), "soft_tissue": number})
        )
        for number, each in zip(range(-10, 10), drawn(20), strict=True)
    ]
    soft, turn = made_from(patients).scan
    assert (turn.name, turn.low) == ("turn_mm", 0.0)
    assert soft.low < -10


def test_what_is_the_same_in_all_patients_or_missing_has_no_range() -> None:
    patients = [
        each._replace(seen=RangeFeatures({"sharpness": 3.0, **each.seen.scan, "turn_mm": 4.0}, {}, {}, {}))
        for each in drawn(12)
    ]
    made = made_from(patients)
    assert [each.name for each in made.scan] == [name for name in SCAN_FEATURES if name != "turn_mm"]
    assert made.structures == ()


def test_too_few_patients_give_no_range() -> None:
    assert operating_range(drawn(9), "") is None
    assert operating_range(drawn(10), "") is not None


def test_a_patient_is_seen_as_by_infer() -> None:
    hu, mask = with_skull(head())
    contract = Contract(("background", *SIDES), ("CT",), ((-200.0, 300.0),), Grid())
    hu[:, 40:45, 40:45] = -100 + 30 * np.random.default_rng(0).normal(0, 1, (20, 5, 5))  # fat, as in any patient
    seen = seen_patient("a", Volume(hu.round().astype(np.int16)[None], SPACING_MM, AS_STORED), mask, contract).seen
    assert tuple(seen.scan) == SCAN_FEATURES
    assert set(seen.structures) == set(SIDES)
    assert seen.scan["distance_of_sides_mm"] == pytest.approx(90, abs=1)
    assert seen.structures["parotid_left"]["intensity"] == pytest.approx(60, abs=5)
