"""Series whose images name several patients or studies."""

from collections.abc import Callable
from pathlib import Path

import pytest
from pydicom.dataset import Dataset

from parotid_seg.dicom.read.series_volume import find_series
from parotid_seg.flags import FlagCode
from tests.dicom_series import ct_voxels, write_series


@pytest.mark.parametrize("changed", [lambda index: index > 9, lambda index: index % 2], ids=["half", "every second"])
@pytest.mark.parametrize("keyword", ["PatientID", "PatientName", "StudyInstanceUID"])
def test_each_part_of_a_series_of_several_is_flagged(
    tmp_path: Path, keyword: str, changed: Callable[[int], bool]
) -> None:
    def change(index: int, dataset: Dataset) -> None:
        if changed(index):
            setattr(dataset, keyword, "1.2.3")

    found = find_series(write_series(tmp_path, ct_voxels((20, 16, 20)), change=change)).series
    assert len(found) == 2
    for series in found:
        assert [flag.code for flag in series.flags] == [FlagCode.SERIES_SPLIT]


def test_a_name_with_empty_parts_at_its_end_is_the_same(tmp_path: Path) -> None:
    names = ("Doe^Jane", "Doe^Jane^^^", "Doe^Jane ", "Doe^Jane==", "Doe ^Jane^")

    def change(index: int, dataset: Dataset) -> None:
        dataset.PatientName = names[index % len(names)]

    (series,) = find_series(write_series(tmp_path, ct_voxels((10, 16, 20)), change=change)).series
    assert series.flags == ()
