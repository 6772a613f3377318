"""Whose scan it is goes into the object as it stands in the source, and nowhere else."""

from pathlib import Path

import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray

from parotid_seg.dicom.write.rtstruct import write_rtstruct
from tests.dicom.for_writers import LABELS, MODEL, drawn, make_series

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # pydicom's, over what is wrong here on purpose


@pytest.mark.parametrize(
    ("character_set", "name", "number"),
    [
        ("ISO_IR 100", b"M\xfcller^J", b"\xc4\xd6-1"),
        ("ISO_IR 192", b"M\xfcller^J", b"\xc4\xd6-1"),  # not the character set it says
        (["", "ISO 2022 IR 87"], b"A^B=\x1b$B;3ED\x1b(B^\x1b$BB@O:\x1b(B", b"\x1b$B;3\x1b(B12"),
        ("GB18030", "王^小东".encode("gb18030"), "病人1".encode("gb18030")),
        (None, b"M\xfcller^J", b"\xc4\xd6-1"),
    ],
)
def test_patient_and_character_set_are_carried_byte_for_byte(
    character_set: str | list[str] | None, name: bytes, number: bytes, mask: NDArray[np.uint8], tmp_path: Path
) -> None:
    places = {b"N" * len(name): name, b"I" * len(number): number}

    def patient(index: object, dataset: pydicom.Dataset) -> None:
        dataset.PatientName, dataset.PatientID = ("N" * len(name)), ("I" * len(number))
        dataset.PatientBirthDate, dataset.PatientSex, dataset.PatientWeight = "19500101", "x?", "70.50 "
        dataset.StudyDescription, dataset.EthnicGroup = "Neck", "?"
        del dataset.SpecificCharacterSet
        if character_set is not None:
            dataset.SpecificCharacterSet = character_set

    series = make_series(tmp_path / "ct", change=patient)
    for each in series.slices:
        content = each.path.read_bytes()
        for placeholder, text in places.items():
            content = content.replace(placeholder, text)
        each.path.write_bytes(content)
    write_rtstruct(series, mask, LABELS, tmp_path / "rt.dcm", model=MODEL)
    source, found = (pydicom.dcmread(path) for path in (series.slices[0].path, tmp_path / "rt.dcm"))
    for keyword in ["PatientName", "PatientID", "PatientBirthDate", "PatientSex", "PatientWeight", "StudyDescription"]:
        assert found.get_item(keyword).value == source.get_item(keyword).value
    assert found.get_item("PatientName").value.strip() == name
    assert found.get("SpecificCharacterSet") == source.get("SpecificCharacterSet")


def test_labels_the_character_set_lacks_make_all_text_utf8(mask: NDArray[np.uint8], tmp_path: Path) -> None:
    def patient(index: object, dataset: pydicom.Dataset) -> None:
        dataset.SpecificCharacterSet, dataset.PatientName = "ISO_IR 100", "Müller^Jörg"

    series = make_series(tmp_path / "ct", change=patient)
    write_rtstruct(series, mask, ("背景", "腮腺", "parotid_right"), tmp_path / "rt.dcm", model=MODEL)
    found = pydicom.dcmread(tmp_path / "rt.dcm")
    assert found.SpecificCharacterSet == "ISO_IR 192"
    assert found.PatientName == "Müller^Jörg"
    assert list(drawn(tmp_path / "rt.dcm", series)) == ["腮腺", "Parotid_R"]


@pytest.mark.parametrize(
    "character_set",
    [None, "ISO_IR 6", ["", "ISO 2022 IR 87"], ["ISO 2022 IR 6", "ISO 2022 IR 100"], "ISO_IR 13", "ISO_IR 100"],
)
def test_names_are_stored_in_the_character_set_that_is_stated(
    character_set: str | list[str] | None, mask: NDArray[np.uint8], tmp_path: Path
) -> None:
    """The default character set is ASCII, though pydicom reads it as Latin-1."""

    def with_set(index: object, dataset: pydicom.Dataset) -> None:
        del dataset.SpecificCharacterSet
        if character_set is not None:
            dataset.SpecificCharacterSet = character_set

    series = make_series(tmp_path / "ct", change=with_set)
    write_rtstruct(series, mask, ("background", "Drüse links", "parotid_right"), tmp_path / "rt.dcm", model=MODEL)
    found = pydicom.dcmread(tmp_path / "rt.dcm")
    stated = "ISO_IR 100" if character_set == "ISO_IR 100" else "ISO_IR 192"
    assert found.SpecificCharacterSet == stated
    name = found.StructureSetROISequence[0].get_item("ROIName").value
    assert name.decode("latin-1" if stated == "ISO_IR 100" else "utf-8").strip() == "Drüse links"


def test_patient_data_that_is_missing_is_empty(mask: NDArray[np.uint8], tmp_path: Path) -> None:
    def patient(index: object, dataset: pydicom.Dataset) -> None:
        for keyword in ["PatientName", "PatientID", "PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID"]:
            del dataset[keyword]

    series = make_series(tmp_path / "ct", change=patient)
    write_rtstruct(series, mask, LABELS, tmp_path / "rt.dcm", model=MODEL)
    assert pydicom.dcmread(tmp_path / "rt.dcm")["PatientID"].is_empty
