"""RT Dose objects for tests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian, RTDoseStorage

from tests.dicom_series import lay, save, uid

SCALING = 0.001
"""Gy per stored unit."""


def ramp(affine: NDArray[np.float64], shape: tuple[int, int, int]) -> NDArray[np.float64]:
    """A dose (planes, rows, columns) that is linear in the patient, so that interpolation is exact."""
    k, j, i = np.indices(shape)
    return linear(np.einsum("ab,bkji->akji", affine[:3], np.stack([k, j, i, np.ones_like(k)])))


def linear(at_mm: NDArray[np.float64]) -> NDArray[np.float64]:
    """The dose in Gy of `ramp` at points (3, ...) in LPS."""
    x, y, z = at_mm
    return np.asarray(30 + 0.05 * x - 0.04 * y + 0.08 * z)


def write_rtdose(
    path: Path,
    gray: NDArray[np.float64],
    affine: NDArray[np.float64] | None = None,
    *,
    series: str = "ct",
    form: Literal["relative", "absolute"] = "relative",
    planes_mm: NDArray[np.float64] | None = None,
    bits: int = 32,
    scaling: float = SCALING,
    transfer_syntax: str = ExplicitVRLittleEndian,
    change: Callable[[Dataset], None] = lambda dataset: None,
) -> Path:
    """Write a plan's dose.

    Args:
        path: the file to make.
        gray: Gy (planes, rows, columns).
        affine: (4, 4), from (plane, row, column, 1) to LPS in mm, see `lay`.
        series: name of the folder of the series whose frame of reference it has, see `write_series`.
        form: of GridFrameOffsetVector; "absolute" is for axial planes.
        planes_mm: offsets of the planes along their normal; default: as `affine` has them.
        bits, scaling: of the stored values.
        transfer_syntax: see `save`.
        change: is called with the data set before it is written.
    """
    affine = lay() if affine is None else affine
    step, column, row, origin = affine[:3].T
    row_mm, column_mm = float(np.linalg.norm(column)), float(np.linalg.norm(row))
    normal = np.cross(row, column) / (row_mm * column_mm)
    offsets = np.arange(len(gray)) * float(normal @ step) if planes_mm is None else planes_mm
    dataset = Dataset()
    dataset.SOPClassUID, dataset.SOPInstanceUID = RTDoseStorage, uid(str(path), "dose")
    dataset.Modality, dataset.PatientName, dataset.PatientID = "RTDOSE", "Doe^Jane", "4711"
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = uid(series, "study"), uid(series, "dose series")
    dataset.FrameOfReferenceUID = uid(series, "frame of reference")
    dataset.DoseUnits, dataset.DoseType, dataset.DoseSummationType = "GY", "PHYSICAL", "PLAN"
    dataset.DoseGridScaling = pydicom.valuerep.format_number_as_ds(scaling)
    dataset.ImagePositionPatient = [pydicom.valuerep.format_number_as_ds(float(each)) for each in origin]
    cosines = [*(row / column_mm), *(column / row_mm)]
    dataset.ImageOrientationPatient = [pydicom.valuerep.format_number_as_ds(float(each)) for each in cosines]
    dataset.PixelSpacing = [row_mm, column_mm]
    vector = origin[2] + normal[2] * offsets if form == "absolute" else offsets
    dataset.GridFrameOffsetVector = [pydicom.valuerep.format_number_as_ds(float(each)) for each in vector]
    dataset.FrameIncrementPointer = pydicom.tag.Tag("GridFrameOffsetVector")
    stored = np.rint(gray / scaling).astype(f"<u{bits // 8}")
    dataset.NumberOfFrames, dataset.Rows, dataset.Columns = stored.shape
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation, dataset.PixelRepresentation = 1, "MONOCHROME2", 0
    dataset.BitsAllocated = dataset.BitsStored = bits
    dataset.HighBit = bits - 1
    dataset.PixelData = stored.tobytes()
    change(dataset)
    path.parent.mkdir(parents=True, exist_ok=True)
    save(dataset, path, transfer_syntax)
    return path


def set_to(**values: object) -> Callable[[Dataset], None]:
    """A change of `write_rtdose`: attributes with other values."""

    def change(dataset: Dataset) -> None:
        for name, value in values.items():
            setattr(dataset, name, value)

    return change
