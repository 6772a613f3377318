"""What a folder of DICOM files holds, for people."""

from __future__ import annotations

import os
import re
from pathlib import Path

import numpy as np

from parotid_seg.dicom.file import read_dicom
from parotid_seg.dicom.find import find_series
from parotid_seg.dicom.sequences import sequence_of
from parotid_seg.dicom.series import Series
from parotid_seg.dicom.values import text_of
from parotid_seg.errors import ScanError
from parotid_seg.scan.codes import plain
from parotid_seg.scan.volume import axis_codes

LONGEST_SHOWN = 64
"""Characters of a description, as many as the standard allows."""
IDENTITY = ("PatientName", "PatientID", "PatientBirthDate")
WITHHELD = "description withheld, as it may name the patient"


def describe_folder(path: Path) -> dict[str, str]:
    """What a folder of DICOM files holds, as label and value: the series that would be used, and what not and why.

    Args:
        path: a folder, searched at any depth without hidden files; or a DICOM file, which stands for its series: the
            slices are looked for in its folder.

    Raises:
        ScanError: if the file is not there.
    """
    if not path.exists():
        raise ScanError("no such file or folder", path=path)
    alone = path.is_file()
    files = sorted(path.parent.iterdir()) if alone else _files(path)
    found = find_series(each for each in files if each.is_file())
    series = [each for each in found.series if not alone or path in (one.path for one in each.slices)]
    facts = {
        "file" if alone else "folder": str(path),
        "kind": "DICOM file" if alone else f"folder of {len(files)} files",
        "series": f"{len(series)} of use" if series else "none of use",
    }
    facts |= {each.title: _describe(each) for each in series}
    if not (alone and series):
        facts |= {f"not used ({number})": str(left) for number, left in enumerate(found.left_out, start=1)}
    return facts


def _files(folder: Path) -> list[Path]:
    found = []
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found += [Path(parent, name) for name in sorted(names) if not name.startswith(".")]
    return found


def _describe(series: Series) -> str:
    spacing = " x ".join(f"{value:.4g}" for value in np.linalg.norm(series.affine[:3, :3], axis=0))
    to_ras = np.diag([-1.0, -1.0, 1.0, 1.0]) @ series.affine
    kind = f"{sequence_of(series)}, " if series.modality == "MR" else ""
    return (
        f"{kind}{len(series.slices)} slices of {series.rows} x {series.columns} voxels, {spacing} mm; slices, rows and "
        f"columns run to {axis_codes(to_ras)}; {_description(series)}; in {series.folder}"
    )


def _description(series: Series) -> str:
    """SeriesDescription on one line, unless it has a word of the patient's name, ID or birth date in it."""
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
