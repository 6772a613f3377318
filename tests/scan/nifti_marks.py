"""NIfTI files whose headers say who the patient is, everywhere where one can."""

from __future__ import annotations

import gzip
from pathlib import Path

import nibabel
import numpy as np
from nibabel.nifti1 import Nifti1Extension

MARK, BORN = "Zqmarker", "19310207"
FIELDS = ("descrip", "aux_file", "intent_name", "db_name", "data_type")
"""Fields of a header that hold text."""
DICOM, AFNI, COMMENT, XCEDE = 2, 4, 6, 8
"""Codes of extensions (nifti1_io.h)."""


def _element(group: int, element: int, vr: bytes, text: str) -> bytes:
    content = text.encode() + b" " * (len(text) % 2)
    return np.array([group, element], "<u2").tobytes() + vr + np.array([len(content)], "<u2").tobytes() + content


def mark(path: Path) -> None:
    """Put marks into a .nii.gz: texts, extensions, and what gzip says of a file. Voxels and place stay."""
    image = nibabel.load(path)
    header = image.header.copy()
    dicom = b"".join(
        _element(0x10, element, vr, text)
        for element, vr, text in ((0x10, b"PN", f"{MARK}^Zoe"), (0x20, b"LO", MARK), (0x30, b"DA", BORN))
    )
    for code, content in (
        (DICOM, dicom),
        (AFNI, f'<AFNI_atr atr_name="HISTORY_NOTE">"{MARK}"</AFNI_atr>'.encode()),
        (COMMENT, f"scan of {MARK}, born 1931-02-07".encode()),
        (XCEDE, f"<subject>{MARK}</subject>".encode()),
    ):
        header.extensions.append(Nifti1Extension(code, content))
    for name in FIELDS:
        header[name] = MARK.encode()
    content = type(image)(np.asarray(image.dataobj), None, header).to_bytes()
    with path.open("wb") as file, gzip.GzipFile(f"{MARK}.nii", "wb", fileobj=file) as packed:
        packed.write(content)
