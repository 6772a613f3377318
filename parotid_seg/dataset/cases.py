"""Scans become cases of a data set, each whole or not at all.

A case's files are made again if its images, its contours or their meaning have changed. The old files are removed
first, so that labels and scan of a case always belong together.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from parotid_seg.dataset.convert import canonical, check_sides, draw, unusual_volumes
from parotid_seg.dataset.find_scans import MODALITY, SERIES, STRUCTURES, CandidateScan, NotUsed, Skip
from parotid_seg.dataset.private import ABSENT, FOLDERS, LABELLED, UNLABELLED, DataSetCase, Private
from parotid_seg.dataset.splits import TRAIN
from parotid_seg.dataset.structures import FRAME, Contoured
from parotid_seg.dicom.read.series_volume import read_series
from parotid_seg.errors import OutputError, ScanError
from parotid_seg.files import make_folder_in
from parotid_seg.flags import Flag, FlagCode
from parotid_seg.runtime.pipeline.apart import with_care
from parotid_seg.runtime.report.flag_text import sentence
from parotid_seg.scan.ct.hounsfield import check_hounsfield
from parotid_seg.scan.ct.slice_order import misfits
from parotid_seg.scan.label_set import DESCRIPTION
from parotid_seg.scan.nifti import NiftiScan, read_nifti, write_volume
from parotid_seg.wording import Progress, Say, counted, some_of

ENDING = ".nii.gz"
FORMAT = 6
"""Version of the conversion: raised whenever its result can change, so that all cases are made again."""


class _UnreadableScanError(ScanError):
    """The scan itself cannot be read or trained on, independent of its contours."""


@dataclass
class Making:
    """One run over the scans that were found.

    Attributes:
        out: the data set's folder.
        private: its cases.
        labels: names, in the order of their values from 1.
        say, progress, skip: called with lines for the user, with steps, and with unused items.
        made: cases made, or made again.
    """

    out: Path
    private: Private
    labels: Sequence[str]
    say: Say
    progress: Progress
    skip: Skip
    made: int = 0

    def forget_lost(self) -> None:
        """Record which cases of earlier runs have lost a file, so that they are made again or count as absent."""
        lost = [case for case in self.private.cases.values() if case.kind != ABSENT and not self._has_files(case)]
        for case in lost:
            self.private.keep(DataSetCase(case.name, case.series, case.patient))
        if lost:
            names = some_of(case.name for case in lost)
            self.say(
                f"{counted(len(lost), 'case')} of earlier runs lack files, made again if their scans are here: {names}"
            )

    def cases_of(self, candidates: Sequence[CandidateScan]) -> dict[CandidateScan, DataSetCase]:
        """The case of each scan; new ones are numbered in an order that reveals nothing about patients and folders.

        A scan whose series UID is that of another patient's case is passed to `skip`.
        """
        names, cases = self._names_of(candidates), {}
        ordered = sorted(candidates, key=lambda each: hashlib.sha256(names[each].encode()).hexdigest())
        for each in ordered:
            series, patient = self.private.pseudonym(names[each]), self.private.pseudonym(each.patient)
            known = self.private.known(series)
            try:
                if known and known.patient != patient:
                    self._check_same_scan(each, known)
            except ScanError as error:
                self.skip(NotUsed.because(SERIES, each.series.folder, error))
                continue
            cases[each] = self.private.case_of(series, patient)
        return cases

    def _names_of(self, candidates: Sequence[CandidateScan]) -> dict[CandidateScan, str]:
        """As `_names`, but the only case of a series UID keeps its name when other patients come to share the UID."""
        names, pseudonym = _names(candidates), self.private.pseudonym
        for each in candidates:
            alone = f"{each.series.series_uid} "  # as `_names` names a series that is one scan of one patient
            known = self.private.known(pseudonym(alone))
            if known and known.patient == pseudonym(each.patient) and alone not in names.values():
                names[each] = alone
        return names

    def _check_same_scan(self, candidate: CandidateScan, case: DataSetCase) -> None:
        """Raise ScanError unless a case whose PatientID is now another one still has the same images."""
        path = self._image_path(case, case.kind)
        if not path.is_file():
            return
        if not np.array_equal(_read(candidate).volume.voxels, read_nifti(path).volume.voxels):
            raise ScanError(
                f"its series UID is that of {case.name}, which has another PatientID and other images; "
                "expected a series UID of its own, or another --out"
            )

    def labelled(self, cases: Mapping[CandidateScan, DataSetCase]) -> dict[CandidateScan, DataSetCase]:
        """Make the cases with labels.

        Returns:
            Scans without usable contours, which can become cases without labels. A scan that cannot be read is not
            among them; its existing files stay.
        """
        for folder in FOLDERS:
            make_folder_in(self.out, folder)
        others = {}
        for index, (candidate, case) in enumerate(cases.items()):
            self.progress("contours", index, len(cases))
            try:
                if candidate.contoured:
                    self._label(candidate, candidate.contoured, case)
                    continue
            except _UnreadableScanError as error:
                self.skip(NotUsed.because(SERIES, candidate.series.folder, error))
                continue
            except ScanError as error:
                assert candidate.contoured
                self.skip(NotUsed.because(STRUCTURES, candidate.contoured.structures.path, error))
            others[candidate] = self._without_files(case) if case.kind == LABELLED else case
        return others

    def unlabelled(self, scans: Mapping[CandidateScan, DataSetCase], roles: Mapping[str, str]) -> None:
        """Make the cases without labels, except those of held-out patients.

        Args:
            scans: see `labelled`.
            roles: list of splits.json by patient.
        """
        for case in list(self.private.cases.values()):
            if case.kind == UNLABELLED and roles.get(case.patient, TRAIN) != TRAIN:
                self._without_files(case)
        for index, (candidate, case) in enumerate(scans.items()):
            self.progress("scans without contours", index, len(scans))
            if (role := roles.get(case.patient, TRAIN)) != TRAIN:
                reason = f"without labels, and the patient is in the list {role!r}, of which nothing may be learnt"
                self.skip(NotUsed(SERIES, candidate.series.folder, reason))
                continue
            try:
                self._keep_scan(candidate, case)
            except ScanError as error:
                self.skip(NotUsed.because(SERIES, candidate.series.folder, error))

    def _label(self, candidate: CandidateScan, contoured: Contoured, case: DataSetCase) -> None:
        key = _key(candidate)
        path = contoured.structures.path
        folder = str(candidate.series.folder)
        if self._is_up_to_date(case, LABELLED, key):
            self._update_source(case, folder, str(path), contoured.by)
            return
        mask, flags = draw(contoured, candidate.series, self.labels)
        scan = _read(candidate)
        labels = canonical(mask, scan)
        check_sides(labels, self.labels, scan, path)
        by_frame = (Flag(FlagCode.MATCHED_BY_FRAME),) if contoured.by == FRAME else ()
        flags = (*_flags_of_scan(scan), *by_frame, *flags, *unusual_volumes(labels, self.labels, scan))
        case = self._without_files(case)
        write_volume(labels, scan, self._label_path(case))
        write_volume(scan.volume.voxels[0], scan, self._image_path(case, LABELLED))
        shown = tuple(label for label in self.labels if label in contoured.rois)
        labelled_case = replace(case, kind=LABELLED, key=key, labels=shown, flags=flags)
        self._keep(replace(labelled_case, folder=folder, structures=str(path), by=contoured.by))

    def _keep_scan(self, candidate: CandidateScan, case: DataSetCase) -> None:
        key = _key(replace(candidate, contoured=None))
        folder = str(candidate.series.folder)
        if self._is_up_to_date(case, UNLABELLED, key):
            self._update_source(case, folder)
            return
        scan = _read(candidate)
        case = self._without_files(case)
        write_volume(scan.volume.voxels[0], scan, self._image_path(case, UNLABELLED))
        self._keep(replace(case, kind=UNLABELLED, key=key, flags=_flags_of_scan(scan), folder=folder))

    def _keep(self, case: DataSetCase) -> None:
        self.private.keep(case)
        self.made += 1
        description = "; ".join((", ".join(case.labels) or "no labels", *map(sentence, case.flags)))
        self.say(f"{case.name}: {description}")

    def _update_source(self, case: DataSetCase, folder: str, structures: str = "", by: str = "") -> None:
        """Record where the source of a case's files is now."""
        if (found := replace(case, folder=folder, structures=structures, by=by)) != case:
            self.private.keep(found)

    def _is_up_to_date(self, case: DataSetCase, kind: str, key: str) -> bool:
        """Whether a case's files are there, of this kind and made from the sources with this key."""
        return (case.kind, case.key) == (kind, key) and self._has_files(case)

    def _has_files(self, case: DataSetCase) -> bool:
        files = [self._image_path(case, case.kind), *([self._label_path(case)] if case.kind == LABELLED else [])]
        return all(path.is_file() for path in files)

    def _without_files(self, case: DataSetCase) -> DataSetCase:
        """Remove the files of a case, and dataset.json first: until the run has ended, nothing may be trained."""
        case = DataSetCase(case.name, case.series, case.patient)
        self.private.keep(case)
        images = [self._image_path(case, kind) for kind in (LABELLED, UNLABELLED)]
        for path in (self.out / DESCRIPTION, *images, self._label_path(case)):
            try:
                path.unlink(missing_ok=True)
            except OSError as error:
                raise OutputError(f"cannot be removed ({error.strerror})", path=path) from error
        return case

    def _image_path(self, case: DataSetCase, kind: str) -> Path:
        return self.out / ("imagesTr" if kind == LABELLED else "imagesUn") / f"{case.name}_0000{ENDING}"

    def _label_path(self, case: DataSetCase) -> Path:
        return self.out / "labelsTr" / f"{case.name}{ENDING}"


def _names(candidates: Sequence[CandidateScan]) -> dict[CandidateScan, str]:
    """A unique identifier of each scan.

    If several patients or studies have one series UID, as after a careless anonymisation, the parts of the series are
    numbered anew whenever one of them comes or goes; then each patient's are counted.
    """
    by_uid: dict[str, dict[tuple[str, str], list[CandidateScan]]] = {}
    for each in candidates:
        owners = by_uid.setdefault(each.series.series_uid, {})
        owners.setdefault((each.series.study_uid, each.patient), []).append(each)
    return {
        each: f"{uid} {each.series.part}" if len(owners) == 1 else " ".join((uid, *owner, str(number)))
        for uid, owners in by_uid.items()
        for owner, scans in owners.items()
        for number, each in enumerate(scans)
    }


def _key(candidate: CandidateScan) -> str:
    """Key of a case's sources: which images and contours, in files of which sizes and dates.

    Raises:
        ScanError: if a file is gone.
    """
    content: list[object] = [FORMAT]
    try:
        for image in candidate.series.slices:
            content.append((image.sop_instance_uid, image.frame, *_size_and_date(image.path)))
        if candidate.contoured:
            path = candidate.contoured.structures.path
            content.append((candidate.contoured.structures.sop_instance_uid, *_size_and_date(path)))
            content += [
                (label, *(roi.place for roi in rois)) for label, rois in sorted(candidate.contoured.rois.items())
            ]
    except OSError as error:
        raise _UnreadableScanError(f"{candidate.series.folder}: a file cannot be read ({error.strerror})") from error
    return hashlib.sha256(repr(content).encode()).hexdigest()


def _size_and_date(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns


def _flags_of_scan(scan: NiftiScan) -> tuple[Flag, ...]:
    return (*scan.volume.flags, *misfits(scan.volume, (MODALITY,)))


def _read(candidate: CandidateScan) -> NiftiScan:
    """Read a scan, and check that it is in HU; doubts are added to its flags.

    Raises:
        _UnreadableScanError: if it cannot be read, or `train` would refuse it.
    """
    try:
        scan = with_care((candidate.series,), read_series, candidate.series)
        doubts = check_hounsfield(scan.volume.voxels[0], scan.volume.spacing_mm)
    except ScanError as error:
        raise _UnreadableScanError(error.reason, path=error.path or candidate.series.folder) from error
    return replace(scan, volume=replace(scan.volume, flags=(*scan.volume.flags, *doubts)))
