"""Series of real DICOM files with masks on them, for the tests of what is written in DICOM."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileDataset
from pydicom.sr.coding import Code

from parotid_seg.dicom.read.rt_read import read_rtstruct
from parotid_seg.dicom.read.series import Series, SeriesFacts, Slice
from parotid_seg.errors import ParotidSegError
from tests.dicom_series import Change, ct_voxels, lay, write_enhanced, write_series

LABELS = ("background", "parotid_left", "parotid_right")
SHAPE = (12, 32, 36)
MODEL = "0123456789ab"
IDENTITY = ("Doe", "Jane", "4711")
"""Of the patient whose scans these are."""
needs_dciodvfy = pytest.mark.skipif(not shutil.which("dciodvfy"), reason="dciodvfy (dicom3tools) is not installed")
needs_plastimatch = pytest.mark.skipif(not shutil.which("plastimatch"), reason="plastimatch is not installed")


def make_series(
    folder: Path,
    shape: tuple[int, int, int] = SHAPE,
    affine: NDArray[np.float64] | None = None,
    *,
    enhanced: bool = False,
    change: Change = lambda index, dataset: None,
) -> Series:
    """A series in files of its own, described without a look into the code that reads series.

    Args:
        shape: slices, rows, columns.
        affine: see `dicom_series.lay`; its slices run along their normal.
        enhanced: one multi-frame file, whose frames are in another order than the slices.
    """
    affine = lay() if affine is None else affine
    if enhanced:
        path = write_enhanced(folder / "enhanced.dcm", ct_voxels(shape), affine, change=change)
        places: list[tuple[Path, int | None]] = [(path, frame) for frame in reversed(range(shape[0]))]
    else:
        places = [(path, None) for path in write_series(folder, ct_voxels(shape), affine, change=change)]
    headers = {path: pydicom.dcmread(path, stop_before_pixels=True) for path, _ in places}
    first = headers[places[0][0]]
    return Series(
        slices=tuple(
            Slice(path, frame, str(headers[path].SOPClassUID), str(headers[path].SOPInstanceUID))
            for path, frame in places
        ),
        rows=shape[1],
        columns=shape[2],
        affine=affine,
        modality="CT",
        facts=SeriesFacts("CT", 3, "Neck 3.0"),
        series_uid=str(first.SeriesInstanceUID),
        study_uid=str(first.StudyInstanceUID),
        frame_of_reference_uid=str(first.get("FrameOfReferenceUID", "")),
        number=3,
        folder=folder,
    )


def glands(shape: tuple[int, int, int]) -> NDArray[np.uint8]:
    """Two gland-like blobs of different sizes, the left one (label 1, at high columns) with a hole along the slices."""
    z, y, x = np.meshgrid(*(np.linspace(-1.0, 1.0, size) for size in shape), indexing="ij")
    mask = np.zeros(shape, dtype=np.uint8)
    for value, middle, size in ((1, 0.5, 1.0), (2, -0.55, 0.8)):
        across = (x - middle - 0.1 * np.sign(middle) * z + 0.04 * np.sin(7.0 * y)) / 0.3
        mask[(across**2 + ((y - 0.2 * z) / 0.5) ** 2 + (z / 0.7) ** 2) < size**2] = value
        if value == 1:
            mask[(across**2 + ((y - 0.2 * z) / 0.5) ** 2) < 0.08] = 0
    return mask


def changed(path: Path, out: Path, change: Callable[[FileDataset], object]) -> Path:
    """A copy of a DICOM object with something else in it."""
    dataset = pydicom.dcmread(path)
    change(dataset)
    dataset.save_as(out)
    return out


def elsewhere(structure_set: Dataset) -> None:
    """Put a structure set into another frame of reference."""
    structure_set.ReferencedFrameOfReferenceSequence[0].FrameOfReferenceUID = "1.2.3"
    for roi in structure_set.StructureSetROISequence:
        roi.ReferencedFrameOfReferenceUID = "1.2.3"


def drawn(path: Path, series: Series) -> dict[str, NDArray[np.bool_]]:
    """The masks of a structure set by name."""
    return {roi.name: roi.drawn().mask for roi in read_rtstruct(path, series)}


def numbers(contour: Dataset) -> NDArray[np.float64]:
    """Points (N, 3) in mm."""
    return np.array(contour.ContourData, dtype=float).reshape(-1, 3)


def triple(code: Code) -> tuple[str, str, str]:
    """A code of pydicom's dictionary."""
    return code.value, code.scheme_designator, code.meaning


def item_triple(item: Dataset) -> tuple[str, str, str]:
    """A code of a code sequence."""
    return item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning


@contextmanager
def refused(kind: type[ParotidSegError], message: str) -> Iterator[None]:
    """Expect an error of one line that holds a text and names nobody."""
    with pytest.raises(kind) as error:
        yield
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert not any(name in str(error.value) for name in IDENTITY)


def dciodvfy_errors(path: Path) -> list[str]:
    """What dciodvfy objects to in a DICOM object."""
    run = subprocess.run(["dciodvfy", path], capture_output=True, text=True, timeout=60, check=False)
    return [line for line in (run.stdout + run.stderr).splitlines() if line.startswith(("Error", "Abort"))]
