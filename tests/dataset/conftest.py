"""Where studies are, where the data set goes, and what becomes of a study."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydicom.dataset import Dataset

from parotid_seg.dataset.build import build
from parotid_seg.dataset.dataset_options import DataSetOptions
from parotid_seg.scan.nifti import read_mask
from tests.dataset.studies import GLANDS, Made, Rois, rows, write_structures, write_study


@pytest.fixture
def dicom(tmp_path: Path) -> Path:
    folder = tmp_path / "dicom"
    folder.mkdir()
    return folder


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return tmp_path / "Dataset7"


@pytest.fixture
def study(dicom: Path, data: Path) -> Callable[..., Made]:
    """Write a study whose RTSTRUCT is changed, make a data set of it, and say what became of it."""

    def run(change: Callable[[Dataset], None], rois: Rois = GLANDS, **options: Any) -> Made:
        images = write_study(dicom / "a", rois=None)
        write_structures(dicom / "contours.dcm", images, rois, change=change)
        said: list[str] = []
        built = build([dicom], data, DataSetOptions(**options), say=said.append)
        label = data / "labelsTr" / "case_0001.nii.gz"
        mask = read_mask(label)[0] if label.exists() else None
        (row,) = rows(data, "cases.csv")
        return built, mask, row, said

    return run
