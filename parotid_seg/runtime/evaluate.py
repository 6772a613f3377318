"""Predicted masks against reference masks: figures a case, and their means with intervals."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from parotid_seg.errors import InputError, ScanError
from parotid_seg.metrics import CaseScores, bootstrap_mean, score_case
from parotid_seg.scan.labels import is_parotid
from parotid_seg.scan.nifti import case_name, check_same_voxels, is_nifti, read_mask

LABELS = ("background", "parotid_left", "parotid_right")
"""Of masks that nothing else is known about."""
LABEL_FIGURES = ("dsc", "iou", "accuracy", "hd_mm", "hd95_mm", "volume_error_ml")
CASE_FIGURES = ("mpa", "macc", "miou")


@dataclass(frozen=True)
class Mean:
    """Mean over cases with its 95 % bootstrap interval.

    Attributes:
        mean, low, high, median: over the cases where the figure is finite.
        cases: how many those are.
        missed: cases left out because a distance is infinite: one of the two masks is empty.
    """

    mean: float
    low: float
    high: float
    median: float
    cases: int
    missed: int


@dataclass(frozen=True)
class Evaluation:
    """Scores by case name, and means by figure: "mpa", or "parotid_left dsc", or "glands dsc" (a case's mean over
    its glands, so that cases and not glands are resampled; "structures dsc" where not all of them are parotids)."""

    cases: dict[str, CaseScores]
    means: dict[str, Mean]

    def to_json(self) -> str:
        """Everything as JSON text; infinite distances become null."""
        content = {
            "cases": {name: asdict(scores) for name, scores in self.cases.items()},
            "means": {name: asdict(mean) for name, mean in self.means.items()},
        }
        return json.dumps(_finite_or_none(content), indent=1, allow_nan=False) + "\n"


def evaluate(
    predictions: Path,
    references: Path,
    *,
    names: Sequence[str] | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> Evaluation:
    """Score every prediction that has a reference of the same case name.

    Args:
        predictions, references: folders of label maps, or one label map each.
        names: label names by value, background first. Default: see `label_names`.
        progress: told each case's name.

    Raises:
        InputError: if a folder is missing, a reference has no prediction or the reverse.
        ScanError: if a mask is unreadable or lies on another grid than its reference.
    """
    names = names or label_names(predictions, references)
    found, expected = _masks(predictions), _masks(references)
    if predictions.is_file() and references.is_file():
        found = dict(zip(expected, found.values(), strict=True))
    if missing := sorted(expected.keys() - found.keys()):
        raise InputError(f"no prediction for {_some(missing)} of {references}", path=predictions)
    if extra := sorted(found.keys() - expected.keys()):
        raise InputError(f"no reference for {_some(extra)} of {predictions}", path=references)
    cases = {}
    for name in sorted(expected, key=_natural):
        progress(name)
        check_same_voxels(found[name], expected[name])
        prediction, _ = read_mask(found[name])
        reference, spacing = read_mask(expected[name])
        largest = int(max(prediction.max(), reference.max()))
        if largest >= len(names):
            raise ScanError(f"case {name}: found label {largest}, expected 0 to {len(names) - 1}")
        cases[name] = score_case(prediction, reference, spacing, names)
    return Evaluation(cases, _means(cases, names))


def label_names(predictions: Path, references: Path) -> tuple[str, ...]:
    """Label names by value: those of the model that made the predictions (run.json beside them), else those of the
    references' data set (dataset.json in the folder above or beside them), else `LABELS`.

    Raises:
        InputError: if such a file is there but tells no label names.
    """
    made = (predictions.parent if predictions.is_file() else predictions) / "run.json"
    if made.is_file():
        return _named(made, lambda content: content["model"]["contract"]["labels"])
    beside = references.parent if references.is_file() else references
    for place in (beside / "dataset.json", beside.resolve().parent / "dataset.json"):
        if place.is_file():
            return _named(place, lambda content: _by_value(content["labels"]))
    return LABELS


def _by_value(labels: dict[str, Any]) -> list[str]:
    names = {int(value): name for name, value in labels.items()}
    return [names[value] for value in range(len(labels))]


def _named(file: Path, labels: Callable[[Any], Sequence[str]]) -> tuple[str, ...]:
    try:
        return tuple(labels(json.loads(file.read_text())))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"tells no label names, expected one for each value from 0 ({error!r})", path=file) from error


def _means(cases: dict[str, CaseScores], names: Sequence[str]) -> dict[str, Mean]:
    columns: dict[str, list[float]] = {figure: [getattr(s, figure) for s in cases.values()] for figure in CASE_FIGURES}
    together = "glands" if all(map(is_parotid, names[1:])) else "structures"
    for figure in LABEL_FIGURES:
        for label in names[1:]:
            columns[f"{label} {figure}"] = [getattr(scores.labels[label], figure) for scores in cases.values()]
        columns[f"{together} {figure}"] = [
            float(np.mean([getattr(gland, figure) for gland in scores.labels.values()])) for scores in cases.values()
        ]
    return {name: _mean(values) for name, values in columns.items()}


def _mean(values: Sequence[float]) -> Mean:
    finite = [value for value in values if math.isfinite(value)]
    mean, low, high = bootstrap_mean(finite)
    median = float(np.median(finite)) if finite else float("nan")
    return Mean(mean, low, high, median, len(finite), len(values) - len(finite))


def _masks(place: Path) -> dict[str, Path]:
    if place.is_file():
        return {case_name(place): place}
    if not place.is_dir():
        raise InputError("no such file or folder", path=place)
    masks = {case_name(path): path for path in sorted(place.iterdir()) if is_nifti(path) and path.name[0] != "."}
    if not masks:
        raise InputError("no masks in this folder, expected files ending in .nii or .nii.gz", path=place)
    return masks


def _natural(name: str) -> tuple[int, str]:
    return len(name), name


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _finite_or_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite_or_none(item) for key, item in value.items()}
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
