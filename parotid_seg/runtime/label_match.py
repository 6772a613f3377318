"""Matches labels of predictions and references that mean the same structure: by name, never by number."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from parotid_seg.errors import InputError, RecordError, ScanError
from parotid_seg.records import read_record
from parotid_seg.scan.label_set import LARGEST_VALUE, LabelSet, read_label_set
from parotid_seg.scan.labels import side_of, structure_words
from parotid_seg.scan.volume import Mask

DEFAULT = LabelSet({"parotid_left": 1, "parotid_right": 2})
"""Labels of masks without a file that names them."""


@dataclass(frozen=True)
class NamedLabels:
    """The labels of a folder of masks.

    Attributes:
        what: "predictions" or "references".
        labels: their names and numbers.
        source: the file that names them; None if there is none and `DEFAULT` is used.
    """

    what: str
    labels: LabelSet
    source: Path | None = None

    def __str__(self) -> str:
        numbers = ", ".join(f"{value} = {name}" for name, value in self.labels.values.items())
        return f"{self.what} have {numbers} ({self.source or 'assumed, since no file names their labels'})"

    def check(self, mask: Mask, path: Path) -> None:
        """Raise ScanError if a mask holds a number without a name."""
        unknown = sorted({int(value) for value in np.unique(mask)} - self.labels.known)
        if unknown:
            numbers = ", ".join(map(str, unknown))
            expected = ", ".join(map(str, sorted(self.labels.known)))
            raise ScanError(f"found label {numbers}, expected one of {expected}: {self}", path=path)


@dataclass(frozen=True)
class LabelMatch:
    """Labels of the same name on both sides.

    Attributes:
        predictions, references: all labels of each.
        pairs: names in the references by names in the predictions, for labels that are scored.
    """

    predictions: NamedLabels
    references: NamedLabels
    pairs: Mapping[str, str]

    @property
    def names(self) -> tuple[str, ...]:
        """Names by the values in `common`, background first."""
        return ("background", *self.pairs)

    def common(self, prediction: Mask, reference: Mask) -> tuple[Mask, Mask, NDArray[np.bool_] | None]:
        """Both masks with the numbers of `names`, and the voxels that one of them ignores (None if neither has such a
        label).

        Labels without a counterpart become background.
        """
        of_predictions, of_references = np.zeros((2, LARGEST_VALUE + 1), np.uint8)
        for value, (name, other) in enumerate(self.pairs.items(), start=1):
            of_predictions[self.predictions.labels.values[name]] = value
            of_references[self.references.labels.values[other]] = value
        ignored = None
        for mask, side in ((prediction, self.predictions), (reference, self.references)):
            if side.labels.ignore is not None:
                ignored = (mask == side.labels.ignore) | (False if ignored is None else ignored)
        return of_predictions[prediction], of_references[reference], ignored

    @property
    def notes(self) -> list[str]:
        """Remarks on the figures, one line each."""
        notes = [f"{name} is called {other} in the references" for name, other in self.pairs.items() if name != other]
        for side, scored in ((self.predictions, self.pairs.keys()), (self.references, self.pairs.values())):
            if side.source is None:
                notes.append(str(side))
            if lonely := [name for name in side.labels.values if name not in scored]:
                notes.append(f"not scored, since only the {side.what} have it: {', '.join(lonely)}")
        return notes


def match_labels(predictions: Path, references: Path) -> LabelMatch:
    """Match the labels of two folders of masks, or of one mask each, by name.

    Names match if they are equal, or if they mean the same structure and side ("Parotid_L" and "parotid_left").

    Raises:
        InputError: if a file that names labels is invalid, if labels are ambiguous, or if none match.
    """
    found, expected = _labels_beside(predictions, "predictions"), _labels_beside(references, "references")
    for named_side, unnamed_side, place in ((found, expected, references), (expected, found, predictions)):
        if (
            named_side.source is not None
            and unnamed_side.source is None
            and not _agrees_with_default(named_side.labels)
        ):
            expects = "expected run.json or dataset.json beside them"
            raise InputError(
                f"nothing names the labels of these {unnamed_side.what}, {expects}: {named_side}", path=place
            )
    pairs: dict[str, str] = {}
    for name in found.labels.values:
        same = [other for other in expected.labels.values if other == name] or [
            other
            for other in expected.labels.values
            if _meaning(other) == _meaning(name) and other not in found.labels.values
        ]
        if len(same) > 1 or (same and same[0] in pairs.values()):
            raise InputError(f"labels that mean the same cannot be matched: {found}; {expected}", path=references)
        if same:
            pairs[name] = same[0]
    if not pairs:
        raise InputError(f"no label has the same name on both sides: {found}; {expected}", path=references)
    return LabelMatch(found, expected, pairs)


def _labels_beside(place: Path, what: str) -> NamedLabels:
    """The labels of the model that made the masks (run.json beside them), else those of their data set (dataset.json
    beside them or in the folder above)."""
    folder = place.parent if place.is_file() else place
    run = folder / "run.json"
    if run.is_file():
        return NamedLabels(what, _of_model(run), run)
    for path in (folder / "dataset.json", folder.resolve().parent / "dataset.json"):
        if path.is_file():
            return NamedLabels(what, read_label_set(read_record(path, dict[str, Any]), path), path)
    return NamedLabels(what, DEFAULT)


@dataclass(frozen=True)
class _RunFileContract:
    labels: tuple[str, ...]


@dataclass(frozen=True)
class _RunFileModel:
    contract: _RunFileContract


@dataclass(frozen=True)
class _RunFile:
    """The fields read from a run.json."""

    model: _RunFileModel


def _of_model(run: Path) -> LabelSet:
    try:
        names = read_record(run, _RunFile, unknown_fields=True).model.contract.labels
    except RecordError as error:
        raise InputError(f"{error.reason}; expected a file of infer with the model's labels", path=run) from error
    numbers = {name: value for value, name in enumerate(names)}
    return read_label_set({"labels": numbers}, run)


def _agrees_with_default(labels: LabelSet) -> bool:
    """Whether labels agree with `DEFAULT`, so that masks without names can be compared with them."""
    numbers = {_meaning(name): value for name, value in labels.values.items()}
    return all(numbers.get(_meaning(name)) == value for name, value in DEFAULT.values.items())


def _meaning(name: str) -> tuple[frozenset[str], str]:
    return structure_words(name), side_of(name)
