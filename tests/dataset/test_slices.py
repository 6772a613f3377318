"""Slices that do not fit their neighbours are in the notes of a case; a scan that is not in HU is not used."""

from pathlib import Path

from pydicom.dataset import Dataset

from parotid_seg.dataset.build import build
from tests.dataset.studies import reasons, rows, write_study


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


def test_a_scan_that_training_refuses_is_not_used(dicom: Path, data: Path) -> None:
    def shifted(index: int, dataset: Dataset) -> None:
        dataset.RescaleIntercept = str(float(dataset.RescaleIntercept) + 1024)

    write_study(dicom / "a", patient="A")
    write_study(dicom / "b", patient="B", change=shifted, seed=1)
    write_study(dicom / "c", patient="C", rois=None, change=shifted, seed=2)
    built = build([dicom], data)
    assert (built.labelled, built.unlabelled, built.exit_status) == (1, 0, 3)
    found = reasons(data, "series")
    assert len(found) == 2
    assert all("intensities are not HU" in reason for reason in found)
