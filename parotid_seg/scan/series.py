"""A DICOM series as it was found: which file or frame is which slice, and where it lies in the patient.

`scan.dicom` finds and reads series; what is written in DICOM refers to them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Slice:
    """One image of a series.

    Attributes:
        path: its file.
        frame: its number in a multi-frame file, from 0; None in a file of one image.
        sop_class_uid, sop_instance_uid: of the file.
    """

    path: Path
    frame: int | None
    sop_class_uid: str
    sop_instance_uid: str


@dataclass(frozen=True, eq=False)
class Series:
    """Slices of one series that are one volume: parallel, evenly spaced, in order.

    Attributes:
        slices: in the order of their position along the normal of their rows and columns.
        rows, columns: voxels of a slice.
        affine: (4, 4), from (slice, row, column, 1) to the patient's x, y, z in mm, which run to the patient's left,
            back and head (LPS); of voxels' centres.
        modality: for example "CT".
        description: SeriesDescription as it stands in the file: untrusted text that may name the patient.
        series_uid, study_uid, frame_of_reference_uid: UIDs.
    """

    slices: tuple[Slice, ...]
    rows: int
    columns: int
    affine: NDArray[np.float64]
    modality: str
    description: str
    series_uid: str
    study_uid: str
    frame_of_reference_uid: str
