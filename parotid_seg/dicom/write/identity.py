"""Copies patient, study and frame of reference from a source image into a DICOM object, and makes it refer to images
and frames (PS3.3, C.8.8.5 and 10.3).

Only DICOM objects may contain patient data. The source's text is copied byte for byte with its character set; it is
neither decoded nor checked.
"""

from __future__ import annotations

from collections.abc import Iterable

from pydicom.charset import convert_encodings, decode_bytes, encode_string
from pydicom.datadict import dictionary_VR
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.valuerep import STR_VR, TEXT_VR_DELIMS

from parotid_seg.dicom.phi_safe import phi_safe
from parotid_seg.dicom.read.file import fill_blank, read_object
from parotid_seg.dicom.read.series import Series, Slice
from parotid_seg.dicom.read.text import decode_undeclared
from parotid_seg.errors import ScanError

UTF8 = "ISO_IR 192"
ALONE = frozenset(
    [
        *(f"ISO_IR {number}" for number in (100, 101, 109, 110, 126, 127, 138, 144, 148, 166, 203)),
        UTF8,
        "GB18030",
        "GBK",
    ]
)
"""Character sets that have more than ASCII without escape sequences."""
PADDING = {"UI": b"\0"}
"""Padding bytes of values of odd length, by value representation; a space for the others."""

REQUIRED = """
    PatientName PatientID PatientBirthDate PatientSex StudyDate StudyTime ReferringPhysicianName StudyID
    AccessionNumber FrameOfReferenceUID PositionReferenceIndicator
"""
"""Attributes that must be present, possibly empty (type 2, except for the frame of reference)."""
PATIENT = """
    ReferencedPatientSequence IssuerOfPatientID TypeOfPatientID EthnicGroup IssuerOfPatientIDQualifiersSequence
    SourcePatientGroupIdentificationSequence GroupOfPatientsIdentificationSequence PatientBirthTime
    PatientBirthDateInAlternativeCalendar PatientDeathDateInAlternativeCalendar PatientAlternativeCalendar
    QualityControlSubject StrainDescription StrainNomenclature StrainStockSequence StrainAdditionalInformation
    StrainCodeSequence GeneticModificationsSequence OtherPatientNames OtherPatientIDsSequence
    ReferencedPatientPhotoSequence EthnicGroupCodeSequence PatientSpeciesDescription PatientSpeciesCodeSequence
    PatientBreedDescription PatientBreedCodeSequence BreedRegistrationSequence ResponsiblePerson
    ResponsiblePersonRole ResponsibleOrganization PatientComments PatientIdentityRemoved DeidentificationMethod
    DeidentificationMethodCodeSequence ClinicalTrialSponsorName ClinicalTrialProtocolID ClinicalTrialProtocolName
    IssuerOfClinicalTrialProtocolID OtherClinicalTrialProtocolIDsSequence ClinicalTrialSiteID ClinicalTrialSiteName
    IssuerOfClinicalTrialSiteID ClinicalTrialSubjectID IssuerOfClinicalTrialSubjectID ClinicalTrialSubjectReadingID
    IssuerOfClinicalTrialSubjectReadingID ClinicalTrialProtocolEthicsCommitteeName
    ClinicalTrialProtocolEthicsCommitteeApprovalNumber
"""
"""The rest of the modules Patient and Clinical Trial Subject (PS3.3, C.7.1)."""
STUDY = """
    IssuerOfAccessionNumberSequence ReferringPhysicianIdentificationSequence ConsultingPhysicianName
    ConsultingPhysicianIdentificationSequence StudyDescription ProcedureCodeSequence PhysiciansOfRecord
    PhysiciansOfRecordIdentificationSequence NameOfPhysiciansReadingStudy
    PhysiciansReadingStudyIdentificationSequence ReferencedStudySequence StudyInstanceUID RequestingService
    RequestingServiceCodeSequence ReasonForPerformedProcedureCodeSequence AdmittingDiagnosesDescription
    AdmittingDiagnosesCodeSequence PatientAge PatientSize PatientSizeCodeSequence PatientBodyMassIndex
    MeasuredAPDimension MeasuredLateralDimension PatientWeight MedicalAlerts Allergies Occupation SmokingStatus
    AdditionalPatientHistory PregnancyStatus LastMenstrualDate PatientSexNeutered ReasonForVisit
    ReasonForVisitCodeSequence AdmissionID IssuerOfAdmissionIDSequence ServiceEpisodeID ServiceEpisodeDescription
    IssuerOfServiceEpisodeIDSequence PatientState ClinicalTrialTimePointID ClinicalTrialTimePointDescription
    LongitudinalTemporalOffsetFromEvent LongitudinalTemporalEventType ClinicalTrialTimePointTypeCodeSequence
    IssuerOfClinicalTrialTimePointID ConsentForClinicalTrialUseSequence
"""
"""The rest of General Study, Patient Study and Clinical Trial Study (C.7.2)."""
STUDY_CLASS = "1.2.840.10008.3.1.2.3.1"
"""Detached Study Management: retired, but still the SOP class by which a structure set refers to a study."""


def read_source(series: Series) -> Dataset:
    """The header of a series' first slice, with patient and study.

    Raises:
        ScanError: if it cannot be read, or has no frame of reference that a result could lie in.
    """
    path = series.slices[0].path
    with phi_safe(path, "DICOM image"):
        header = read_object(path)
        fill_blank(header)
        if header.SOPInstanceUID != series.slices[0].sop_instance_uid:
            raise ScanError("found another image than when the series was read", path=path)
        for keyword in ("StudyInstanceUID", "FrameOfReferenceUID"):
            if not header.get(keyword):
                raise ScanError(
                    f"found no {keyword}, which a DICOM result must refer to; --format nifti needs none", path=path
                )
    return header


def carry_identity(source: Dataset, target: Dataset, own_text: Iterable[str]) -> None:
    """Copy patient, study and frame of reference, with the character set.

    Args:
        source: header of a source image.
        target: the object to be written.
        own_text: other texts in the object; if the source's character set cannot express them, all becomes UTF-8.
    """
    keeps = fits(own_text, source)
    if keeps and "SpecificCharacterSet" in source:
        target["SpecificCharacterSet"] = source["SpecificCharacterSet"]
    elif not keeps:
        decode_undeclared(source)
        source.decode()
        target.SpecificCharacterSet = UTF8
    for keyword in (REQUIRED + PATIENT + STUDY).split():
        if keyword not in source:
            continue
        element, kind = source.get_item(keyword), dictionary_VR(keyword)
        if keeps and isinstance(element, RawDataElement) and kind in STR_VR and element.value is not None:
            value = element.value + PADDING.get(kind, b" ") * (len(element.value) % 2)
            target[keyword] = element._replace(VR=kind, value=value, length=len(value), is_little_endian=True)
        else:
            target[keyword] = source[keyword]
    for keyword in REQUIRED.split():
        if keyword not in target:
            setattr(target, keyword, None)
    syntax = target.file_meta.TransferSyntaxUID
    target.set_original_encoding(syntax.is_implicit_VR, syntax.is_little_endian, _encodings(target))


def fits(texts: Iterable[str], dataset: Dataset) -> bool:
    """Whether a dataset's character set can express some texts.

    A dataset that states no character set has ASCII only (PS3.3, C.12.1.1.2). Sets with code extensions, which change
    by escape sequences, are used for ASCII only as well.
    """
    others = [text for text in texts if not text.isascii()]
    if not others:
        return True
    encodings = _encodings(dataset)
    stated = dataset.get("SpecificCharacterSet")
    alone = isinstance(stated, str) and stated in ALONE
    return alone and all(
        decode_bytes(encode_string(text, encodings), encodings, TEXT_VR_DELIMS) == text for text in others
    )


def _encodings(dataset: Dataset) -> list[str]:
    """Python's names of a dataset's character set."""
    return list(convert_encodings(dataset.get("SpecificCharacterSet")))


def slice_reference(image: Slice) -> Dataset:
    """A reference to a slice: its image, and its frame if the image has several."""
    item = Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = image.sop_class_uid, image.sop_instance_uid
    if image.frame is not None:
        item.ReferencedFrameNumber = image.frame + 1
    return item


def image_references(series: Series, frames_in_file: int | None) -> list[Dataset]:
    """A reference to each image of a series, with frame numbers only if not all frames belong to the series.

    Args:
        frames_in_file: of a multi-frame source.
    """
    frames: dict[str, list[int]] = {}
    for each in series.slices:
        if each.frame is not None:
            frames.setdefault(each.sop_instance_uid, []).append(each.frame + 1)
    references = {each.sop_instance_uid: slice_reference(each) for each in series.slices}
    for uid, numbers in frames.items():
        del references[uid].ReferencedFrameNumber
        if len(numbers) != frames_in_file:
            references[uid].ReferencedFrameNumber = sorted(numbers)
    return list(references.values())


def refer_to(series: Series, structure_set: Dataset, frames_in_file: int | None) -> None:
    """Make a structure set refer to a series and all its images, adding missing references."""
    frame = _item(
        structure_set, "ReferencedFrameOfReferenceSequence", "FrameOfReferenceUID", series.frame_of_reference_uid
    )
    study = _item(frame, "RTReferencedStudySequence", "ReferencedSOPInstanceUID", series.study_uid)
    if "ReferencedSOPClassUID" not in study:
        study.ReferencedSOPClassUID = STUDY_CLASS
    referenced_series = _item(study, "RTReferencedSeriesSequence", "SeriesInstanceUID", series.series_uid)
    images = list(referenced_series.get("ContourImageSequence") or ())
    there = {each.get("ReferencedSOPInstanceUID") for each in images}
    new = [each for each in image_references(series, frames_in_file) if each.ReferencedSOPInstanceUID not in there]
    referenced_series.ContourImageSequence = [*images, *new]


def _item(dataset: Dataset, sequence: str, key: str, value: str) -> Dataset:
    """The item of a sequence in which the attribute `key` has a value; added if there is none."""
    items = list(dataset.get(sequence) or ())
    for each in items:
        if each.get(key) == value:
            return each
    item = Dataset()
    setattr(item, key, value)
    setattr(dataset, sequence, [*items, item])
    return item
