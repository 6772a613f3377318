"""What the runtime's tests share."""

from pathlib import Path

import nibabel
import numpy as np
import pytest

from parotid_seg.models import DEFAULT_MODEL
from parotid_seg.runtime.engines.base import Backend
from parotid_seg.runtime.engines.load import load_backend
from tests.dicom_example import few_slices
from tests.small_files import save_mask


@pytest.fixture(scope="session")
def model() -> Backend:
    """The packaged model."""
    return load_backend(DEFAULT_MODEL, "onnxruntime", "cpu")


@pytest.fixture
def scans(tmp_path: Path, head: nibabel.Nifti1Image) -> Path:
    """A folder with one good scan of as few slices as a scan may have."""
    folder = tmp_path / "scans"
    folder.mkdir()
    nibabel.save(few_slices(head, 4), folder / "good_0000.nii.gz")
    return folder


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    """Predictions and references of two cases; in the second each gland lacks a layer."""
    reference = np.zeros((10, 10, 10), np.uint8)
    reference[2:4, 2:4, 2:6], reference[6:8, 2:4, 2:6] = 1, 2
    moved = reference.copy()
    moved[:, :, 5] = 0
    save_mask(tmp_path / "references" / "a.nii.gz", reference)
    save_mask(tmp_path / "references" / "b.nii.gz", reference)
    save_mask(tmp_path / "predictions" / "a.nii.gz", reference)
    save_mask(tmp_path / "predictions" / "b.nii.gz", moved)
    return tmp_path
