"""Matches labels of predictions and references that mean the same structure: by name, never by number."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from parotid_seg.errors import InputError, ScanError
from parotid_seg.files import hash_file, is_taken
from parotid_seg.records import read_record
from parotid_seg.scan.label_set import DESCRIPTION, LARGEST_VALUE, LabelSet, read_label_set
from parotid_seg.scan.labels import side_of, structure_words
from parotid_seg.scan.nifti import NiftiScan, read_mask
from parotid_seg.scan.volume import Mask

DEFAULT = LabelSet({"parotid_left": 1, "parotid_right": 2})
"""Labels of masks without a file that names them."""
RUN = "run.json"
"""File of `infer` that names its model's labels."""
RESULTS = "results.json"
"""File of `infer` with the structures of all masks of a folder."""
MODEL = "the model"
"""Source of the labels of a model's masks that are in no file."""


@dataclass(frozen=True)
class RecordedMask:
    """A mask in a results.json.

    Attributes:
        structures: their names, in the order of their numbers.
        sha256: of its file when it was written.
    """

    structures: tuple[str, ...]
    sha256: str


@dataclass(frozen=True)
class NamedLabels:
    """The labels of a folder of masks.

    Attributes:
        what: "predictions" or "references".
        labels: their names and numbers.
        source: the file that names them, or `MODEL`; None if there is none and `DEFAULT` is used.
        only: names of the labels that were written (`infer --only`); empty for all.
        recorded: each mask that `infer` has recorded, by its file's name; None if it has recorded nothing.
    """

    what: str
    labels: LabelSet
    source: Path | str | None = None
    only: tuple[str, ...] = ()
    recorded: Mapping[str, RecordedMask] | None = None

    @property
    def written(self) -> list[str]:
        """Names of the labels that the masks can show."""
        return [name for name in self.labels.values if not self.only or name in self.only]

    def __str__(self) -> str:
        numbers = ", ".join(f"{self.labels.values[name]} = {name}" for name in self.written)
        return f"{self.what} have {numbers} ({self.source or 'assumed, since no file names their labels'})"

    def check(self, mask: Mask, path: Path) -> None:
        """Raise ScanError if a mask holds a number without a name, or was made with other labels than the last one."""
        recorded = (self.recorded or {}).get(path.name)
        if recorded and list(recorded.structures) != self.written:
            shown = ", ".join(recorded.structures)
            raise ScanError(
                f"an earlier run made it, of {shown}; {self}; expected masks of the same structures", path=path
            )
        known = self.labels.known - {value for name, value in self.labels.values.items() if name not in self.written}
        unknown = sorted({int(value) for value in np.unique(mask)} - known)
        if unknown:
            numbers = ", ".join(map(str, unknown))
            expected = ", ".join(map(str, sorted(known)))
            raise ScanError(f"found label {numbers}, expected one of {expected}: {self}", path=path)

    def remark(self, path: Path) -> str:
        """A note if a mask is not the one that results.json records; empty if it is, or if there is no results.json."""
        if self.recorded is None:
            return ""
        recorded = self.recorded.get(path.name)
        if recorded is None:
            return f"{self.what} that the {RESULTS} beside them does not list, so that they are not of its run"
        return "" if hash_file(path) == recorded.sha256 else f"{self.what} that have changed since infer wrote them"


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

    def scored(self, prediction: Mask, reference: Mask) -> tuple[Mask, Mask, NDArray[np.bool_] | None]:
        """As `common`, with ignored voxels as background in both masks."""
        prediction, reference, ignored = self.common(prediction, reference)
        if ignored is not None:
            prediction, reference = np.where(ignored, 0, prediction), np.where(ignored, 0, reference)
        return prediction, reference, ignored

    @property
    def notes(self) -> list[str]:
        """Remarks on the figures, one line each."""
        notes = [f"{name} is called {other} in the references" for name, other in self.pairs.items() if name != other]
        for side, scored in ((self.predictions, self.pairs.keys()), (self.references, self.pairs.values())):
            if side.source is None:
                notes.append(str(side))
            if lonely := [name for name in side.written if name not in scored]:
                notes.append(f"not scored, since only the {side.what} have it: {', '.join(lonely)}")
        return notes


def match_labels(predictions: Path, references: Path) -> LabelMatch:
    """Match the labels of two folders of masks, or of one mask each, by name.

    Names match if they are equal, or if they mean the same structure and side ("Parotid_L" and "parotid_left").

    Raises:
        InputError: if a file that names labels is invalid, if labels are ambiguous, or if none match.
    """
    return _matched(
        _labels_beside(predictions, "predictions"), _labels_beside(references, "references"), (predictions, references)
    )


class Contours:
    """Reads a folder's contours with the numbers of a model's labels, matched by name.

    Args:
        model: names of the model's labels by value, background first.
        folder: of the contours, see `naming_file`.

    Raises:
        InputError: as `match_labels`.
    """

    def __init__(self, model: Sequence[str], folder: Path) -> None:
        numbers = {name: value for value, name in enumerate(model) if value}
        self._found = _labels_beside(folder, "contours")
        places = (folder, folder)
        pairs = _matched(NamedLabels("masks", LabelSet(numbers), MODEL), self._found, places).pairs
        self._values = np.zeros(LARGEST_VALUE + 1, np.uint8)
        for name, other in pairs.items():
            self._values[self._found.labels.values[other]] = numbers[name]

    def read(self, path: Path, scan: NiftiScan, *, complete: bool = False) -> Mask:
        """A contour (D, H, W) in the order of its scan's voxels; labels that the model lacks and ignored voxels are 0.

        Args:
            path: its file.
            scan: the scan.
            complete: whether ignored voxels are an error.

        Raises:
            ScanError: if it cannot be read, lies on other voxels, or holds a number without a name.
        """
        mask, _ = read_mask(path, like=scan)
        self._found.check(mask, path)
        if complete and self._found.labels.ignore is not None and (mask == self._found.labels.ignore).any():
            raise ScanError("found voxels labelled 'ignore', expected a contour of the whole scan", path=path)
        return self._values[mask]


def _matched(found: NamedLabels, expected: NamedLabels, places: tuple[Path, Path]) -> LabelMatch:
    """See `match_labels`; `places` are the folders of both."""
    predictions, references = places
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
    for name in found.written:
        same = [other for other in expected.written if other == name] or [
            other
            for other in expected.written
            if _meaning(other) == _meaning(name) and other not in found.labels.values
        ]
        if len(same) > 1 or (same and same[0] in pairs.values()):
            raise InputError(f"labels that mean the same cannot be matched: {found}; {expected}", path=references)
        if same:
            pairs[name] = same[0]
    if not pairs:
        raise InputError(f"no label has the same name on both sides: {found}; {expected}", path=references)
    return LabelMatch(found, expected, pairs)


def naming_file(place: Path) -> Path | None:
    """The file that names the labels of masks: that of the run that made them (run.json beside them), else that of
    their data set (dataset.json beside them or in the folder above); None if there is none. Raises InputError if
    another thing than a file has such a name.

    Args:
        place: their folder, or one mask. Above a folder that is a link is the link's data set, then that of its target.
    """
    folder = place.parent if place.is_file() else place
    above = folder.absolute().parent, folder.resolve().parent
    places = (folder / RUN, folder / DESCRIPTION, *(each / DESCRIPTION for each in above))
    for path in places:
        if path.is_file():
            return path
        if is_taken(path):
            raise InputError("found no regular file, expected the names of the masks' labels in it", path=path)
    return None


def _labels_beside(place: Path, what: str) -> NamedLabels:
    """The labels of masks, by `naming_file`."""
    path = naming_file(place)
    if path is None:
        return NamedLabels(what, DEFAULT)
    if path.name == RUN:
        labels, only = _of_model(path)
        return NamedLabels(what, labels, path, only, _recorded_in(path.with_name(RESULTS)))
    return NamedLabels(what, read_label_set(read_record(path, dict[str, Any]), path), path)


@dataclass(frozen=True)
class _RunFileContract:
    labels: tuple[str, ...]
    training: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class _RunFileModel:
    contract: _RunFileContract


@dataclass(frozen=True)
class _RunFileOptions:
    only: tuple[str, ...] = ()


@dataclass(frozen=True)
class RunFile:
    """The fields read from a run.json."""

    model: _RunFileModel
    options: _RunFileOptions = _RunFileOptions()


def read_run(path: Path) -> RunFile:
    """Read a run.json of `infer`.

    Raises:
        RecordError: if it is none.
    """
    return read_record(path, RunFile, unknown_fields=True, expected="a file of infer with the model's labels")


def _of_model(run: Path) -> tuple[LabelSet, tuple[str, ...]]:
    """The labels of the model of a run, and those of --only."""
    record = read_run(run)
    numbers = {name: value for value, name in enumerate(record.model.contract.labels)}
    return read_label_set({"labels": numbers}, run), record.options.only


@dataclass(frozen=True)
class _Structure:
    name: str


@dataclass(frozen=True)
class _Case:
    structures: tuple[_Structure, ...]
    files: dict[str, str]


@dataclass(frozen=True)
class _Results:
    """The fields read from a results.json."""

    cases: tuple[_Case, ...]


def _recorded_in(results: Path) -> dict[str, RecordedMask] | None:
    """All masks of a folder by the names of their files; several runs may have made them."""
    if not results.is_file():
        return None
    cases = read_record(results, _Results, unknown_fields=True, expected="a file of infer").cases
    return {
        name: RecordedMask(tuple(each.name for each in case.structures), sha256)
        for case in cases
        for name, sha256 in case.files.items()
    }


def _agrees_with_default(labels: LabelSet) -> bool:
    """Whether labels agree with `DEFAULT`, so that masks without names can be compared with them."""
    numbers = {_meaning(name): value for name, value in labels.values.items()}
    return all(numbers.get(_meaning(name)) == value for name, value in DEFAULT.values.items())


def _meaning(name: str) -> tuple[frozenset[str], str]:
    return structure_words(name), side_of(name)
