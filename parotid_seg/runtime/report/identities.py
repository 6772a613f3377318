"""The patients of DICOM scans, used by `infer --identify` only and shown only in summary.csv and the report."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from datetime import date

import msgspec

from parotid_seg.dicom.read.series import Series
from parotid_seg.errors import ScanError
from parotid_seg.runtime.pipeline.discovery import Case


class PatientIdentity(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A patient as in the file: untrusted text, empty where it is missing.

    Attributes:
        name: with its parts separated by "^", as in the file.
        id: PatientID.
        birth_date: YYYY-MM-DD; the file's text if it is not a date.
    """

    name: str = ""
    id: str = ""
    birth_date: str = ""

    def __str__(self) -> str:
        parts = (self.name, self.id and f"ID {self.id}", self.birth_date and f"born {self.birth_date}")
        return ", ".join(filter(None, parts))


def patients_of(cases: Iterable[Case]) -> dict[str, PatientIdentity]:
    """The patients of DICOM scans by case; unreadable files are skipped."""
    patients = {}
    for case in cases:
        series = case.scan[0]
        if isinstance(series, Series):
            with contextlib.suppress(ScanError):  # the case will fail for it
                patient = _patient_of(series)
                if str(patient):
                    patients[case.name] = patient
    return patients


def _patient_of(series: Series) -> PatientIdentity:
    from parotid_seg.dicom.phi_safe import phi_safe
    from parotid_seg.dicom.read.file import read_dicom
    from parotid_seg.dicom.read.text import text_of

    path = series.slices[0].path
    with phi_safe(path, "DICOM image"):
        file = read_dicom(path)
        if file is None:
            return PatientIdentity()
        texts = {}
        for keyword in ("PatientName", "PatientID", "PatientBirthDate"):
            with contextlib.suppress(ScanError):
                texts[keyword] = text_of(file.header, keyword, file.header).value.strip()
    return PatientIdentity(
        texts.get("PatientName", ""), texts.get("PatientID", ""), _iso(texts.get("PatientBirthDate", ""))
    )


def _iso(text: str) -> str:
    """A date such as 19500102 as 1950-01-02; other text unchanged."""
    try:
        return date.fromisoformat(text).isoformat() if len(text) == 8 and text.isdigit() else text
    except ValueError:
        return text
