"""Small files that tests write, and tables of runs that they read."""

import csv
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from numpy.typing import NDArray

AFFINE = np.diag([2.0, 2.0, 3.0, 1.0])


def touch(path: Path) -> Path:
    """Write a file that holds its name; its folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(path.name)
    return path


def save_mask(path: Path, labels: NDArray[Any], affine: NDArray[np.float64] = AFFINE) -> None:
    """Write labels (I, J, K) as NIfTI; its folder is made."""
    path.parent.mkdir(exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(labels, affine), path)


def read_table(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file."""
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def summary_rows(out: Path) -> list[dict[str, str]]:
    """The rows of a run's summary.csv."""
    return read_table(out / "summary.csv")
