"""Limits: defaults, a file over them, and each met or missed by the figure itself."""

import math
from dataclasses import replace
from pathlib import Path

import pytest

from parotid_seg.commission.limits import LIMITS, checked, read_limits
from parotid_seg.commission.record import LimitRecord
from parotid_seg.commission.report_page import limit_in_words
from parotid_seg.errors import InputError, OptionError
from parotid_seg.metrics import NAN, CaseScores, LabelScores
from parotid_seg.runtime.evaluation import Evaluation
from parotid_seg.runtime.label_match import DEFAULT, LabelMatch, NamedLabels

LABELS = LabelMatch(
    NamedLabels("predictions", DEFAULT), NamedLabels("references", DEFAULT), {"parotid_left": "parotid_left"}
)


def scores(dsc: float, hd95: float = 4.0, error: float = 0.0) -> CaseScores:
    label = LabelScores(dsc, dsc, dsc, hd95, hd95, dsc, dsc, dsc, 100.0, 20.0 + error, 20.0, error)
    return CaseScores(1, 1, 1, {"parotid_left": label})


def evaluation(*cases: CaseScores) -> Evaluation:
    return Evaluation({f"p{number}": each for number, each in enumerate(cases)}, LABELS)


def one(key: str, value: float, found: Evaluation, failed: int = 0, earlier: float | None = None) -> LimitRecord:
    (record,) = checked({key: value}, found, failed, earlier, None if earlier is None else 1)
    return record


def written(folder: Path, text: str) -> Path:
    path = folder / "limits.toml"
    path.write_text(text)
    return path


def test_the_defaults() -> None:
    assert read_limits(None, dose=False) == {
        "mean_dsc": 0.75,
        "worst_dsc": 0.5,
        "mean_hd95_mm": 10,
        "mean_volume_error_ml": 5,
        "failed_patients": 0,
        "earlier_dsc": 1,
    }
    assert read_limits(None, dose=True)["mean_dose_error_gy"] == 4


def test_a_file_changes_adds_and_switches_off(tmp_path: Path) -> None:
    path = written(tmp_path, "[limits]\nmean_dsc = 0.8\npatients = 10\nworst_dsc = false\n")
    limits = read_limits(path, dose=False)
    assert (limits["mean_dsc"], limits["patients"], "worst_dsc" in limits) == (0.8, 10, False)
    assert limits["mean_hd95_mm"] == 10


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[limits]\nmean_dcs = 0.8", "limits.mean_dcs: unknown key, expected one of: mean_dsc, worst_dsc"),
        ("mean_dsc = 0.8", "mean_dsc: unknown key, expected the table"),
        ("[limits]\nmean_dsc = 80", "mean_dsc: found 80, expected a number, 0 to 1, or false"),
        ("[limits]\nmean_dsc = true", "limits.mean_dsc: found true, expected a number"),
        ("[limits]\nmean_dsc = '0.8'", 'found "0.8", expected a number'),
        ("[limits]\nmean_hd95_mm = nan", "found NaN, expected a number, 0 or more"),
        ("[limits]\nmean_hd95_mm = inf", "found Infinity, expected a number"),
        ("[limits]\nmean_hd95_mm = 1" + "0" * 400, "limits.mean_hd95_mm: found 1000"),
        ("[limits]\nmean_hd95_mm = -1", "found -1, expected a number"),
        ("limits = 3", "found no table"),
        ("", "found no table"),
        ("[limits", "not TOML"),
    ],
)
def test_a_wrong_file_is_one_line(tmp_path: Path, text: str, reason: str) -> None:
    with pytest.raises(InputError) as raised:
        read_limits(written(tmp_path, text), dose=False)
    assert reason in str(raised.value)
    assert "\n" not in str(raised.value)


def test_limits_of_the_dose_need_doses(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="limits the dose, expected --dose as well"):
        read_limits(written(tmp_path, "[limits]\nmean_dose_error_gy = 3"), dose=False)


def test_a_mean_is_met_by_the_figure_with_its_interval() -> None:
    found = evaluation(scores(0.7), scores(0.8), scores(0.9))
    met = one("mean_dsc", 0.8, found)
    assert (met.met, met.structure, met.patients) == (True, "parotid_left", 3)
    assert met.found == pytest.approx(0.8)
    assert met.low is not None
    assert met.low < 0.8
    assert met.note == "the interval contains the limit"
    missed = one("mean_dsc", 0.81, found)
    assert one("mean_dsc", 0.8, evaluation(scores(0.9))).low is None, "one patient has no interval"
    assert not missed.met
    assert one("mean_dsc", 0.5, found).note == ""
    assert limit_in_words(met)[:2] == ("mean DSC, left parotid", "at least 0.8")
    assert limit_in_words(met)[2].startswith("0.800 (0.7")


def test_the_worst_structure_is_named() -> None:
    worst = one("worst_dsc", 0.5, evaluation(scores(0.7), scores(0.45)))
    assert (worst.met, worst.found, worst.note, worst.low) == (False, 0.45, "left parotid of p1", None)
    assert one("worst_hd95_mm", 9, evaluation(scores(0.7, 8), scores(0.7, 3))).found == 8


def test_a_volume_error_is_limited_either_way() -> None:
    below = one("mean_volume_error_ml", 2, evaluation(scores(0.7, error=-3), scores(0.7, error=-3)))
    assert (below.met, below.found) == (False, -3)
    assert limit_in_words(below) == (
        "mean volume error, left parotid",
        "at most 2 ml either way",
        "-3.00 (-3.00 to -3.00) ml",
    )
    both = evaluation(scores(0.7, error=-3), scores(0.7, error=3))
    assert one("mean_volume_error_ml", 2, both).met


def test_an_empty_mask_misses_limits_of_distances() -> None:
    found = evaluation(scores(0.7), scores(0.0, math.inf))
    mean = one("mean_hd95_mm", 10, found)
    assert (mean.met, mean.found, mean.note) == (False, None, "1 without a figure, since a mask is empty")
    assert one("worst_hd95_mm", 100, found).note == "left parotid of p1, where a mask is empty"
    assert not one("worst_hd95_mm", 100, found).met
    assert one("worst_dsc", 0.5, found).found == 0


def test_a_structure_that_nobody_has_meets_nothing() -> None:
    absent = LabelScores(NAN, NAN, NAN, NAN, NAN, NAN, NAN, NAN, NAN, 0.0, 0.0, NAN)
    found = evaluation(CaseScores(1, 1, 1, {"parotid_left": absent}))
    for key in ("mean_dsc", "worst_dsc", "mean_hd95_mm"):
        record = one(key, 0.0, found)
        assert (record.met, record.note) == (False, "no patient has the figure")


def test_counts_and_earlier_masks() -> None:
    found = evaluation(scores(0.7), scores(0.8))
    assert one("failed_patients", 0, found).met
    assert not one("failed_patients", 0, found, failed=1).met
    assert not one("patients", 3, found).met
    assert checked({"earlier_dsc": 1}, found, 0, None) == [], "nothing earlier"
    assert one("earlier_dsc", 1, found, earlier=1.0).met
    assert not one("earlier_dsc", 1, found, earlier=0.999).met
    assert one("earlier_dsc", 1, found, earlier=NAN).note == "the earlier masks that differ are not there"


def test_every_limit_has_words() -> None:
    found = evaluation(scores(0.7))
    for key in LIMITS:
        if not key.endswith("_gy"):
            assert all(limit_in_words(one(key, 0.5, found, earlier=1.0)))


def test_structures_outside_the_dose_are_counted() -> None:
    """They have no figure, so a limit says nothing about them."""

    def planned(error_gy: float) -> CaseScores:
        (label,) = scores(0.8).labels.values()
        return CaseScores(1, 1, 1, {"parotid_left": replace(label, mean_error_gy=error_gy)})

    flags = {"p0": (), "p1": (), "p2": ()}
    found = replace(evaluation(planned(1.0), planned(NAN), planned(2.0)), dose_flags=flags)
    told = "without a figure, and not compared with the limit: 1 structure"
    mean, worst = one("mean_dose_error_gy", 4, found), one("worst_dose_error_gy", 4, found)
    assert (mean.met, mean.found, mean.patients, mean.note) == (True, 1.5, 2, told)
    assert (worst.met, worst.found, worst.note) == (True, 2.0, f"left parotid of p2; {told}")
    whole = replace(evaluation(planned(1.0), planned(2.0)), dose_flags=flags)
    assert one("mean_dose_error_gy", 4, whole).note == ""
