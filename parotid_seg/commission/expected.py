"""Compares the DSC that a run of `infer` expects of each gland, and its floor, with the DSC that it achieves."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
from scipy import stats

from parotid_seg.commission.record import ExpectedGland, ExpectedRecord
from parotid_seg.records import finite_or_none
from parotid_seg.runtime.evaluation import Evaluation
from parotid_seg.runtime.report.results import CaseRecord

FEWEST = 3
"""Fewest glands with a correlation."""


def glands_in(cases: Mapping[str, CaseRecord], evaluation: Evaluation) -> Iterator[ExpectedGland]:
    """The structures of which `infer` expects a DSC; none of a model without a calibration.

    Args:
        cases: of `infer`, by patient.
        evaluation: of their masks.
    """
    for patient, case in cases.items():
        for each in case.structures:
            expected, floor = each.expected_dsc, each.floor_dsc
            scores = evaluation.cases[patient].labels.get(each.name)
            if expected is not None and floor is not None and scores and not scores.absent:
                yield ExpectedGland(
                    patient=patient, structure=each.name, expected=expected, floor=floor, achieved=scores.dsc
                )


def expected_record(glands: list[ExpectedGland]) -> ExpectedRecord | None:
    """How well the expectations hold; None without any."""
    if not glands:
        return None
    expected, floor, achieved = np.array([(each.expected, each.floor, each.achieved) for each in glands]).T
    above = int(np.count_nonzero(achieved >= floor))
    interval = stats.binomtest(above, len(glands)).proportion_ci(0.95, method="exact")
    varies = len(glands) >= FEWEST and np.ptp(expected) > 0 and np.ptp(achieved) > 0
    correlation = float(np.corrcoef(expected, achieved)[0, 1]) if varies else None
    return ExpectedRecord(
        glands=sorted(glands, key=lambda each: each.achieved - each.floor),
        above_floor=above,
        share=above / len(glands),
        low=float(interval.low),
        high=float(interval.high),
        mean_error=float(np.mean(expected - achieved)),
        mean_absolute_error=float(np.mean(np.abs(expected - achieved))),
        correlation=finite_or_none(correlation),
    )


def in_words(record: ExpectedRecord) -> str:
    """How well the expectations hold, in a sentence."""
    related = "" if record.correlation is None else f", correlation {record.correlation:.2f}"
    share, low, high = (f"{100 * each:.0f}" for each in (record.share, record.low, record.high))
    return (
        f"the DSC reaches its floor in {record.above_floor} of {len(record.glands)} glands, {share} % "
        f"(95 % interval {low} to {high} %; it should in 90 %); expected minus achieved "
        f"DSC: mean {record.mean_error:+z.3f}, mean absolute {record.mean_absolute_error:.3f}{related}"
    )
