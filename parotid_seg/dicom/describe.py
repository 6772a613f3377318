"""A DICOM series described in one line of text."""

from __future__ import annotations

import numpy as np

from parotid_seg.dicom.mr.sequences import sequence_of
from parotid_seg.dicom.read.facts import WITHHELD
from parotid_seg.dicom.read.series import Series
from parotid_seg.scan.volume import axis_codes


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
    """SeriesDescription, as far as it may be shown."""
    described = series.facts.description
    if described == WITHHELD:
        return f"description {WITHHELD}"
    return f'"{described}"' if described else "no description"
