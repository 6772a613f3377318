"""A DICOM series described in one line of text."""

from __future__ import annotations

import re

import numpy as np

from parotid_seg.dicom.mr.sequences import sequence_of
from parotid_seg.dicom.read.file import read_dicom
from parotid_seg.dicom.read.series import Series
from parotid_seg.dicom.read.values import text_of
from parotid_seg.errors import ScanError
from parotid_seg.scan.codes import plain
from parotid_seg.scan.volume import axis_codes

LONGEST_SHOWN = 64
"""Most characters of a description, as in the standard."""
IDENTITY = ("PatientName", "PatientID", "PatientBirthDate")
WITHHELD = "description withheld, as it may name the patient"


def describe_series(series: Series) -> str:
    """A series in one line: sequence of an MR series, size, spacing, directions, description and folder."""
    spacing = " x ".join(f"{value:.4g}" for value in np.linalg.norm(series.affine[:3, :3], axis=0))
    to_ras = np.diag([-1.0, -1.0, 1.0, 1.0]) @ series.affine
    kind = f"{sequence_of(series)}, " if series.modality == "MR" else ""
    return (
        f"{kind}{len(series.slices)} slices of {series.rows} x {series.columns} voxels, {spacing} mm; slices, rows and "
        f"columns run to {axis_codes(to_ras)}; {_description(series)}; in {series.folder}"
    )


def _description(series: Series) -> str:
    """SeriesDescription on one line, withheld if it contains a part of the patient's name, ID or birth date."""
    if not series.description:
        return "no description"
    try:
        file = read_dicom(series.slices[0].path)
        secrets = [] if file is None else [text_of(file.header, keyword) for keyword in IDENTITY]
    except ScanError:
        return WITHHELD
    words = {word for secret in secrets for word in (secret, *re.split(r"[\^=,;._\s-]+", secret)) if len(word) > 1}
    if any(word.casefold() in series.description.casefold() for word in words):
        return WITHHELD
    return f'"{plain(series.description)[:LONGEST_SHOWN]}"'
