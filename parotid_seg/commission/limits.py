"""Limits of a commissioning: a default for each, a TOML file over them, and whether the figures meet them."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from parotid_seg.commission.record import LimitRecord
from parotid_seg.errors import InputError, OptionError
from parotid_seg.records import finite_or_none, read_toml, shown
from parotid_seg.runtime.evaluation import Evaluation, Mean
from parotid_seg.scan.labels import from_the_right, plain_name
from parotid_seg.wording import counted

TABLE = "limits"
ROUNDING = 1e-9
"""A figure misses a limit only by more than this."""
FEW = 10
"""Fewer patients than this make a note beside the verdict."""


@dataclass(frozen=True)
class Limit:
    """A limit that can be set.

    Attributes:
        title: in words.
        default: the limit without a file; None for none.
        at_least: whether the figure must be at least the limit, else at most.
        unit: of both; empty for shares and counts.
        largest: largest sensible limit.
        figure: the figure of `Evaluation` that is limited, as in `LabelScores`; empty for others.
        worst: whether its worst value over patients and structures counts, else the mean of each structure.
        either_way: whether the figure has a sign, and its absolute value is limited.
    """

    title: str
    default: float | None
    at_least: bool
    unit: str = ""
    largest: float = math.inf
    figure: str = ""
    worst: bool = False
    either_way: bool = False


LIMITS: Mapping[str, Limit] = {
    "mean_dsc": Limit("mean DSC", 0.75, True, largest=1, figure="dsc"),
    "worst_dsc": Limit("lowest DSC", 0.5, True, largest=1, figure="dsc", worst=True),
    "mean_surface_dsc_2mm": Limit("mean surface DSC at 2 mm", None, True, largest=1, figure="surface_dsc_2mm"),
    "mean_hd95_mm": Limit("mean HD95", 10.0, False, "mm", figure="hd95_mm"),
    "worst_hd95_mm": Limit("largest HD95", None, False, "mm", figure="hd95_mm", worst=True),
    "mean_volume_error_ml": Limit("mean volume error", 5.0, False, "ml", figure="volume_error_ml", either_way=True),
    "mean_dose_error_gy": Limit("mean absolute error of the mean dose", 4.0, False, "Gy", figure="mean_error_abs_gy"),
    "worst_dose_error_gy": Limit(
        "largest absolute error of the mean dose", None, False, "Gy", figure="mean_error_abs_gy", worst=True
    ),
    "patients": Limit("patients with masks", None, True),
    "failed_patients": Limit("patients without a mask", 0.0, False),
    "earlier_dsc": Limit("lowest DSC between the masks of this run and the earlier one", 1.0, True, largest=1),
}
"""What can be limited, by its key in the file. A limit on dose needs --dose, `earlier_dsc` an earlier commissioning."""


def read_limits(path: Path | None, *, dose: bool) -> dict[str, float]:
    """The limits to check: the defaults, and over them those of a file.

    Args:
        path: TOML with a table [limits]; `false` switches a default off. None for the defaults.
        dose: whether there are doses; without, the default limits on dose are left out.

    Raises:
        OptionError: if the file cannot be read, or limits the dose without --dose.
        InputError: if it is not TOML, or has an unknown key or a value that no limit can have.
    """
    given = {} if path is None else _table(path)
    limits = {}
    for key, limit in LIMITS.items():
        of_dose = key.endswith("_gy")
        value = given.get(key, limit.default if dose or not of_dose else None)
        if value is None or value is False:
            continue
        where = f"--limits: {path}: {TABLE}.{key}"
        largest = min(limit.largest, sys.float_info.max)
        if value is True or not isinstance(value, int | float) or not 0 <= value <= largest:
            expected = "0 or more" if math.isinf(limit.largest) else f"0 to {limit.largest:g}"
            raise InputError(f"{where}: found {shown(value)}, expected a number, {expected}, or false")
        if of_dose and not dose:
            raise OptionError(f"{where}: limits the dose, expected --dose as well")
        limits[key] = float(value)
    return limits


def _table(path: Path) -> dict[str, Any]:
    content = read_toml(path, "--limits")
    if unknown := [key for key in content if key != TABLE]:
        raise InputError(f"--limits: {path}: {shown(unknown[0])[1:-1]}: unknown key, expected the table [{TABLE}]")
    table = content.get(TABLE)
    if not isinstance(table, dict):
        raise InputError(
            f"--limits: {path}: found no table [{TABLE}], expected one with limits such as mean_dsc = 0.75"
        )
    if unknown := [key for key in table if key not in LIMITS]:
        place = f"{path}: {TABLE}.{shown(unknown[0])[1:-1]}"
        raise InputError(f"--limits: {place}: unknown key, expected one of: {', '.join(LIMITS)}")
    return table


def checked(
    limits: Mapping[str, float],
    evaluation: Evaluation,
    failed: int,
    earlier_dsc: float | None,
    in_both: int | None = None,
) -> list[LimitRecord]:
    """Each limit, met or missed: a record, or one for each structure where means are limited.

    Args:
        limits: by key.
        evaluation: of the patients with masks.
        failed: number of patients without.
        earlier_dsc: lowest DSC between the masks of this run and an earlier one, the example's included; NaN if it
            cannot be told, None without an earlier run or a mask in both.
        in_both: number of patients with a mask in both runs; None without an earlier run.
    """
    records = []
    patients = len(evaluation.cases)
    for key, value in limits.items():
        limit = LIMITS[key]
        if limit.figure and limit.worst:
            records.append(_worst(key, value, evaluation))
        elif limit.figure:
            for name in from_the_right(evaluation.labels.pairs):
                mean = evaluation.means[f"{name} {limit.figure}"]
                records.append(_mean(key, value, name, mean, _without(evaluation, limit.figure, [name])))
        elif key == "earlier_dsc":
            if in_both is not None:
                records.append(_constancy(key, value, earlier_dsc, in_both))
        else:
            found = patients if key == "patients" else failed
            records.append(_record(key, value, float(found), patients=patients + failed))
    return records


def _constancy(key: str, value: float, lowest: float | None, in_both: int) -> LimitRecord:
    """The limit of the DSC with earlier masks, which is missed if no patient is in both runs."""
    if not in_both or lowest is None:
        return _record(
            key, value, math.nan, patients=0, note="no patient is in both runs: use another --out for other patients"
        )
    note = "the earlier masks that differ are not there" if math.isnan(lowest) else ""
    return _record(key, value, lowest, patients=in_both, note=note)


def _without(evaluation: Evaluation, figure: str, names: Iterable[str]) -> str:
    """How many structures that a mask shows have no such figure, as those outside the dose grid; empty for none."""
    labels = [scores.labels[name] for scores in evaluation.cases.values() for name in names]
    count = sum(math.isnan(getattr(each, figure)) and not each.absent for each in labels)
    return f"without a figure, and not compared with the limit: {counted(count, 'structure')}" if count else ""


def _mean(key: str, value: float, structure: str, mean: Mean, without: str) -> LimitRecord:
    low, found, high = (mean.low, mean.mean, mean.high) if mean.cases > 1 else (math.nan, mean.mean, math.nan)
    ends = (-value, value) if LIMITS[key].either_way else (value,)
    note = ""
    if mean.missed:
        note, found = f"{mean.missed} without a figure, since a mask is empty", math.inf
    elif not mean.cases:
        note = "no patient has the figure"
    elif any(low < end < high for end in ends):
        note = "the interval contains the limit"
    note = "; ".join(filter(None, (note, without)))
    return _record(key, value, found, structure=structure, low=low, high=high, patients=mean.cases, note=note)


def _worst(key: str, value: float, evaluation: Evaluation) -> LimitRecord:
    """The worst structure of all patients; one that only one mask has counts with its worst figure."""
    limit = LIMITS[key]
    figures = {
        (case, name): getattr(label, limit.figure)
        for case, scores in evaluation.cases.items()
        for name, label in scores.labels.items()
        if not math.isnan(getattr(label, limit.figure))
    }
    if not figures:
        return _record(key, value, math.nan, patients=0, note="no patient has the figure")
    pick: Callable[..., tuple[str, str]] = min if limit.at_least else max
    case, name = pick(figures, key=lambda each: figures[each])
    found = figures[case, name]
    note = f"{plain_name(name)} of {case}" + (", where a mask is empty" if math.isinf(found) else "")
    note = "; ".join(filter(None, (note, _without(evaluation, limit.figure, evaluation.labels.pairs))))
    return _record(key, value, found, patients=len({case for case, _ in figures}), note=note)


def _record(
    key: str,
    value: float,
    found: float,
    *,
    patients: int,
    structure: str = "",
    low: float = math.nan,
    high: float = math.nan,
    note: str = "",
) -> LimitRecord:
    """A record; a figure that is not a number meets no limit."""
    at_least = LIMITS[key].at_least
    compared = abs(found) if LIMITS[key].either_way else found
    return LimitRecord(
        key=key,
        structure=structure,
        limit=value,
        at_least=at_least,
        found=finite_or_none(found),
        low=finite_or_none(low),
        high=finite_or_none(high),
        patients=patients,
        met=bool(compared >= value - ROUNDING if at_least else compared <= value + ROUNDING),
        note=note,
    )
