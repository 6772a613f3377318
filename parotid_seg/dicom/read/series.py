"""A DICOM series: the file or frame of each slice, and its position in the patient.

`find` finds series and `volume` reads them; written DICOM objects refer to them.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from parotid_seg.flags import Flag


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


@dataclass(frozen=True)
class SeriesFacts:
    """What the header of a series says of its acquisition, see `facts.read_facts`.

    Attributes:
        modality: "CT" or "MR".
        number: SeriesNumber; None if there is none.
        description: SeriesDescription.
        kv: tube voltage in kV (KVP); None if it is not stated.
        kernel: reconstruction kernel (ConvolutionKernel).
        tesla: strength of the magnetic field; None if it is not stated.
        scanner: manufacturer and model.
    """

    modality: str
    number: int | None = None
    description: str = ""
    kv: float | None = None
    kernel: str = ""
    tesla: float | None = None
    scanner: str = ""


@dataclass(frozen=True, eq=False)
class Series:
    """Slices of one series that form a volume: parallel, evenly spaced, in order.

    Attributes:
        slices: in the order of their position along the normal of their rows and columns.
        rows, columns: voxels of a slice.
        affine: (4, 4), from (slice, row, column, 1) of a voxel's centre to the patient's x, y, z in mm, which run to
            the patient's left, back and head (LPS).
        modality: "CT" or "MR".
        facts: what its header says of the acquisition.
        series_uid, study_uid, frame_of_reference_uid: UIDs; the last one is empty if the files have none.
        number: SeriesNumber; None if there is none.
        folder: the deepest folder that contains all of its files.
        part: distinguishes this volume from others of the same series, in lower-case letters, digits and hyphens
            ("echo-2"); empty if it is the only one.
        flags: remarks from the search.
        patient: hash of the patient's identity, see `frame.Owner`; empty if it is unknown.
    """

    slices: tuple[Slice, ...]
    rows: int
    columns: int
    affine: NDArray[np.float64]
    modality: str
    facts: SeriesFacts
    series_uid: str
    study_uid: str
    frame_of_reference_uid: str
    number: int | None
    folder: Path
    part: str = ""
    flags: tuple[Flag, ...] = ()
    patient: str = ""

    @property
    def key(self) -> str:
        """A short, stable name without patient data."""
        key = series_key(self.series_uid)
        return f"{key}-{self.part}" if self.part else key

    @property
    def voxels(self) -> int:
        """Number of voxels."""
        return len(self.slices) * self.rows * self.columns

    @property
    def title(self) -> str:
        """Its name in messages."""
        return series_title(self.modality, self.number, self.key)


def series_key(series_uid: str) -> str:
    """The first 8 hexadecimal digits of the SHA-256 of a series' UID, equal for all volumes of the series."""
    return hashlib.sha256(series_uid.encode()).hexdigest()[:8]


def series_title(modality: str, number: int | None, key: str) -> str:
    """A series' name in messages, such as "CT series 3 (1f0c2a9b)"."""
    return f"{modality} series{'' if number is None else f' {number}'} ({key})"
