"""Compares predicted masks with reference masks: figures per case, and their means with intervals."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from parotid_seg.errors import InputError, OptionError, ScanError
from parotid_seg.files import exists, special_kind
from parotid_seg.flags import DOUBTFUL_PLACE, Flag, FlagCode
from parotid_seg.metrics import NAN, SURFACE_FIGURES, CaseScores, dice, mean_with_interval, score_case
from parotid_seg.runtime import doses
from parotid_seg.runtime.label_match import LabelMatch, match_labels
from parotid_seg.runtime.report.flag_text import sentence
from parotid_seg.scan.dose_grid import DoseGrid
from parotid_seg.scan.labels import is_parotid, mirrored_labels
from parotid_seg.scan.nifti import by_case, case_name, check_same_voxels, geometry_at, is_nifti, read_mask, shear_of
from parotid_seg.scan.volume import Mask, Orientation
from parotid_seg.wording import counted, some_of

LABEL_FIGURES = ("dsc", "iou", "accuracy", "hd_mm", "hd95_mm", *SURFACE_FIGURES, "apl_mm", "volume_error_ml")
DOSE_FIGURES = ("mean_error_gy", "mean_error_abs_gy")
CASE_FIGURES = ("mpa", "macc", "miou")
IN_ONE_OR_NEITHER = {
    (False, False): "absent in both masks, not scored",
    (False, True): "in the references only, DSC 0",
    (True, False): "in the predictions only, DSC 0 (absent in the patient, or not contoured?)",
}
"""Notes on structures, by whether prediction and reference show them."""
FEWEST = 6
"""Fewest cases whose intervals contain the true mean about as often as they say."""
EXCHANGED_GAIN = 0.3
"""Least gain of a case's DSC by exchanging the sides."""


@dataclass(frozen=True)
class Mean:
    """Mean over cases with its 95 % bootstrap interval.

    Attributes:
        mean, low, high, median: over the cases with a finite figure; one case has no interval.
        cases: number of these cases.
        missed: excluded cases with an infinite figure, because one of the two masks is empty.
        absent: excluded cases without the figure: both masks are empty, or lie outside the dose grid.
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
        labels: which labels were compared.
        dose_flags: remarks on the dose by case; empty without a dose.
        of_sides: DSC as it is and with the sides exchanged by case, see `dsc_of_sides`.
        place_flags: remarks on the references' voxel axes and spacing by case.
        origins: remarks on the masks' files by case, see `NamedLabels.remark`.
    """

    cases: dict[str, CaseScores]
    labels: LabelMatch
    dose_flags: Mapping[str, tuple[Flag, ...]] = field(default_factory=dict)
    of_sides: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    place_flags: Mapping[str, tuple[Flag, ...]] = field(default_factory=dict)
    origins: Mapping[str, Sequence[str]] = field(default_factory=dict)

    @cached_property
    def means(self) -> dict[str, Mean]:
        """Means by figure: "mpa", or "parotid_left dsc", or "glands dsc" (a case's mean over its glands, so that cases
        are resampled instead of glands; "structures dsc" if not all structures are parotids).
        """
        every = self.cases.values()
        columns: dict[str, list[float]] = {figure: [getattr(each, figure) for each in every] for figure in CASE_FIGURES}
        for figure in (*LABEL_FIGURES, *(DOSE_FIGURES if self.dose_flags else ())):
            for label in self.labels.names[1:]:
                columns[f"{label} {figure}"] = [getattr(scores.labels[label], figure) for scores in every]
            columns[f"{self.together} {figure}"] = [_over_structures(scores, figure) for scores in every]
        return {name: _mean(values) for name, values in columns.items()}

    @property
    def together(self) -> str:
        """What all structures together are called in `means`."""
        return together(self.labels.names[1:])

    @property
    def notes(self) -> list[str]:
        """Remarks on the figures, one line each: on the masks, and on intervals of few cases."""
        few = [f"intervals of fewer than {FEWEST} cases are too narrow"] if 1 < len(self.cases) < FEWEST else []
        return [*self.notes_on_masks, *few]

    @property
    def notes_on_masks(self) -> list[str]:
        """Remarks on the masks, one line each: how labels were matched, and what is not scored."""
        text, exchanged = exchanged_in(self.of_sides, "predictions", "references")
        notes = [f"{text}: {counted(len(exchanged), 'case')} ({some_of(exchanged)})"] if exchanged else []
        notes += self.labels.notes
        notes += _with_cases(self.origins)
        ignored = [scores.ignored_ml for scores in self.cases.values() if scores.ignored_ml]
        if ignored:
            notes.append(
                f"not scored, since labelled 'ignore': {sum(ignored):.1f} ml in {counted(len(ignored), 'case')}"
            )
        for name in self.labels.pairs:
            volumes = {
                case: (scores.labels[name].volume_ml > 0, scores.labels[name].reference_ml > 0)
                for case, scores in self.cases.items()
            }
            for where, text in IN_ONE_OR_NEITHER.items():
                if found := [case for case, shown_in in volumes.items() if shown_in == where]:
                    notes.append(f"{text}: {name} in {counted(len(found), 'case')} ({some_of(found)})")
        return [*notes, *_remarks(self.place_flags), *_remarks(self.dose_flags)]


def _remarks(flags_by_case: Mapping[str, tuple[Flag, ...]]) -> list[str]:
    """Remarks on cases, each once with its cases."""
    texts = {
        FlagCode.DOSE_PARTLY_OUTSIDE: "partly or wholly outside the dose grid: {structure}",
        FlagCode.SHEARED: "voxel axes not at right angles (gantry tilt), distances and surfaces computed as if they "
        "were",
    }

    def text_of(flag: Flag) -> str:
        own = texts.get(flag.code)
        return own.format(structure=flag.structure) if own else sentence(flag)

    return _with_cases({case: list(map(text_of, flags)) for case, flags in flags_by_case.items()})


def _with_cases(texts_by_case: Mapping[str, Sequence[str]]) -> list[str]:
    """Texts, each once with its cases."""
    cases_by_text = defaultdict(list)
    for case, texts in texts_by_case.items():
        for text in texts:
            cases_by_text[text].append(case)
    each_once = {text: dict.fromkeys(cases) for text, cases in cases_by_text.items()}
    return [f"{text}: {counted(len(cases), 'case')} ({some_of(cases)})" for text, cases in each_once.items()]


def evaluate(
    predictions: Path,
    references: Path,
    *,
    dose: Path | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> Evaluation:
    """Score every prediction that has a reference of the same case name, by labels of the same name.

    Args:
        predictions, references: folders of label maps, or one label map each.
        dose: the planned dose of each case by its name, see `Doses.of_case`; None for no figures of dose.
        progress: called with each case's name.

    Raises:
        InputError: if a folder is missing, a reference has no prediction or the reverse, or labels cannot be matched,
            see `match_labels`.
        ScanError: if a mask is unreadable, has other voxels than its reference, holds a label without a name, or has no
            voxel to score; or if a case has no dose, or one that cannot be read.
    """
    found, expected = masks_in(predictions), masks_in(references)
    if predictions.is_file() and references.is_file():
        found = dict(zip(expected, found.values(), strict=True))
    if missing := sorted(expected.keys() - found.keys()):
        there = f"; found masks of {some_of(sorted(found))}"
        raise InputError(f"no prediction for {some_of(missing)} of {references}{there}", path=predictions)
    if extra := sorted(found.keys() - expected.keys()):
        raise InputError(f"no reference for {some_of(extra)} of {predictions}", path=references)
    labels = match_labels(predictions, references)
    planned = doses.Doses.below(dose) if dose else None
    return score_pairs({name: (found[name], expected[name]) for name in expected}, labels, planned, progress)


def score_pairs(
    pairs: Mapping[str, tuple[Path, Path]],
    labels: LabelMatch,
    planned: doses.Doses | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> Evaluation:
    """Score masks against references.

    Args:
        pairs: prediction and reference by case.
        labels: their labels.
        planned: the doses of the cases; None for no figures of dose.
        progress: called with each case's name.

    Raises:
        ScanError: as `evaluate`.
    """
    cases, flags, of_sides, place_flags, origins = {}, {}, {}, {}, {}
    for name in sorted(pairs, key=lambda name: (len(name), name)):
        progress(name)
        found, expected = pairs[name]
        check_same_voxels(found, expected)
        prediction, _ = read_mask(found)
        reference, spacing = read_mask(expected)
        labels.predictions.check(prediction, found)
        labels.references.check(reference, expected)
        origins[name] = [*filter(None, (labels.predictions.remark(found), labels.references.remark(expected)))]
        prediction, reference, ignored = labels.scored(prediction, reference)
        if ignored is not None and ignored.all():
            raise ScanError("every voxel is labelled 'ignore', expected some to score", path=expected)
        affine, _, place = geometry_at(expected)
        place_flags[name] = tuple(flag for flag in place if flag.code in (*DOUBTFUL_PLACE, FlagCode.SHEARED))
        scores = score_case(prediction, reference, spacing, labels.names, ignored, shear_of(affine))
        if planned:
            dose = doses.read(planned.of_case(name, None, only=len(pairs) == 1), in_frame=False)
            scores, flags[name] = _with_doses(scores, dose, (prediction, reference), affine, labels.names)
        cases[name] = scores
        if sides := dsc_of_sides(prediction, reference, labels.names):
            of_sides[name] = sides
    return Evaluation(cases, labels, flags, of_sides, place_flags, origins)


def _with_doses(
    scores: CaseScores, dose: DoseGrid, masks: Sequence[Mask], affine: NDArray[np.float64], names: Sequence[str]
) -> tuple[CaseScores, tuple[Flag, ...]]:
    """Scores with the mean doses in a prediction and its reference, and remarks on the dose.

    A structure that only one of them has gets an infinite difference.
    """
    orientation = Orientation.from_affine(affine)
    found, expected = (doses.mean_doses(dose, orientation.to_storage(mask), affine, names) for mask in masks)
    labels = {}
    for name, label in scores.labels.items():
        mean_gy, reference_gy = found.mean_gy.get(name, NAN), expected.mean_gy.get(name, NAN)
        only_one = (label.volume_ml == 0) != (label.reference_ml == 0)
        error = math.inf if only_one else mean_gy - reference_gy
        labels[name] = replace(label, mean_gy=mean_gy, reference_mean_gy=reference_gy, mean_error_gy=error)
    return replace(scores, labels=labels), tuple(dict.fromkeys((*found.flags, *expected.flags)))


def together(names: Sequence[str]) -> str:
    """What structures are called together."""
    return "glands" if all(map(is_parotid, names)) else "structures"


def _over_structures(scores: CaseScores, figure: str) -> float:
    """The mean of a figure over a case's structures; NaN if it has none."""
    values = [getattr(each, figure) for each in scores.labels.values() if not each.absent]
    return float(np.mean(values)) if values else NAN


def _mean(values: Sequence[float]) -> Mean:
    finite = [value for value in values if math.isfinite(value)]
    mean, low, high = mean_with_interval(finite)
    median = float(np.median(finite)) if finite else NAN
    absent = sum(map(math.isnan, values))
    return Mean(mean, low, high, median, len(finite), len(values) - len(finite) - absent, absent)


def masks_in(place: Path) -> dict[str, Path]:
    """The masks of a folder, or a single one, by the name of their case.

    Raises:
        InputError: if there is no such file or folder, if the file is no mask by its name, or if the folder has no
            masks or two of one case.
    """
    if place.is_file():
        if not is_nifti(place):
            raise InputError(
                "found a file that is no mask by its name, expected one ending in .nii or .nii.gz", path=place
            )
        return {case_name(place): place}
    if not place.is_dir():
        if not exists(place):
            raise OptionError("no such file or folder", path=place)
        raise InputError(f"found {special_kind(place.stat().st_mode)}, expected a regular file or a folder", path=place)
    masks = by_case(path for path in sorted(place.iterdir()) if is_nifti(path) and path.name[0] != ".")
    if not masks:
        others = [path.name for path in sorted(place.iterdir()) if path.name.lower().endswith((".nrrd", ".dcm"))]
        found = f"; found {some_of(others, 1)}: only NIfTI masks are compared" if others else ""
        raise InputError(f"no masks in this folder, expected files ending in .nii or .nii.gz{found}", path=place)
    return masks


def dsc_of_sides(mask: Mask, other: Mask, names: Sequence[str]) -> tuple[float, float] | None:
    """Mean DSC over the structures with a side, as it is and with the sides exchanged; None without such structures.

    Args:
        mask, other: label maps of one shape.
        names: of the labels of both by value, background first.
    """
    partners = mirrored_labels(names)
    sided = [value for value, partner in enumerate(partners) if value != partner]
    if not sided:
        return None
    return (
        float(np.mean([dice(mask == value, other == value) for value in sided])),
        float(np.mean([dice(mask == partners[value], other == value) for value in sided])),
    )


def exchanged_in(dsc: Mapping[str, tuple[float, float]], what: str, others: str) -> tuple[str, list[str]]:
    """What there is to say of masks whose sides seem exchanged, and their cases; empty if there are none.

    Args:
        dsc: from `dsc_of_sides` by case.
        what, others: what was compared with what, in the plural: "masks", "references".
    """
    cases = [name for name, (now, then) in dsc.items() if then - now >= EXCHANGED_GAIN]
    if not cases:
        return "", []
    now, then = np.mean([dsc[name] for name in cases], axis=0)
    text = f"left and right seem exchanged between {what} and {others}, DSC {now:.2f}, {then:.2f} when exchanged"
    return text, cases
