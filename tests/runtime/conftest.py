"""What the runtime's tests share."""

from pathlib import Path

import nibabel
import pytest

from parotid_seg.models import DEFAULT_MODEL
from parotid_seg.runtime.engines.base import Backend
from parotid_seg.runtime.engines.load import load_backend
from tests.dicom_example import few_slices


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
