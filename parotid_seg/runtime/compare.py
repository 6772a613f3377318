"""Compares two sets of masks with the same references: paired differences with intervals, and a verdict in words."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from parotid_seg.errors import InputError
from parotid_seg.metrics import mean_with_interval
from parotid_seg.records import Record, finite_or_none
from parotid_seg.runtime.doses import Doses
from parotid_seg.runtime.evaluation import DOSE_FIGURES, LABEL_FIGURES, Evaluation, masks_in, score_pairs, together
from parotid_seg.runtime.label_match import match_labels
from parotid_seg.wording import counted, some_of

FEWEST = 6
"""Fewest patients for a verdict: with fewer, not even differences of one sign in all of them are significant at 5 %."""
MOST_NAMED = 20
"""Missing patients that a note names."""
LOWER_IS_BETTER = ("hd_mm", "hd95_mm", "apl_mm", "volume_error_ml", "mean_error_gy")
ABSOLUTE = ("volume_error_ml", "mean_error_gy")
"""Figures of which the absolute value is compared."""
FIRST = "dsc"
"""The figure that decides."""
MAIN = {
    FIRST: "DSC",
    "surface_dsc_2mm": "surface DSC at 2 mm",
    "hd95_mm": "HD95",
    "apl_mm": "added path length",
    "mean_error_gy": "absolute error of the mean dose",
}
"""Figures that the verdict mentions, in words."""

Set = Literal["A", "B"]


class Difference(Record, frozen=True, kw_only=True):
    """The difference of a figure between two sets of masks.

    Attributes:
        structure: its name in the references, or "glands" ("structures"): a patient's mean over all of them.
        figure: see `LabelScores`; absolute values for volume and dose.
        mean_a, mean_b, difference: means over the patients, and B minus A; null if there are no patients.
        low, high: 95 % bootstrap interval of the difference over patients; null for fewer than two.
        patients: number of patients with a finite figure in both sets.
        left_out: the others.
        better: the set that the interval shows to be better; null if it contains 0, or patients are too few.
    """

    structure: str
    figure: str
    mean_a: float | None
    mean_b: float | None
    difference: float | None
    low: float | None
    high: float | None
    patients: int
    left_out: list[str]
    better: Set | None


class ComparisonRecord(Record, frozen=True, kw_only=True):
    """The record of a comparison.

    Attributes:
        schema_version: of this record's fields.
        a, b, references: paths of the masks.
        verdict: in words.
        better: the set that is better; null if neither is, or it cannot be told.
        notes: remarks, one line each.
        patients: the compared ones.
        missing: the others, by where they are missing: "a", "b" or "references".
        differences: by structure and figure.
    """

    schema_version: Literal[1]
    a: str
    b: str
    references: str
    verdict: str
    better: Set | None
    notes: list[str]
    patients: list[str]
    missing: dict[str, list[str]]
    differences: list[Difference]


@dataclass(frozen=True)
class _Scored:
    """Two evaluations of the same patients."""

    a: Evaluation
    b: Evaluation

    def structures(self) -> list[str]:
        """Structures of both sets, by their names in the references."""
        return [name for name in self.a.labels.pairs.values() if name in self.b.labels.pairs.values()]


def compare(
    a: Path, b: Path, references: Path, *, dose: Path | None = None, progress: Callable[[str], None] = lambda _: None
) -> ComparisonRecord:
    """Compare two sets of masks with the same references, patient by patient.

    Patients that are missing in one of the three are left out and named.

    Args:
        a, b, references: folders of label maps, or one label map each.
        dose, progress: see `evaluate`.

    Raises:
        InputError: as `evaluate`, or if no patient is in all three, or no structure in both sets.
        ScanError: as `evaluate`.
    """
    places = {"a": a, "b": b, "references": references}
    masks = {name: masks_in(place) for name, place in places.items()}
    if all(place.is_file() for place in places.values()):
        masks = {name: dict(zip(masks["references"], each.values(), strict=True)) for name, each in masks.items()}
    everyone = set().union(*masks.values())
    patients = set(everyone).intersection(*masks.values())
    if not patients:
        found = "; ".join(f"{place}: {some_of(sorted(masks[name]))}" for name, place in places.items())
        raise InputError(f"no case has a mask in all three, expected the same names; found {found}")
    planned = Doses.below(dose) if dose else None
    expected = {name: masks["references"][name] for name in patients}
    of_a, of_b = (
        score_pairs(
            {name: (masks[each][name], path) for name, path in expected.items()},
            match_labels(places[each], references),
            planned,
            progress,
        )
        for each in ("a", "b")
    )
    missing = {name: sorted(everyone - each.keys()) for name, each in masks.items()}
    return comparison_of(of_a, of_b, places, missing)


def comparison_of(
    a: Evaluation, b: Evaluation, places: Mapping[str, Path], missing: Mapping[str, list[str]]
) -> ComparisonRecord:
    """The record of the comparison of two evaluations of the same patients.

    Args:
        a, b: both with doses, or both without.
        places: folders or files of the masks, by "a", "b" and "references".
        missing: patients that are not compared, by where they are missing.

    Raises:
        InputError: if no structure is in both.
    """
    scored = _Scored(a, b)
    if not scored.structures():
        raise InputError(f"no structure is in both {places['a']} and {places['b']}")
    differences = list(_differences(scored, bool(a.dose_flags)))
    alone = dict(_in_one_set_alone(scored))
    text, better = _verdict(differences, together(scored.structures()), alone)
    return ComparisonRecord(
        schema_version=1,
        a=str(places["a"]),
        b=str(places["b"]),
        references=str(places["references"]),
        verdict=text,
        better=better,
        notes=list(_notes(scored, missing, differences, alone)),
        patients=list(a.cases),
        missing=dict(missing),
        differences=differences,
    )


def rows_of(result: ComparisonRecord) -> Iterator[Sequence[object]]:
    """The differences as a table: its head, then a row per structure and figure."""
    names = [name for name in Difference.__struct_fields__ if name != "left_out"]
    yield names
    for each in result.differences:
        yield [getattr(each, name) for name in names]


def _differences(scored: _Scored, planned: bool) -> Iterator[Difference]:
    structures, patients = scored.structures(), list(scored.a.cases)
    figures = (*LABEL_FIGURES, *(DOSE_FIGURES[:1] if planned else ()))
    values = {figure: _values(scored, structures, figure) for figure in figures}
    for number, structure in enumerate([*structures, together(structures)]):
        for figure in figures:
            yield _difference(values[figure][:, number], patients, structure, figure)


def _values(scored: _Scored, structures: Sequence[str], figure: str) -> NDArray[np.float64]:
    """A figure in both sets, by structure and then the mean of all structures, and by patient.

    It is NaN where one set has none: the structure is absent in a set and in the reference.
    """
    values = np.full((2, len(structures) + 1, len(scored.a.cases)), math.nan)
    for each, evaluation in enumerate((scored.a, scored.b)):
        for name, other in evaluation.labels.pairs.items():
            if other in structures:
                column = [getattr(scores.labels[name], figure) for scores in evaluation.cases.values()]
                values[each, structures.index(other)] = column
    if figure in ABSOLUTE:
        values = np.abs(values)
    values[:, np.isnan(values).any(axis=0)] = math.nan
    counts = np.count_nonzero(~np.isnan(values), axis=1)
    values[:, -1] = np.where(counts > 0, np.nansum(values, axis=1) / np.maximum(counts, 1), math.nan)
    return values


def _difference(values: NDArray[np.float64], patients: Sequence[str], structure: str, figure: str) -> Difference:
    """The difference of the second row of some values (2, patients) to the first."""
    finite = np.asarray(np.isfinite(values).all(axis=0))
    of_a, of_b = values[:, finite]
    difference, low, high = mean_with_interval(list(of_b - of_a))
    better: Set | None = None
    if len(of_a) >= FEWEST and (low > 0 or high < 0):
        better = "B" if (low > 0) != (figure in LOWER_IS_BETTER) else "A"
    return Difference(
        structure=structure,
        figure=figure,
        mean_a=float(of_a.mean()) if of_a.size else None,
        mean_b=float(of_b.mean()) if of_b.size else None,
        difference=finite_or_none(difference),
        low=finite_or_none(low),
        high=finite_or_none(high),
        patients=len(of_a),
        left_out=[name for name, used in zip(patients, finite, strict=True) if not used],
        better=better,
    )


def _verdict(
    differences: Sequence[Difference], structure: str, alone: Mapping[str, Sequence[str]]
) -> tuple[str, Set | None]:
    """The verdict in words, and the better set: decided by DSC, unless another main figure says the opposite.

    Args:
        differences: all of them.
        structure: what decides.
        alone: see `_in_one_set_alone`.
    """
    main = {each.figure: each for each in differences if each.structure == structure and each.figure in MAIN}
    first = main.pop(FIRST)
    if first.patients < FEWEST:
        return (
            f"no verdict: found {counted(first.patients, 'patient')} with both masks, expected at least {FEWEST}",
            None,
        )
    if not any(each.difference for each in differences):
        if alone:
            names = ", ".join(alone)
            return f"no difference in what is compared, but only one set has {names} where the references do not", None
        return "no difference: all figures are equal", None
    others = {name: each.better for name, each in main.items() if each.better}
    reason = _in_words(first, structure)
    if first.better is None:
        further = [f"{better} has the better {MAIN[name]}" for name, better in others.items()]
        return "; ".join([f"no difference in DSC can be told: {reason}", *further]), None
    against = [MAIN[name] for name, better in others.items() if better != first.better]
    if against:
        other = "A" if first.better == "B" else "B"
        text = f"neither is better: {first.better} has the better DSC, {other} the better {', '.join(against)}"
        return f"{text}; {reason}", None
    also = f"; also in {', '.join(MAIN[name] for name in others)}" if others else ""
    return f"{first.better} is better: {reason}{also}", first.better


def _in_words(each: Difference, structure: str) -> str:
    return (
        f"DSC of the {structure} {each.mean_a:.3f} (A) and {each.mean_b:.3f} (B), B minus A "
        f"{each.difference:+z.3f}, 95 % interval {each.low:+z.3f} to {each.high:+z.3f} over {each.patients} patients"
    )


def _notes(
    scored: _Scored,
    missing: Mapping[str, Sequence[str]],
    differences: Sequence[Difference],
    alone: Mapping[str, Sequence[str]],
) -> Iterator[str]:
    where = {"a": "A", "b": "B", "references": "the references"}
    for place, names in missing.items():
        if names:
            count = counted(len(names), "patient")
            yield f"{count} not compared, since missing in {where[place]}: {some_of(names, MOST_NAMED)}"
    for name, evaluation in (("A", scored.a), ("B", scored.b)):
        yield from (f"{name}: {note}" for note in evaluation.notes_on_masks)
    for name, patients in alone.items():
        which = f"{name} in {some_of(patients)}"
        yield f"not compared, since one set has it, but neither the other nor the references: {which}"
    for each in differences:
        left_out = [name for name in each.left_out if name not in alone.get(each.structure, ())]
        if each.figure == "hd_mm" and left_out:
            yield f"without distances of {each.structure}, since a mask is empty: {some_of(left_out)}"


def _in_one_set_alone(scored: _Scored) -> Iterator[tuple[str, list[str]]]:
    """Structures that one set has, and neither the other one nor the references, with the patients."""
    names = [{other: name for name, other in each.labels.pairs.items()} for each in (scored.a, scored.b)]
    for structure in scored.structures():
        in_a, in_b = (
            {case for case, scores in each.cases.items() if not scores.labels[name[structure]].absent}
            for each, name in zip((scored.a, scored.b), names, strict=True)
        )
        if alone := [case for case in scored.a.cases if (case in in_a) != (case in in_b)]:
            yield structure, alone
