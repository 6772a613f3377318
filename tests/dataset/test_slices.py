"""Slices of a scan that do not fit their neighbours are in the notes of its case."""

from pathlib import Path

from pydicom.dataset import Dataset

from parotid_seg.dataset.build import build
from tests.dataset.studies import rows, write_study


def test_slices_that_do_not_fit_are_in_the_notes(dicom: Path, data: Path) -> None:
    before: dict[int, bytes] = {}

    def repeat(index: int, dataset: Dataset) -> None:
        before[index] = dataset.PixelData
        if index == 5:
            dataset.PixelData = before[4]

    write_study(dicom / "a", patient="A", change=repeat)
    write_study(dicom / "b", patient="B", rois=None, change=repeat, seed=1)
    said: list[str] = []
    build([dicom], data, say=said.append)
    note = "equal to the slice before: slice 6 of 12, counted from the patient's feet: one stored twice"
    assert [note in row["notes"] for row in rows(data, "cases.csv")] == [True, True]
    assert sum(note in line for line in said) == 2
