"""MR studies for tests: series of several sequences of one phantom, each on a grid of its own.

    write_mr(tmp_path / "study" / "t1", T1, number=3)      # series of one study and frame of reference
    write_mr(tmp_path / "study" / "t2", T2, lay((5, 1, 1), row=..., column=...), number=4)

A sequence is a dict of attributes, so that `T1 | {"ContrastBolusAgent": "Gd"}` is another one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from tests.dicom_series import Change, lay, uid, write_series

Attributes = Mapping[str, Any]
Phantom = Callable[[NDArray[np.float64]], NDArray[np.float64]]
"""Intensities (...) at points (..., 3) in mm, LPS."""


def spin_echo(repetition: float, echo: float) -> dict[str, Any]:
    return {"ScanningSequence": "SE", "SequenceVariant": "SK", "RepetitionTime": repetition, "EchoTime": echo}


def inverted(inversion: float, repetition: float, echo: float) -> dict[str, Any]:
    return spin_echo(repetition, echo) | {"ScanningSequence": ["SE", "IR"], "InversionTime": inversion}


def gradient_echo(repetition: float, echo: float, variant: list[str]) -> dict[str, Any]:
    return spin_echo(repetition, echo) | {"ScanningSequence": "GR", "SequenceVariant": variant}


T1, T2, PD = spin_echo(550, 12), spin_echo(4000, 90), spin_echo(3000, 15)
STIR, FLAIR = inverted(180, 4500, 40), inverted(2500, 9000, 120)
DIFFUSION = spin_echo(5000, 70) | {"ScanningSequence": ["EP", "SE"], "DiffusionBValue": 800.0}

SHAPE = (10, 24, 28)
GRID = lay((4.0, 3.0, 3.0), origin=(-40.0, -35.0, -20.0))
"""The usual ones: axial slices."""


def waves(points: NDArray[np.float64]) -> NDArray[np.float64]:
    """A smooth phantom, 150 to 850."""
    x, y, z = np.moveaxis(points, -1, 0)
    return 500 + 200 * np.sin(x / 25) * np.cos(y / 30) + 150 * np.sin(z / 20)


def points_of(affine: NDArray[np.float64], shape: tuple[int, int, int]) -> NDArray[np.float64]:
    """Where a grid's voxels lie (slices, rows, columns, 3)."""
    indices = np.moveaxis(np.indices(shape), 0, -1)
    return indices @ affine[:3, :3].T + affine[:3, 3]


def write_mr(
    folder: Path,
    sequence: Attributes,
    affine: NDArray[np.float64] = GRID,
    *,
    shape: tuple[int, int, int] = SHAPE,
    phantom: Phantom = waves,
    number: int = 3,
    study: str = "study",
    frame: str = "frame",
    change: Change = lambda index, dataset: None,
) -> list[Path]:
    """Write a series.

    Args:
        folder: made if it is not there.
        sequence: attributes of every slice.
        affine, shape: of its grid, see `lay`.
        phantom: what it shows.
        number: SeriesNumber.
        study, frame: series of one such name share study and frame of reference; "" leaves the latter out.
        change: see `write_series`.
    """

    def belong(index: int, dataset: Dataset) -> None:
        dataset.StudyInstanceUID = uid(study, "study")
        dataset.FrameOfReferenceUID = uid(frame, "frame of reference") if frame else ""
        for keyword, value in sequence.items():
            setattr(dataset, keyword, value)
        change(index, dataset)

    voxels = np.rint(phantom(points_of(affine, shape)))
    return write_series(
        folder, voxels, affine, modality="MR", number=number, uids=f"{study}{number}{folder.parent.name}", change=belong
    )


def write_study(folder: Path, **further: Any) -> None:
    """Write T1, T2 and STIR as series 3, 4 and 5, each into a folder of its own."""
    for number, (name, sequence) in enumerate({"t1": T1, "t2": T2, "stir": STIR}.items(), start=3):
        write_mr(folder / name, sequence, number=number, **further)
