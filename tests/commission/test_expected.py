"""Expected against achieved DSC: how often the floor holds, and how far both lie apart."""

from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from parotid_seg.commission.expected import expected_record, glands_in, in_words
from parotid_seg.commission.record import ExpectedGland
from tests.commission.test_limits import evaluation, scores


def gland(patient: str, expected: float, floor: float, achieved: float) -> ExpectedGland:
    return ExpectedGland(patient=patient, structure="parotid_left", expected=expected, floor=floor, achieved=achieved)


class Structure(msgspec.Struct):
    """A structure in the results of a model with a calibration."""

    name: str
    expected_dsc: float | None
    floor_dsc: float | None


def test_glands_with_an_expected_dsc() -> None:
    cases: Any = {
        "p0": SimpleNamespace(structures=[Structure("parotid_left", 0.8, 0.7)]),
        "p1": SimpleNamespace(structures=[Structure("parotid_left", None, None)]),
    }
    found = list(glands_in(cases, evaluation(scores(0.75), scores(0.7))))
    assert found == [gland("p0", 0.8, 0.7, 0.75)]


def test_how_often_the_floor_holds() -> None:
    glands = [gland("p0", 0.8, 0.7, 0.85), gland("p1", 0.7, 0.6, 0.5), gland("p2", 0.9, 0.8, 0.8)]
    record = expected_record(glands)
    assert record
    assert [each.patient for each in record.glands] == ["p1", "p2", "p0"], "furthest below its floor first"
    assert record.above_floor == 2
    assert record.share == pytest.approx(2 / 3)
    assert (record.low, record.high) == pytest.approx((0.0943, 0.9916), abs=1e-4)  # exact, by tables
    assert record.mean_error == pytest.approx((0.8 + 0.7 + 0.9 - 0.85 - 0.5 - 0.8) / 3)
    assert record.correlation == pytest.approx(0.7857, abs=0.01)
    assert in_words(record).startswith(
        "the DSC reaches its floor in 2 of 3 glands, 67 % (95 % interval 9 to 99 %; it should in 90 %)"
    )


def test_without_expectations_there_is_no_section() -> None:
    assert expected_record([]) is None
    record = expected_record([gland("p0", 0.8, 0.7, 0.85)])
    assert record
    assert record.correlation is None
    assert "correlation" not in in_words(record)
