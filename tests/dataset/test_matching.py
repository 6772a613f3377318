"""Contours become labels of the scan that they were drawn on, and of no other."""

from pathlib import Path

import pydicom
from pydicom.dataset import Dataset

from parotid_seg.dataset.build import build
from tests.dataset.studies import GLANDS, SHAPE, case_from, reasons, rows, write_structures
from tests.dicom_series import ct_voxels, uid, write_series

BODY = ("BODY", (slice(0, 12), slice(1, 15), slice(1, 19)))


def write_two(dicom: Path) -> tuple[list[Path], list[Path]]:
    """Two CT series of a study in one frame of reference."""

    def in_one_study(index: int, dataset: Dataset) -> None:
        dataset.StudyInstanceUID, dataset.FrameOfReferenceUID = uid("study"), uid("frame")

    first, second = (
        write_series(dicom / name, ct_voxels(SHAPE, seed), number=seed, change=in_one_study)
        for seed, name in enumerate(("planning", "contrast"), start=1)
    )
    return first, second


def test_contours_of_a_series_that_cannot_be_used_go_to_no_other(dicom: Path, data: Path) -> None:
    first, _ = write_two(dicom)
    write_structures(dicom / "contours.dcm", first)
    first[6].unlink()
    built = build([dicom], data)
    assert (built.labelled, built.unlabelled) == (0, 1)
    assert reasons(data, "structure set") == ["drawn on a series that cannot be used"]


def test_contours_matched_by_the_frame_of_reference_are_to_be_looked_at(dicom: Path, data: Path) -> None:
    first, _ = write_two(dicom)
    write_structures(dicom / "contours.dcm", first)
    for image in first:
        image.unlink()
    assert build([dicom], data).labelled == 1
    (row,) = rows(data, "cases.csv")
    assert (row["matched_by"], row["look_at_it"]) == ("frame of reference", "yes")
    assert "the images that the RTSTRUCT was drawn on are not there" in row["notes"]


def drawn_on(contour: Dataset, image: Path) -> None:
    header, reference = pydicom.dcmread(image, stop_before_pixels=True), Dataset()
    reference.ReferencedSOPClassUID, reference.ReferencedSOPInstanceUID = header.SOPClassUID, header.SOPInstanceUID
    contour.ContourImageSequence = [reference]


def test_the_images_of_the_labels_count_more_than_those_of_other_structures(dicom: Path, data: Path) -> None:
    first, second = write_two(dicom)

    def change(dataset: Dataset) -> None:
        for images, roi in zip((first, second, second), dataset.ROIContourSequence, strict=True):
            for contour in roi.ContourSequence:
                drawn_on(contour, images[0])

    write_structures(dicom / "contours.dcm", first, [BODY, *GLANDS], change=change)
    assert build([dicom], data).labelled == 1
    (row,) = (row for row in rows(data, "cases.csv") if row["kind"] == "labelled")
    assert (row["case"], row["matched_by"]) == (case_from(data, dicom / "contrast"), "images")


def test_labels_drawn_on_two_series_are_not_used(dicom: Path, data: Path) -> None:
    first, second = write_two(dicom)

    def change(dataset: Dataset) -> None:
        for images, roi in zip((first, second), dataset.ROIContourSequence, strict=True):
            for contour in roi.ContourSequence:
                drawn_on(contour, images[0])

    write_structures(dicom / "contours.dcm", first, change=change)
    assert build([dicom], data).labelled == 0
    assert reasons(data, "structure set") == ["its labels are drawn on images of 2 series, expected one"]
