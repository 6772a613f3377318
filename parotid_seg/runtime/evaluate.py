"""Compares predicted masks with reference masks: figures per case, and their means with intervals."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from parotid_seg.errors import InputError, OptionError, ScanError
from parotid_seg.files import exists, special_kind
from parotid_seg.metrics import CaseScores, bootstrap_mean, score_case
from parotid_seg.records import record_text
from parotid_seg.runtime.label_match import LabelMatch, match_labels
from parotid_seg.scan.labels import is_parotid
from parotid_seg.scan.nifti import case_name, check_same_voxels, is_nifti, read_mask

LABEL_FIGURES = ("dsc", "iou", "accuracy", "hd_mm", "hd95_mm", "volume_error_ml")
CASE_FIGURES = ("mpa", "macc", "miou")


@dataclass(frozen=True)
class Mean:
    """Mean over cases with its 95 % bootstrap interval.

    Attributes:
        mean, low, high, median: over the cases with a finite figure.
        cases: number of these cases.
        missed: excluded cases with an infinite distance, because one of the two masks is empty.
        absent: excluded cases in which both masks are empty.
    """

    mean: float
    low: float
    high: float
    median: float
    cases: int
    missed: int
    absent: int


@dataclass(frozen=True)
class Evaluation:
    """Scores of predictions against references.

    Attributes:
        cases: scores by case name.
        means: by figure: "mpa", or "parotid_left dsc", or "glands dsc" (a case's mean over its glands, so that cases
            are resampled instead of glands; "structures dsc" if not all structures are parotids).
        labels: which labels were compared.
    """

    cases: dict[str, CaseScores]
    means: dict[str, Mean]
    labels: LabelMatch

    @property
    def notes(self) -> list[str]:
        """Remarks on the figures, one line each: how labels were matched, and what is not scored."""
        notes = self.labels.notes
        ignored = [scores.ignored_ml for scores in self.cases.values() if scores.ignored_ml]
        if ignored:
            notes.append(f"not scored, since labelled 'ignore': {sum(ignored):.1f} ml in {_cases(len(ignored))}")
        for name in self.labels.pairs:
            if absent := [case for case, scores in self.cases.items() if scores.labels[name].absent]:
                notes.append(f"absent in both masks, not scored: {name} in {_cases(len(absent))} ({_some(absent)})")
        return notes

    def to_json(self) -> str:
        """All scores as JSON text; infinite distances, and figures of structures absent in both masks, become null."""
        matched = {
            name: {
                "prediction": self.labels.predictions.labels.values[name],
                "reference": self.labels.references.labels.values[other],
                "name_in_references": other,
            }
            for name, other in self.labels.pairs.items()
        }
        content = {
            "labels": matched,
            "notes": self.notes,
            "cases": {name: asdict(scores) for name, scores in self.cases.items()},
            "means": {name: asdict(mean) for name, mean in self.means.items()},
        }
        return record_text(_finite_or_none(content))


def evaluate(
    predictions: Path,
    references: Path,
    *,
    progress: Callable[[str], None] = lambda _: None,
) -> Evaluation:
    """Score every prediction that has a reference of the same case name, by labels of the same name.

    Args:
        predictions, references: folders of label maps, or one label map each.
        progress: called with each case's name.

    Raises:
        InputError: if a folder is missing, a reference has no prediction or the reverse, or labels cannot be matched,
            see `match_labels`.
        ScanError: if a mask is unreadable, has other voxels than its reference, holds a label without a name, or has no
            voxel to score.
    """
    found, expected = _masks(predictions), _masks(references)
    if predictions.is_file() and references.is_file():
        found = dict(zip(expected, found.values(), strict=True))
    if missing := sorted(expected.keys() - found.keys()):
        raise InputError(f"no prediction for {_some(missing)} of {references}", path=predictions)
    if extra := sorted(found.keys() - expected.keys()):
        raise InputError(f"no reference for {_some(extra)} of {predictions}", path=references)
    labels = match_labels(predictions, references)
    cases = {}
    for name in sorted(expected, key=_natural):
        progress(name)
        check_same_voxels(found[name], expected[name])
        prediction, _ = read_mask(found[name])
        reference, spacing = read_mask(expected[name])
        labels.predictions.check(prediction, found[name])
        labels.references.check(reference, expected[name])
        prediction, reference, ignored = labels.common(prediction, reference)
        if ignored is not None and ignored.all():
            raise ScanError("every voxel is labelled 'ignore', expected some to score", path=expected[name])
        cases[name] = score_case(prediction, reference, spacing, labels.names, ignored)
    return Evaluation(cases, _means(cases, labels.names), labels)


def _means(cases: dict[str, CaseScores], names: Sequence[str]) -> dict[str, Mean]:
    columns: dict[str, list[float]] = {figure: [getattr(s, figure) for s in cases.values()] for figure in CASE_FIGURES}
    together = "glands" if all(map(is_parotid, names[1:])) else "structures"
    for figure in LABEL_FIGURES:
        for label in names[1:]:
            columns[f"{label} {figure}"] = [getattr(scores.labels[label], figure) for scores in cases.values()]
        columns[f"{together} {figure}"] = [
            _mean_of([getattr(gland, figure) for gland in scores.labels.values() if not gland.absent])
            for scores in cases.values()
        ]
    return {name: _mean(values) for name, values in columns.items()}


def _mean_of(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else float("nan")


def _mean(values: Sequence[float]) -> Mean:
    finite = [value for value in values if math.isfinite(value)]
    mean, low, high = bootstrap_mean(finite)
    median = float(np.median(finite)) if finite else float("nan")
    absent = sum(map(math.isnan, values))
    return Mean(mean, low, high, median, len(finite), len(values) - len(finite) - absent, absent)


def files_of(predictions: Path, references: Path) -> list[Path]:
    """The mask files of a folder, or a single file.

    Raises:
        InputError: if there is no such file or folder, or a folder without masks.
    """
    return [*_masks(predictions).values(), *_masks(references).values()]


def _masks(place: Path) -> dict[str, Path]:
    if place.is_file():
        return {case_name(place): place}
    if not place.is_dir():
        if not exists(place):
            raise OptionError("no such file or folder", path=place)
        raise InputError(f"found {special_kind(place.stat().st_mode)}, expected a regular file or a folder", path=place)
    masks = {case_name(path): path for path in sorted(place.iterdir()) if is_nifti(path) and path.name[0] != "."}
    if not masks:
        raise InputError("no masks in this folder, expected files ending in .nii or .nii.gz", path=place)
    return masks


def _natural(name: str) -> tuple[int, str]:
    return len(name), name


def _cases(count: int) -> str:
    return f"{count} case" if count == 1 else f"{count} cases"


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _finite_or_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite_or_none(item) for key, item in value.items()}
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
