"""Structures added to a structure set that is there."""

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian

from parotid_seg.dicom.read.rt_read import read_rtstruct
from parotid_seg.dicom.read.series import Series
from parotid_seg.dicom.write.objects import is_own_object, now_in
from parotid_seg.dicom.write.round_trip import verify_round_trip
from parotid_seg.dicom.write.rtstruct import write_rtstruct
from parotid_seg.errors import InputError, ScanError
from parotid_seg.flags import Flag, FlagCode
from tests.dicom.for_writers import LABELS, MODEL, changed, drawn, elsewhere, make_series, refused

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::UserWarning"),
]  # pydicom's, over what is wrong here on purpose


@pytest.fixture
def clinical(written: Path, tmp_path: Path) -> Path:
    """Another's structure set: approved, in explicit VR, with elements of its own and a structure of our name."""

    def change(dataset: pydicom.Dataset) -> None:
        dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        dataset.Manufacturer, dataset.ManufacturerModelName = "Planner", "1"
        dataset.SpecificCharacterSet = "ISO_IR 100"
        dataset.StructureSetLabel = "PLAN Ä"
        dataset.ApprovalStatus, dataset.ReviewDate, dataset.ReviewTime = "APPROVED", "20200102", "1200"
        dataset.ReviewerName = "Reviewer"
        dataset.private_block(0x3007, "PLANNER", create=True).add_new(0x01, "LO", "kept")
        dataset.StructureSetROISequence[1].ROIName = "PTV"
        for sequence, keyword in (
            (dataset.StructureSetROISequence, "ROINumber"),
            (dataset.ROIContourSequence, "ReferencedROINumber"),
            (dataset.RTROIObservationsSequence, "ReferencedROINumber"),
        ):
            setattr(sequence[1], keyword, 2**31 - 1)
        dataset["ROIContourSequence"].is_undefined_length = True

    return changed(written, tmp_path / "clinical.dcm", change)


def test_structures_are_added_and_all_else_stays(
    clinical: Path, series: Series, mask: NDArray[np.uint8], tmp_path: Path
) -> None:
    content = clinical.read_bytes()
    write_rtstruct(series, mask, LABELS, tmp_path / "rt.dcm", model=MODEL, append=clinical)
    assert clinical.read_bytes() == content
    before, after = pydicom.dcmread(clinical), pydicom.dcmread(tmp_path / "rt.dcm")
    assert [each.ROIName for each in after.StructureSetROISequence] == ["Parotid_L", "PTV", "Parotid_L_1", "Parotid_R"]
    given = [each.ROINumber for each in after.StructureSetROISequence]
    assert given[:2] == [1, 2**31 - 1]
    assert len(set(given)) == 4
    assert [each.ReferencedROINumber for each in after.ROIContourSequence] == given
    assert [each.ReferencedROINumber for each in after.RTROIObservationsSequence] == given
    assert len({each.ObservationNumber for each in after.RTROIObservationsSequence}) == 4
    for keyword in ("StructureSetROISequence", "ROIContourSequence", "RTROIObservationsSequence"):
        assert after[keyword].value[:2] == before[keyword].value
    assert after.SOPInstanceUID != before.SOPInstanceUID
    assert after.file_meta.MediaStorageSOPInstanceUID == after.SOPInstanceUID
    assert after.PredecessorStructureSetSequence[0].ReferencedSOPInstanceUID == before.SOPInstanceUID
    assert after.ApprovalStatus == "UNAPPROVED"
    assert "ReviewerName" not in after
    assert after.ContributingEquipmentSequence[0].Manufacturer == "parotid-seg"
    altered = {
        *("StructureSetROISequence", "ROIContourSequence", "RTROIObservationsSequence", "SOPInstanceUID"),
        *("ApprovalStatus", "ReviewDate", "ReviewTime", "ReviewerName", "InstanceCreationDate", "InstanceCreationTime"),
        *("StructureSetDate", "StructureSetTime"),
    }
    for element in before:
        assert element.keyword in altered or after[element.tag] == element, element.tag
    assert after.file_meta.TransferSyntaxUID == ExplicitVRLittleEndian
    assert is_own_object(tmp_path / "rt.dcm")
    assert not is_own_object(clinical)
    found = drawn(tmp_path / "rt.dcm", series)
    assert np.array_equal(found["Parotid_L_1"], mask == 1)
    assert np.array_equal(found["Parotid_R"], mask == 2)


def test_a_set_for_another_series_of_the_frame_of_reference_refers_to_both(
    clinical: Path, series: Series, mask: NDArray[np.uint8], tmp_path: Path
) -> None:
    def other(dataset: pydicom.Dataset) -> None:
        frame = dataset.ReferencedFrameOfReferenceSequence[0]
        frame.RTReferencedStudySequence[0].RTReferencedSeriesSequence[0].SeriesInstanceUID = "1.2.3"

    changed(clinical, clinical, other)
    write_rtstruct(series, mask, LABELS, tmp_path / "rt.dcm", model=MODEL, append=clinical)
    frame = pydicom.dcmread(tmp_path / "rt.dcm").ReferencedFrameOfReferenceSequence[0]
    found = frame.RTReferencedStudySequence[0].RTReferencedSeriesSequence
    assert [each.SeriesInstanceUID for each in found] == ["1.2.3", series.series_uid]
    assert len(found[1].ContourImageSequence) == len(series.slices)


def test_text_the_file_cannot_hold_makes_it_utf8(
    clinical: Path, series: Series, mask: NDArray[np.uint8], tmp_path: Path
) -> None:
    write_rtstruct(series, mask, ("b", "腮腺", "x"), tmp_path / "rt.dcm", model=MODEL, append=clinical)
    found = pydicom.dcmread(tmp_path / "rt.dcm")
    assert found.SpecificCharacterSet == "ISO_IR 192"
    assert found.StructureSetLabel == "PLAN Ä"
    assert found.StructureSetROISequence[2].ROIName == "腮腺"


def test_a_contour_too_long_for_explicit_vr_makes_it_implicit(clinical: Path, tmp_path: Path) -> None:
    shape = (12, 120, 120)
    uid = pydicom.dcmread(clinical).StudyInstanceUID
    series = make_series(tmp_path / "ct", shape)
    comb = np.zeros(shape, dtype=np.uint8)
    comb[3, ::2] = comb[3, :, 0] = 1
    comb[3, ::4, 1:] = 1
    comb[3, 1::4, 2::3] = 1
    assert uid == series.study_uid
    write_rtstruct(series, comb, ("b", "parotid_left"), tmp_path / "rt.dcm", model=MODEL, append=clinical)
    found = pydicom.dcmread(tmp_path / "rt.dcm")
    assert found.file_meta.TransferSyntaxUID == ImplicitVRLittleEndian
    assert found[0x3007, 0x1001].value in ("kept", b"kept")
    roi = read_rtstruct(tmp_path / "rt.dcm", series)[-1]
    assert np.array_equal(roi.drawn().mask, comb == 1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda dataset: setattr(dataset, "StudyInstanceUID", "1.2.3"), "of another study: found 1.2.3, expected"),
        (lambda dataset: setattr(dataset, "PatientID", "Doe 2"), "of another patient than the series"),
        (lambda dataset: setattr(dataset, "SOPClassUID", "1.2.840.10008.5.1.4.1.1.2"), "expected an RT Structure Set"),
        (lambda dataset: delattr(dataset, "StudyInstanceUID"), "found no StudyInstanceUID"),
        (lambda dataset: delattr(dataset.StructureSetROISequence[0], "ROINumber"), "found no ROINumber"),
    ],
)
def test_what_is_not_added_to(
    change: Callable[..., Any], message: str, clinical: Path, series: Series, mask: NDArray[np.uint8], tmp_path: Path
) -> None:
    with refused(ScanError, message):
        path = changed(clinical, tmp_path / "other.dcm", change)
        write_rtstruct(series, mask, LABELS, tmp_path / "rt.dcm", model=MODEL, append=path)
    assert not (tmp_path / "rt.dcm").exists()


def test_a_set_in_another_frame_of_reference_is_not_added_to(
    clinical: Path, series: Series, mask: NDArray[np.uint8], tmp_path: Path
) -> None:
    changed(clinical, clinical, elsewhere)
    with refused(ScanError, "in another frame of reference: found 1.2.3, expected"):
        write_rtstruct(series, mask, LABELS, tmp_path / "rt.dcm", model=MODEL, append=clinical)


def test_a_set_is_never_written_over(clinical: Path, series: Series, mask: NDArray[np.uint8]) -> None:
    content = clinical.read_bytes()
    with pytest.raises(InputError, match="one of the files that are read"):
        write_rtstruct(series, mask, LABELS, clinical, model=MODEL, append=clinical)
    assert clinical.read_bytes() == content


def number_twice(dataset: pydicom.Dataset) -> None:
    dataset.StructureSetROISequence[1].ROINumber = dataset.StructureSetROISequence[0].ROINumber


def contours_twice(dataset: pydicom.Dataset) -> None:
    dataset.ROIContourSequence[1].ReferencedROINumber = dataset.ROIContourSequence[0].ReferencedROINumber


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (number_twice, "found the ROINumber 1 2 times (Parotid_L, PTV), expected once"),
        (contours_twice, "found the ReferencedROINumber 1 2 times (Parotid_L), expected once"),
    ],
)
def test_a_set_with_a_number_twice_is_not_added_to(
    change: Callable[..., None], message: str, clinical: Path, series: Series, mask: NDArray[np.uint8], tmp_path: Path
) -> None:
    changed(clinical, clinical, change)
    with refused(ScanError, message):
        write_rtstruct(series, mask, LABELS, tmp_path / "rt.dcm", model=MODEL, append=clinical)
    assert not (tmp_path / "rt.dcm").exists()


def test_numbers_that_anything_refers_to_are_not_given_again(
    clinical: Path, series: Series, mask: NDArray[np.uint8], tmp_path: Path
) -> None:
    def orphan(dataset: pydicom.Dataset) -> None:
        dataset.RTROIObservationsSequence[0].ReferencedROINumber = 2
        dataset.ROIContourSequence[1].ReferencedROINumber = 3

    changed(clinical, clinical, orphan)
    write_rtstruct(series, mask, LABELS, tmp_path / "rt.dcm", model=MODEL, append=clinical)
    found = pydicom.dcmread(tmp_path / "rt.dcm")
    assert [each.ROINumber for each in found.StructureSetROISequence[2:]] == [4, 5]


def test_structures_without_a_frame_of_reference_stay_as_they_are_and_are_noted(
    clinical: Path, series: Series, mask: NDArray[np.uint8], tmp_path: Path
) -> None:
    def without(dataset: pydicom.Dataset) -> None:
        for roi in dataset.StructureSetROISequence:
            del roi.ReferencedFrameOfReferenceUID

    changed(clinical, clinical, without)
    flags = write_rtstruct(series, mask, LABELS, tmp_path / "rt.dcm", model=MODEL, append=clinical)
    assert flags == (Flag(FlagCode.APPENDED_WITHOUT_FRAME, value=2),)
    found = pydicom.dcmread(tmp_path / "rt.dcm")
    assert ["ReferencedFrameOfReferenceUID" in each for each in found.StructureSetROISequence] == [0, 0, 1, 1]
    assert np.array_equal(drawn(tmp_path / "rt.dcm", series)["Parotid_R"], mask == 2)

    def nor_a_set(dataset: pydicom.Dataset) -> None:
        del dataset.ReferencedFrameOfReferenceSequence

    changed(clinical, clinical, nor_a_set)
    with refused(ScanError, "in another frame of reference: found none, expected"):
        write_rtstruct(series, mask, LABELS, tmp_path / "rt.dcm", model=MODEL, append=clinical)


def test_contours_of_others_that_repeat_overlap_or_lack_slices_stay_as_they_are(
    clinical: Path, series: Series, mask: NDArray[np.uint8], tmp_path: Path
) -> None:
    def spoil(dataset: pydicom.Dataset) -> None:
        contours = dataset.ROIContourSequence[0].ContourSequence
        contours.append(contours[1])
        del contours[3]

    changed(clinical, clinical, spoil)
    assert write_rtstruct(series, mask, LABELS, tmp_path / "rt.dcm", model=MODEL, append=clinical) == ()
    before, after = pydicom.dcmread(clinical), pydicom.dcmread(tmp_path / "rt.dcm")
    assert after.ROIContourSequence[:2] == before.ROIContourSequence[:2]
    found = drawn(tmp_path / "rt.dcm", series)
    assert np.array_equal(found["Parotid_L_1"], mask == 1)
    assert np.array_equal(found["Parotid_R"], mask == 2)


NAME = "Parótida".encode()


@pytest.mark.parametrize(
    ("declared", "labels", "charset", "after"),
    [
        ("ISO_IR 100", LABELS, "ISO_IR 100", NAME),
        ("ISO_IR 192", LABELS, "ISO_IR 192", NAME),
        ("ISO_IR 100", ("b", "腮腺", "x"), "ISO_IR 192", NAME),
        (None, ("b", "腮腺", "x"), "ISO_IR 192", NAME),
    ],
)
def test_names_in_undeclared_utf8_stay_as_they_are(
    declared: str | None,
    labels: tuple[str, str, str],
    charset: str,
    after: bytes,
    clinical: Path,
    series: Series,
    mask: NDArray[np.uint8],
    tmp_path: Path,
) -> None:
    def name(dataset: pydicom.Dataset) -> None:
        dataset.StructureSetROISequence[1].ROIName = "XXXXXXXXX"
        dataset.StructureSetLabel = "YYYYYYYYY"
        dataset.SpecificCharacterSet = declared

    changed(clinical, clinical, name)
    content = clinical.read_bytes()
    clinical.write_bytes(content.replace(b"XXXXXXXXX", NAME).replace(b"YYYYYYYYY", NAME))
    write_rtstruct(series, mask, labels, tmp_path / "rt.dcm", model=MODEL, append=clinical)
    found = pydicom.dcmread(tmp_path / "rt.dcm")
    assert found.SpecificCharacterSet == charset
    assert found.StructureSetROISequence[1].get_item("ROIName").value.rstrip() == after
    assert found.get_item("StructureSetLabel").value.rstrip() == after


def test_a_name_that_is_not_valid_in_its_character_set_is_not_changed(
    clinical: Path, series: Series, mask: NDArray[np.uint8], tmp_path: Path
) -> None:
    def name(dataset: pydicom.Dataset) -> None:
        dataset.SpecificCharacterSet = "ISO_IR 192"
        dataset.StructureSetROISequence[1].ROIName = "XXXXXXXX"

    changed(clinical, clinical, name)
    clinical.write_bytes(clinical.read_bytes().replace(b"XXXXXXXX", "Parótida".encode("latin-1")))
    write_rtstruct(series, mask, LABELS, tmp_path / "rt.dcm", model=MODEL, append=clinical)
    found = pydicom.dcmread(tmp_path / "rt.dcm").StructureSetROISequence[1].get_item("ROIName")
    assert found.value == "Parótida".encode("latin-1")


def test_times_are_in_the_time_zone_of_the_file() -> None:
    dataset = Dataset()
    assert now_in(dataset).tzinfo is None
    for offset, hours in (("+0900", 9), ("-0330", -3.5)):
        dataset.TimezoneOffsetFromUTC = offset
        assert now_in(dataset).utcoffset() == timedelta(hours=hours)
    dataset.TimezoneOffsetFromUTC = "9"
    assert now_in(dataset).tzinfo is None


def test_a_set_that_names_no_frame_as_a_whole_is_added_to(
    clinical: Path, series: Series, mask: NDArray[np.uint8], tmp_path: Path
) -> None:
    """Most planning systems state the frame of reference of each structure only."""
    changed(clinical, clinical, lambda dataset: delattr(dataset, "FrameOfReferenceUID"))
    write_rtstruct(series, mask, LABELS, tmp_path / "rt.dcm", model=MODEL, append=clinical)
    verify_round_trip(tmp_path / "rt.dcm", series, mask, LABELS, "rtstruct")
    assert pydicom.dcmread(tmp_path / "rt.dcm").FrameOfReferenceUID == series.frame_of_reference_uid


def test_a_set_that_names_another_frame_as_a_whole_is_refused(
    clinical: Path, series: Series, mask: NDArray[np.uint8], tmp_path: Path
) -> None:
    changed(clinical, clinical, lambda dataset: setattr(dataset, "FrameOfReferenceUID", "1.2.3"))
    with refused(ScanError, "as a whole in another frame of reference: found 1.2.3, expected"):
        write_rtstruct(series, mask, LABELS, tmp_path / "rt.dcm", model=MODEL, append=clinical)
