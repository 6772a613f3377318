"""Finds the dose of each case among the files of --dose, and gives the mean dose of its structures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from parotid_seg.dicom.read.dose import PLAN, RtDose, find_dose, read_dose
from parotid_seg.dicom.read.file import read_patient_id
from parotid_seg.dicom.read.series import Series
from parotid_seg.errors import OptionError, ScanError
from parotid_seg.files import exists, hash_file
from parotid_seg.flags import Flag, FlagCode
from parotid_seg.scan.dose_grid import DoseGrid, read_nifti_dose, structure_doses
from parotid_seg.scan.nifti import case_name, is_nifti
from parotid_seg.scan.search import search
from parotid_seg.scan.volume import Mask
from parotid_seg.wording import some_of


@dataclass(frozen=True)
class Doses:
    """The doses of a file or folder.

    Attributes:
        place: the file or folder.
        nifti: NIfTI files.
        rt: RT Dose objects; of equal files one.
        unreadable: errors of DICOM files that cannot be read.
    """

    place: Path
    nifti: list[Path] = field(default_factory=list)
    rt: list[RtDose] = field(default_factory=list)
    unreadable: list[ScanError] = field(default_factory=list)

    @classmethod
    def below(cls, place: Path) -> Doses:
        """Find doses in a file or folder by the headers of its files.

        Raises:
            OptionError: if there is no such file or folder.
            ScanError: if it holds no dose.
        """
        if not exists(place):
            raise OptionError("--dose: no such file or folder", path=place)
        doses, by_uid = cls(place), dict[str, Path]()
        for path in search([place]).files:
            if is_nifti(path):
                doses.nifti.append(path)
                continue
            try:
                found = find_dose(path)
            except ScanError as error:
                doses.unreadable.append(error)
                continue
            if found:
                first = by_uid.setdefault(found.sop_instance_uid, path)
                if first == path or hash_file(first) != hash_file(path):
                    doses.rt.append(found)
        if not doses.nifti and not doses.rt:
            raise ScanError(f"--dose: found no dose, expected RTDOSE or NIfTI{doses._lost()}", path=place)
        return doses

    def of_case(self, name: str, series: Series | None, *, only: bool = False) -> Path:
        """The dose of a case.

        An RTDOSE belongs to the series of its frame of reference, unless their PatientIDs differ, and if there are
        several to that of its study. A NIfTI dose, and any dose of a scan that is no DICOM series, belongs to the case
        of its name; an RTDOSE in a subfolder to the case of that folder's name.

        Args:
            name: of the case.
            series: its scan if it is a DICOM series.
            only: whether there is no other case, nor a scan that was refused, so that a single file needs no name.

        Raises:
            ScanError: if there is none, or more than one.
        """
        found = [path for path in self.nifti if case_name(path) == name]
        if series:
            found += self._of_series(series)
        else:
            same = [dose for dose in self.rt if self._has_name(dose.path, name)]
            found += [dose.path for dose in same if dose.summation == PLAN] or [dose.path for dose in same]
        if not found and only and self.place.is_file():
            found = [*self.nifti] if series else [*self.nifti, *(dose.path for dose in self.rt)]
        if len(found) != 1:
            where = f"in the frame of reference of {series.title} or named {name}" if series else f"named {name}"
            doses = f"{len(found)} doses ({some_of(path.name for path in found)})" if found else "no dose"
            raise ScanError(f"--dose: found {doses} {where}, expected one{self._lost()}", path=self.place)
        return found[0]

    def _has_name(self, path: Path, case: str) -> bool:
        """Whether the folder of an RTDOSE has the name of a case; of a file in `place` itself, its own name counts."""
        place = self.place.absolute()
        in_place = path.absolute() == place or path.parent.absolute() == place
        return case in (path.stem, path.name) if in_place else path.parent.name == case

    def _of_series(self, series: Series) -> list[Path]:
        """Doses of plans in a series' frame of reference."""
        frame = series.frame_of_reference_uid
        same = [dose for dose in self.rt if frame and dose.frame_of_reference_uid == frame]
        if same:
            same = self._of_patient(same, read_patient_id(series.slices[0].path))
        same = [dose for dose in same if dose.study_uid == series.study_uid] or same
        plans = [dose.path for dose in same if dose.summation == PLAN]
        if same and not plans:
            raise ScanError(f"found DoseSummationType {same[0].summation}, expected {PLAN}", path=same[0].path)
        return plans

    def _of_patient(self, doses: Sequence[RtDose], patient_id: str) -> list[RtDose]:
        """The doses whose PatientID is not another one; where the dose or the series has none, nothing is compared.

        Raises:
            ScanError: if all are of another patient.
        """
        found = [dose for dose in doses if not patient_id or dose.patient_id in ("", patient_id)]
        if not found:
            reason = "in the series' frame of reference, but of another patient: the PatientIDs differ"
            raise ScanError(f"--dose: {reason}", path=doses[0].path)
        return found

    def _lost(self) -> str:
        """A file that may be the missing dose, for a message; without its folder, which may name the patient."""
        faults = [f"; {Path(str(each.path)).name}: {each.reason}" for each in self.unreadable]
        faults += [f"; {each.path.name}: no FrameOfReferenceUID" for each in self.rt if not each.frame_of_reference_uid]
        return faults[0] if faults else ""


class CaseDose(NamedTuple):
    """Mean doses of a case.

    Attributes:
        mean_gy: by structure; none of those that are empty or wholly outside the dose grid.
        flags: remarks on the dose.
    """

    mean_gy: dict[str, float]
    flags: tuple[Flag, ...]


def read(path: Path, *, in_frame: bool) -> DoseGrid:
    """Read an RTDOSE or a NIfTI dose.

    Args:
        path: its file.
        in_frame: whether the scan states its frame of reference, which is that of an RTDOSE then.

    Raises:
        ScanError: as `read_dose` and `read_nifti_dose`.
    """
    if is_nifti(path):
        return read_nifti_dose(path)
    dose = read_dose(path)
    return dose if in_frame else replace(dose, flags=(*dose.flags, Flag(FlagCode.DOSE_FRAME_UNKNOWN)))


def mean_doses(dose: DoseGrid, labels: Mask, affine: NDArray[np.float64], names: Sequence[str]) -> CaseDose:
    """The mean dose of the structures of a mask.

    Args:
        dose: from `read`.
        labels: uint8 (I, J, K) in storage order.
        affine: (4, 4), from a voxel's indices to RAS in mm.
        names: of the labels by value, background first.
    """
    found = {names[value]: each for value, each in structure_doses(labels, affine, dose).items()}
    outside = (
        Flag(FlagCode.DOSE_PARTLY_OUTSIDE, name, each.outside) for name, each in found.items() if each.outside > 0
    )
    mean_gy = {name: each.mean_gy for name, each in found.items() if each.mean_gy is not None}
    return CaseDose(mean_gy, (*dose.flags, *outside))
