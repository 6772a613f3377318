"""How ITK reads a file, through SimpleITK: a second reader beside nibabel, pynrrd and pydicom."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import SimpleITK
from numpy.typing import NDArray

LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


def affine_of(image: SimpleITK.Image) -> NDArray[np.float64]:
    """(4, 4), from a voxel's indices to the patient's right, front and head in mm (RAS)."""
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
    affine[:3, 3] = image.GetOrigin()
    return LPS @ affine


def read(path: Path) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
    """Voxels (I, J, K) in their stored order, and where they lie."""
    image = SimpleITK.ReadImage(str(path))
    return SimpleITK.GetArrayFromImage(image).T, affine_of(image)


def read_series(folder: Path) -> NDArray[np.float64]:
    """Where the voxels of a DICOM series lie."""
    reader = SimpleITK.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    return affine_of(reader.Execute())


def apart_mm(a: NDArray[np.float64], b: NDArray[np.float64], shape: tuple[int, ...]) -> float:
    """Largest distance between where two affines put the corners of a volume."""
    corners = np.array([(*each, 1) for each in itertools.product(*((0, size - 1) for size in shape[:3]))])
    return float(np.linalg.norm((corners @ (a - b).T)[:, :3], axis=1).max())
