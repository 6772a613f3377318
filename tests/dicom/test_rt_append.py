"""Structures added to a structure set that is there."""

import numpy as np
import pydicom
import pytest
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian

from parotid_seg.dicom.objects import is_own_object
from parotid_seg.dicom.rt_read import read_rtstruct
from parotid_seg.dicom.rtstruct import write_rtstruct
from parotid_seg.errors import InputError, ScanError
from tests.dicom_for_writers import (
    LABELS,
    MODEL,
    SHAPE,
    changed,
    drawn,
    elsewhere,
    glands,
    make_series,
    refused,
)

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # pydicom's, over what is wrong here on purpose


@pytest.fixture(scope="module")
def series(tmp_path_factory):
    return make_series(tmp_path_factory.mktemp("series") / "ct")


@pytest.fixture(scope="module")
def mask():
    return glands(SHAPE)


@pytest.fixture(scope="module")
def written(series, mask, tmp_path_factory):
    path = tmp_path_factory.mktemp("written") / "rt.dcm"
    write_rtstruct(series, mask, LABELS, path, model=MODEL)
    return path


@pytest.fixture
def clinical(written, tmp_path):
    """Another's structure set: approved, in explicit VR, with elements of its own and a structure of our name."""

    def change(dataset):
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


def test_structures_are_added_and_all_else_stays(clinical, series, mask, tmp_path):
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


def test_a_set_for_another_series_of_the_frame_of_reference_refers_to_both(clinical, series, mask, tmp_path):
    def other(dataset):
        frame = dataset.ReferencedFrameOfReferenceSequence[0]
        frame.RTReferencedStudySequence[0].RTReferencedSeriesSequence[0].SeriesInstanceUID = "1.2.3"

    changed(clinical, clinical, other)
    write_rtstruct(series, mask, LABELS, tmp_path / "rt.dcm", model=MODEL, append=clinical)
    frame = pydicom.dcmread(tmp_path / "rt.dcm").ReferencedFrameOfReferenceSequence[0]
    found = frame.RTReferencedStudySequence[0].RTReferencedSeriesSequence
    assert [each.SeriesInstanceUID for each in found] == ["1.2.3", series.series_uid]
    assert len(found[1].ContourImageSequence) == len(series.slices)


def test_text_the_file_cannot_hold_makes_it_utf8(clinical, series, mask, tmp_path):
    write_rtstruct(series, mask, ("b", "腮腺", "x"), tmp_path / "rt.dcm", model=MODEL, append=clinical)
    found = pydicom.dcmread(tmp_path / "rt.dcm")
    assert found.SpecificCharacterSet == "ISO_IR 192"
    assert found.StructureSetLabel == "PLAN Ä"
    assert found.StructureSetROISequence[2].ROIName == "腮腺"


def test_a_contour_too_long_for_explicit_vr_makes_it_implicit(clinical, tmp_path):
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
        (lambda dataset: delattr(dataset.StructureSetROISequence[0], "ROINumber"), "not a readable RT structure set"),
    ],
)
def test_what_is_not_added_to(change, message, clinical, series, mask, tmp_path):
    with refused(ScanError, message):
        path = changed(clinical, tmp_path / "other.dcm", change)
        write_rtstruct(series, mask, LABELS, tmp_path / "rt.dcm", model=MODEL, append=path)
    assert not (tmp_path / "rt.dcm").exists()


def test_a_set_in_another_frame_of_reference_is_not_added_to(clinical, series, mask, tmp_path):
    changed(clinical, clinical, elsewhere)
    with refused(ScanError, "in another frame of reference: found 1.2.3, expected"):
        write_rtstruct(series, mask, LABELS, tmp_path / "rt.dcm", model=MODEL, append=clinical)


def test_a_set_is_never_written_over(clinical, series, mask):
    content = clinical.read_bytes()
    with pytest.raises(InputError, match="one of the files that are read"):
        write_rtstruct(series, mask, LABELS, clinical, model=MODEL, append=clinical)
    assert clinical.read_bytes() == content
