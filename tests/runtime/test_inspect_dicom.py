"""What is said of DICOM files: which series are of use and why others are not, and not a word about the patient."""

import shutil
import warnings
from collections.abc import Callable
from pathlib import Path

import pydicom
import pytest
from pydicom import Dataset
from pydicom.datadict import tag_for_keyword

from parotid_seg.dicom.read.series_volume import find_series, read_series
from parotid_seg.errors import InputError, ScanError
from parotid_seg.runtime.inspection import inspect
from parotid_seg.runtime.report.flag_text import sentences
from tests.dicom_series import ct_voxels, lay, write_enhanced, write_series

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:Invalid value for VR", "ignore:Unknown encoding")]
SHAPE = (7, 16, 20)
FEW = (4, 16, 20)
MARK = "ZQXMARK"
# fmt: off
TEXTS = [
    "PatientName", "PatientID", "PatientBirthDate", "PatientSex", "OtherPatientIDs", "OtherPatientNames",
    "PatientComments", "PatientAddress", "InstitutionName", "ReferringPhysicianName", "StudyDescription",
    "SeriesDescription", "ProtocolName", "Manufacturer", "StationName", "AccessionNumber", "StudyID",
    "BodyPartExamined", "ImageComments", "OperatorsName", "DeviceSerialNumber", "ContentLabel", "RescaleType",
    "PositionReferenceIndicator", "AcquisitionDateTime", "PatientPosition", "LossyImageCompression", "ImageType",
]
"""Attributes the mark is planted in."""
SPOILT = [
    "StudyDescription", "RescaleType", "PhotometricInterpretation", "SOPClassUID", "SOPInstanceUID",
    "SeriesInstanceUID", "StudyInstanceUID", "FrameOfReferenceUID", "ImagePositionPatient",
    "ImageOrientationPatient", "PixelSpacing", "Rows", "BitsStored", "RescaleSlope", "SeriesNumber",
    "NumberOfFrames", "PixelPaddingValue", "AcquisitionNumber", "SharedFunctionalGroupsSequence",
    "ModalityLUTSequence", "SpecificCharacterSet",
]
"""Attributes that have the mark instead of what belongs there."""
# fmt: on


def plant(dataset: Dataset) -> None:
    """The mark in every text there is, whatever it should be."""
    for keyword in TEXTS:
        if keyword in ("RescaleType", "ImageType", "LossyImageCompression"):
            dataset.add(pydicom.DataElement(keyword, "CS" if keyword != "RescaleType" else "LO", MARK))
        else:
            dataset.add(pydicom.DataElement(keyword, "PN" if keyword.endswith("Name") else "LO", f"{MARK}^{keyword}"))


def spoilt(keyword: str) -> Callable[..., None]:
    """A change that plants the mark everywhere, in one attribute of the last slice instead of what belongs there."""

    def change(index: int, dataset: Dataset) -> None:
        plant(dataset)
        if index == FEW[0] - 1:
            dataset.add(pydicom.DataElement(tag_for_keyword(keyword), "LO", MARK))
        if keyword != "RescaleType":
            dataset.RescaleType = "HU"

    return change


def everything_said(folder: Path) -> str:
    """Messages of finding, describing and reading."""
    found = find_series(path for path in folder.rglob("*") if path.is_file())
    said = [*map(str, found.left_out), *(series.title + series.key for series in found.series)]
    said += [f"{label}: {value}" for label, value in inspect(folder).items()]
    said += [str(inspect(next(folder.rglob("*.dcm"))))]
    for series in found.series:
        try:
            said.append(sentences(read_series(series).volume.flags))
        except ScanError as error:
            said.append(str(error))
    return "\n".join(said)


@pytest.mark.parametrize("keyword", SPOILT)
def test_nothing_of_the_patient_is_said(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture, keyword: str
) -> None:
    paths = write_series(tmp_path / "ct", ct_voxels(FEW), lay((6, 1, 1)), change=spoilt(keyword))
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        said = everything_said(tmp_path)
        paths[2].write_bytes(paths[2].read_bytes()[:-50])
        said += everything_said(tmp_path)
    assert said
    assert MARK not in said + caplog.text + "".join(capfd.readouterr()) + "".join(str(each.message) for each in warned)


def test_nothing_of_the_patient_is_said_of_broken_pixels(tmp_path: Path) -> None:
    def planted(_: int, dataset: Dataset) -> None:
        plant(dataset)
        dataset.RescaleType = "HU"

    path = write_enhanced(
        tmp_path / "all.dcm",
        ct_voxels(SHAPE),
        change=planted,
    )
    (series,) = find_series([path]).series
    dataset = pydicom.dcmread(path)
    dataset.BitsAllocated = 8
    dataset.save_as(path)
    with pytest.raises(ScanError) as error:
        read_series(series)
    assert MARK not in str(error.value)


@pytest.mark.parametrize("index", range(3))
@pytest.mark.parametrize("keyword", ["PatientName", "PatientID", "PatientBirthDate"])
def test_a_description_that_names_the_patient_is_withheld(tmp_path: Path, keyword: str, index: int) -> None:
    value, description = {
        "PatientName": ("Meyer-Doe^Ilse", ["CT of doe", "MEYER neck", "for Ilse"]),
        "PatientID": ("MX-47 11", ["neck MX-47 11", "mx", "47"]),
        "PatientBirthDate": ("19700102", ["born 19700102", "19700102", "(19700102)"]),
    }[keyword]

    def change(_: object, dataset: Dataset) -> None:
        setattr(dataset, keyword, value)
        dataset.SeriesDescription = description[index]

    write_series(tmp_path / "ct", ct_voxels(SHAPE), change=change)
    said = str(inspect(tmp_path))
    assert "description withheld, as it may name the patient" in said
    assert description[index] not in said


def test_what_a_folder_holds(tmp_path: Path) -> None:
    write_series(
        tmp_path / "ct",
        ct_voxels(SHAPE),
        lay((3, 1, 0.75)),
        change=lambda _, dataset: setattr(dataset, "SeriesDescription", "Neck\n<b>3.0\x1b[31m"),
    )
    gap = write_series(tmp_path / "gap", ct_voxels(SHAPE), number=None)
    gap[3].unlink()
    (tmp_path / "notes.txt").write_text("stray")
    (tmp_path / ".hidden").write_text("not looked at")
    facts = inspect(tmp_path)
    (title,) = [label for label in facts if label.startswith("CT series 3 (")]
    assert facts == {
        "folder": str(tmp_path),
        "kind": "folder of 14 files",
        "for": "the packaged model (CT)",
        "infer would": "segment 1, refuse 1, not use 0",
        title: "7 slices of 16 x 20 voxels, 3 x 1 x 0.75 mm; slices, rows and columns run to SPL; "
        f'"Neck_<b>3.0_[31m"; in {tmp_path / "ct"}; would be segmented',
        "refused (1)": facts["refused (1)"],
    }
    assert facts["refused (1)"].startswith(f"{tmp_path / 'gap'}: CT series (")
    assert "1 slice missing, at -41.00 mm" in facts["refused (1)"]


def test_a_file_stands_for_its_series(tmp_path: Path) -> None:
    paths = write_series(tmp_path / "ct", ct_voxels(SHAPE))
    write_series(tmp_path / "ct", ct_voxels(SHAPE), uids="2", names="B")
    shutil.copytree(tmp_path / "ct", tmp_path / "ct" / "deeper")  # not its folder
    facts = inspect(paths[2])
    assert facts["file"] == str(paths[2])
    assert facts["kind"].startswith("DICOM file; ")
    assert facts["infer would"] == "segment 1, refuse 0, not use 0"
    assert len(facts) == 5
    paths[5].unlink()
    facts = inspect(paths[2])
    assert facts["infer would"] == "segment 1, refuse 1, not use 0"
    assert "1 slice missing" in facts["refused (1)"]


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="gone: no such file"):
        inspect(tmp_path / "gone")
