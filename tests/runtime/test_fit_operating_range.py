"""The operating range from patients that the model was not trained on: one in ten of such patients is outside."""

import numpy as np
import pytest

from parotid_seg.contract import Contract, Grid
from parotid_seg.operating_range import OperatingRange
from parotid_seg.runtime.fit_operating_range import SeenPatient, operating_range, seen_patient
from parotid_seg.runtime.segmentation.range_features import SCAN_FEATURES, STRUCTURE_FEATURES, RangeFeatures
from parotid_seg.scan.volume import Volume
from tests.runtime.segmentation.test_range_features import AS_STORED, SPACING_MM, head, with_skull

SIDES = ("parotid_left", "parotid_right")


def drawn(patients: int, seed: int = 0) -> list[SeenPatient]:
    """Patients whose features are of a normal distribution around 5."""
    rng = np.random.default_rng(seed)

    def values(names: tuple[str, ...]) -> dict[str, float]:
        return dict(zip(names, rng.normal(5, 1, len(names)), strict=True))

    return [
        SeenPatient(
            f"p{number}", RangeFeatures(values(SCAN_FEATURES), {side: values(STRUCTURE_FEATURES) for side in SIDES}, {})
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
    sharpness = [each.seen.scan["sharpness"] for each in patients]
    low, high = np.quantile(sharpness, [0.05, 0.95])
    assert made.scan[0].low == pytest.approx(low - made.margin * (high - low), abs=1e-4)
    assert made.scan[0].high == pytest.approx(high + made.margin * (high - low), abs=1e-4)
    assert f"{made.margin:.2f} of their distance" in made.origin


def test_patients_are_left_out() -> None:
    patients = drawn(20)
    far = SeenPatient("far", RangeFeatures({**patients[0].seen.scan, "turn_mm": 50.0}, {}, {}))
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
        each._replace(seen=RangeFeatures({"sharpness": 3.0, **each.seen.scan, "turn_mm": 4.0}, {}, {}))
        for each in drawn(12)
    ]
    made = made_from(patients)
    assert [each.name for each in made.scan] == [name for name in SCAN_FEATURES if name != "turn_mm"]
    assert made.structures == ()


def test_too_few_patients_give_none() -> None:
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
