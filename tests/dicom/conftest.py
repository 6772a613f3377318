"""A series, a mask on its slices, and the RTSTRUCT made of both. Tests must not change them."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from parotid_seg.dicom.read.series import Series
from parotid_seg.dicom.write.rtstruct import write_rtstruct
from tests.dicom.for_writers import LABELS, MODEL, SHAPE, glands, make_series


@pytest.fixture(scope="session")
def series(tmp_path_factory: pytest.TempPathFactory) -> Series:
    return make_series(tmp_path_factory.mktemp("series") / "ct")


@pytest.fixture(scope="session")
def mask() -> NDArray[np.uint8]:
    return glands(SHAPE)


@pytest.fixture(scope="session")
def written(series: Series, mask: NDArray[np.uint8], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("written") / "rt.dcm"
    write_rtstruct(series, mask, LABELS, path, model=MODEL)
    return path
