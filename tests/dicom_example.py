"""Series of DICOM files that show the example scan, and `infer` on them with a model that is loaded once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from numpy.typing import NDArray
from pydicom.datadict import DicomDictionary, keyword_for_tag
from pydicom.dataset import Dataset
from pydicom.tag import Tag
from scipy import ndimage

from parotid_seg.runtime.engines.base import Backend
from parotid_seg.runtime.formats.mask_formats import NIFTI
from parotid_seg.runtime.pipeline.infer_options import InferOptions
from parotid_seg.runtime.pipeline.run import Outcome, Summary, infer
from tests.dicom_series import write_series

LEFT = ("SpecificCharacterSet", "ImageType", "Modality", "PhotometricInterpretation", "PatientSex", "RescaleType")
"""Text that decides how a file is read, or that has a meaning for those who write DICOM."""
LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
AIR = -1000


def slices_of_image(image: nibabel.Nifti1Image) -> tuple[NDArray[np.int16], NDArray[np.float64]]:
    """An image's voxels (slices, rows, columns), and from there to x, y, z in mm (LPS)."""
    return np.asarray(image.dataobj).T, (LPS @ image.affine)[:, [2, 1, 0, 3]]


def write_image(folder: Path, image: nibabel.Nifti1Image, **options: Any) -> list[Path]:
    """Write an image as a series, see `write_series`."""
    return write_series(folder, *slices_of_image(image), **options)


def few_slices(image: nibabel.Nifti1Image, count: int = 8) -> nibabel.Nifti1Image:
    """The middle of an image, to be quick."""
    first = (image.shape[2] - count) // 2
    return image.slicer[:, :, first : first + count]


def resampled(
    image: nibabel.Nifti1Image, affine: NDArray[np.float64], shape: tuple[int, int, int]
) -> NDArray[np.int16]:
    """What a scanner that lays its slices elsewhere would show: HU (slices, rows, columns), air around.

    Args:
        affine: of the slices, see `dicom_series.lay`.
    """
    voxels, own = slices_of_image(image)
    way = np.linalg.inv(own) @ affine
    found = ndimage.affine_transform(
        voxels.astype(np.float32), way[:3, :3], way[:3, 3], output_shape=shape, order=1, cval=AIR
    )
    return np.rint(found).astype(np.int16)


def every_text(texts: Mapping[str, str]) -> Dataset:
    """A data set in which every attribute of the standard that is text, but for `LEFT`, has the text of its VR."""
    dataset = Dataset()
    for tag, (vr, *_) in DicomDictionary.items():
        keyword = keyword_for_tag(tag)
        if vr in texts and Tag(tag).group > 0x0007 and keyword and keyword not in LEFT:
            dataset.add_new(tag, vr, texts[vr])
    return dataset


@dataclass(frozen=True)
class Ran:
    """How a run went.

    Attributes:
        outcomes: by case; what is no scan has no name, and there may be several.
        lines: what was told.
    """

    summary: Summary
    outcomes: dict[str, Outcome]
    errors: list[str]
    lines: list[str]

    @property
    def statuses(self) -> dict[str, str]:
        return {case: outcome.status for case, outcome in self.outcomes.items()}


def run(
    backend: Backend,
    scans: Path | list[Path],
    out: Path,
    *formats: str,
    append: Path | None = None,
    plain: bool = True,
    **options: Any,
) -> Ran:
    """Run `infer`.

    Args:
        formats: default: NIfTI.
        plain: neither pictures nor report.
    """
    told: list[Outcome] = []
    lines: list[str] = []
    asked = InferOptions(
        pictures=not plain, report=not plain, formats=formats or (NIFTI,), append=append, workers=1, **options
    )
    arguments = scans if isinstance(scans, list) else [scans]
    summary = infer(arguments, out, lambda: backend, asked, say=lines.append, progress=told.append)
    errors = [outcome.entry.failure for outcome in told if outcome.status == "failed"]
    return Ran(summary, {outcome.entry.case: outcome for outcome in told}, errors, lines)
