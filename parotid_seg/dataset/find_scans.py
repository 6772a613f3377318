"""Finds the scans in some folders, their patients, and their contours.

left_out.csv lists every file, series, structure set and ROI that was not used, and why.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from parotid_seg.dataset.dataset_options import DataSetOptions
from parotid_seg.dataset.roi_names import RoiNames
from parotid_seg.dataset.structures import (
    FRAME,
    REJECTED,
    Contoured,
    StructureSet,
    choose,
    is_rtstruct,
    read_meaning,
    read_structures,
    series_of,
)
from parotid_seg.dicom.read.file import read_patient_id, series_in_header
from parotid_seg.dicom.read.find import find_series
from parotid_seg.dicom.read.series import Series
from parotid_seg.errors import OptionError, ParotidSegError, ScanError
from parotid_seg.files import read_input
from parotid_seg.scan.codes import plain
from parotid_seg.scan.nifti import is_nifti
from parotid_seg.scan.search import Skipped, search
from parotid_seg.tables import write_csv
from parotid_seg.wording import Say, counted

FILE, SERIES, STRUCTURES, ROI = "file", "series", "structure set", "ROI"
MODALITY = "CT"


@dataclass(frozen=True)
class NotUsed:
    """An item that was not used.

    Attributes:
        kind: FILE, SERIES, STRUCTURES or ROI.
        place: its file, or a series' folder.
        reason: one line, without the place.
        name: of a ROI.
        review: whether a person should look at it, because it looks usable.
    """

    kind: str
    place: Path
    reason: str
    name: str = ""
    review: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "reason", plain(self.reason))

    @classmethod
    def because(cls, kind: str, place: Path, error: ParotidSegError) -> NotUsed:
        """An item that cannot be used because of an error; the error's path is named if it differs from the place."""
        return cls(kind, place, error.reason if error.path in (None, place) else str(error), review=True)

    def __str__(self) -> str:
        """One line."""
        return ": ".join(filter(None, (f"{self.kind} {self.place}", self.name, self.reason)))


def write_left_out(items: Iterable[NotUsed], path: Path) -> None:
    """Write a row for each item; no cell can act as a spreadsheet formula.

    Raises:
        OutputError: if that fails.
    """
    rows = [[each.kind, each.name, each.reason, "yes" if each.review else "", str(each.place)] for each in items]
    write_csv([["kind", "name", "reason", "look_at_it", "place"], *rows], path)


Skip = Callable[[NotUsed], None]
"""Called with each item that is not used."""


@dataclass(frozen=True, eq=False)
class CandidateScan:
    """A scan that can become a case.

    Attributes:
        patient_id: PatientID; empty if there is none.
        patient: what identifies the patient, see `_with_patients`.
        contoured: the chosen structure set; None if there is no usable one.
    """

    series: Series
    patient_id: str
    contoured: Contoured | None
    patient: str = ""


def find_candidates(
    places: Sequence[Path],
    ignore: Iterable[Path],
    names: RoiNames,
    options: DataSetOptions,
    skip: Skip,
    say: Say,
) -> list[CandidateScan]:
    """CT series under some folders, each with its chosen structure set.

    Args:
        places: folders and files, searched at any depth without hidden files; links are followed, see `search`.
        ignore: folders that are results.
        names: what the names of ROIs mean.
        options: which contours are usable, and preferred.
        skip: called with each file, series, structure set and ROI that is not used.
        say: called with lines for the user.

    Raises:
        InputError: if a place is missing.
    """
    files = _files(places, ignore, skip)
    rtstructs = {path: None for path in files if is_rtstruct(path)}
    sets = _structure_sets(rtstructs, skip)
    if options.prefer is not None and not any(each.has_label(options.prefer) for each in sets):
        say(f"--prefer {options.prefer}: found no structure set of this label; the other rules decide")
    series, left_out = _series_and_drawn_on([path for path in files if path not in rtstructs], sets)
    for files_left in left_out:
        counts = files_left.kind != "MR series"  # an incomplete one would not be used if it were complete
        skip(NotUsed(FILE, files_left.path, files_left.as_error().reason, review=files_left.refused and counts))
    by_series: dict[Series, list[tuple[StructureSet, str]]] = {}
    for structures in sets:
        try:
            drawn_on, by = series_of(structures, series, names)
            if by == FRAME and structures.series_uids & _refused_series(left_out):
                raise ScanError("drawn on a series that cannot be used", path=structures.path)
            by_series.setdefault(drawn_on, []).append((structures, by))
        except ScanError as error:
            skip(NotUsed.because(STRUCTURES, structures.path, error))
    candidates = []
    for each in series:
        try:
            candidates.append(_candidate(each, by_series.get(each, []), names, options, skip))
        except ScanError as error:
            skip(NotUsed.because(SERIES, each.folder, error))
    return _with_patients([each for each in candidates if each is not None], say)


def _with_patients(candidates: Sequence[CandidateScan], say: Say) -> list[CandidateScan]:
    """The scans with what identifies their patients: PatientID in lower case; where it is empty that of the study's
    other scans, or the study's UID, so that different patients are never merged."""
    of_study: dict[str, set[str]] = {}
    for each in candidates:
        of_study.setdefault(each.series.study_uid, set()).add(each.patient_id.casefold())
    known = {study: ids - {""} for study, ids in of_study.items()}
    if several := sum(len(ids) > 1 for ids in known.values()):
        say(
            f"note: {counted(several, 'study')} with scans of several PatientIDs, which count as several patients and "
            "may be in several lists"
        )
    found = []
    for each in candidates:
        study = each.series.study_uid
        only = next(iter(known[study])) if len(known[study]) == 1 else f"study {study}"
        found.append(replace(each, patient=each.patient_id.casefold() or only))
    return found


def _files(places: Sequence[Path], ignore: Iterable[Path], skip: Skip) -> list[Path]:
    """Every file except NIfTI files, once."""
    for place in places:
        if not place.exists():
            raise OptionError("no such file or folder", path=place)
    searched = search(places, ignore)
    for each in searched.left_out:
        skip(NotUsed(FILE, each.path, each.as_error().reason, review=each.refused))
    return [path for path in searched.files if not is_nifti(path)]


def _structure_sets(paths: Iterable[Path], skip: Skip) -> list[StructureSet]:
    """Structure sets, without copies of a file."""
    sets: dict[bytes, StructureSet] = {}
    for path in paths:
        try:
            structures = read_structures(path)
            first = sets.setdefault(hashlib.sha256(read_input(path)).digest(), structures)
        except ScanError as error:
            skip(NotUsed.because(STRUCTURES, path, error))
        except OSError as error:
            skip(NotUsed(STRUCTURES, path, f"cannot be read ({error.strerror})", review=True))
        else:
            if first is not structures:
                skip(NotUsed(STRUCTURES, path, f"the same file as {first.path}"))
    return list(sets.values())


def _series_and_drawn_on(
    files: Sequence[Path], sets: Sequence[StructureSet]
) -> tuple[list[Series], tuple[Skipped, ...]]:
    """Series, and the files that are not used.

    Where a study has original images, `find_series` skips images derived from them. But contours may be drawn on
    derived images, so images that a structure set refers to are also searched among the skipped files.
    """
    found = find_series(files)
    image_uids = {each.sop_instance_uid for series in found.series for each in series.slices}
    lost = frozenset[str]().union(*(each.instance_uids for each in sets if not each.instance_uids & image_uids))
    used = {each.path for series in found.series for each in series.slices}
    further = find_series([path for path in files if path not in used]).series if lost else ()
    drawn_on = [series for series in further if any(each.sop_instance_uid in lost for each in series.slices)]
    if not drawn_on:
        return list(found.series), found.left_out
    used = {each.path for series in drawn_on for each in series.slices}
    found = find_series([path for path in files if path not in used])
    return [*found.series, *drawn_on], found.left_out


def _refused_series(left_out: Iterable[Skipped]) -> frozenset[str]:
    """UIDs of the series of files that cannot be used."""
    return frozenset(series_in_header(path) for each in left_out if each.refused for path in each.files) - {""}


def _candidate(
    series: Series, sets: Sequence[tuple[StructureSet, str]], names: RoiNames, options: DataSetOptions, skip: Skip
) -> CandidateScan | None:
    if series.modality != MODALITY:
        reason = f"found modality {series.modality}, expected {MODALITY}"
        skip(NotUsed(SERIES, series.folder, reason))
        for structures, by in sets:
            usable = bool(read_meaning(structures, by, names, series.frame_of_reference_uid).rois)
            reason = f"drawn on a series of modality {series.modality}"
            skip(NotUsed(STRUCTURES, structures.path, reason, review=usable))
        return None
    patient_id, structure_sets = read_patient_id(series.slices[0].path), []
    for structures, by in sets:
        if patient_id and structures.patient_id and structures.patient_id != patient_id:
            skip(NotUsed(STRUCTURES, structures.path, "its PatientID differs from that of its series", review=True))
        else:
            structure_sets.append((structures, by))
    return CandidateScan(series, patient_id, _contoured(series, structure_sets, names, options, skip))


def _contoured(
    series: Series, sets: Sequence[tuple[StructureSet, str]], names: RoiNames, options: DataSetOptions, skip: Skip
) -> Contoured | None:
    """The chosen structure set, or None if there is no usable one; the others are passed to `skip`."""
    usable = []
    for structures, by in sets:
        contoured = read_meaning(structures, by, names, series.frame_of_reference_uid)
        if structures.approval == REJECTED:
            skip(NotUsed(STRUCTURES, structures.path, f"its approval status is {REJECTED}"))
        elif not contoured.rois.keys() & set(names.structures):
            reason = "no ROI with contours can be used as a label; a line for each ROI says why"
            skip(NotUsed(STRUCTURES, structures.path, reason, review=contoured.near))
            _skip_unused_rois(contoured, skip)
        else:
            usable.append(contoured)
    if not usable:
        return None
    try:
        chosen = choose(usable, options.prefer)
    except ScanError as error:
        for each in usable:
            skip(NotUsed.because(STRUCTURES, each.structures.path, error))
        return None
    for each in usable:
        if each is not chosen:
            skip(
                NotUsed(
                    STRUCTURES,
                    each.structures.path,
                    f"another structure set of the series is used: {chosen.structures.path}",
                )
            )
    _skip_unused_rois(chosen, skip)
    if reason := _unfit(chosen, names, options.partial):
        skip(NotUsed(STRUCTURES, chosen.structures.path, reason, review=True))
        return None
    return chosen


def _unfit(contoured: Contoured, names: RoiNames, partial: bool) -> str:
    """Why a structure set's ROIs cannot be the labels; empty if they can."""
    for label, rois in contoured.rois.items():
        if len(rois) > 1:
            found = ", ".join(roi.shown for roi in rois)
            return f"{len(rois)} ROIs mean {label}: {found} (--names may name one of them)"
    missing = [label for label in names.structures if label not in contoured.rois]
    if missing and not partial:
        return f"no contours of {', '.join(missing)}, which would be learnt as background (--partial keeps the scan)"
    return ""


def _skip_unused_rois(contoured: Contoured, skip: Skip) -> None:
    for each in contoured.unused:
        skip(NotUsed(ROI, contoured.structures.path, each.reason, name=each.shown, review=each.review))
