"""What is written tells nothing of the patient, unless that is asked for."""

import gzip
from collections.abc import Iterator
from pathlib import Path

import pydicom
import pytest

from parotid_seg.dataset.build import build
from parotid_seg.dataset.dataset_options import DataSetOptions
from tests.dataset.studies import GLANDS, LEFT_BOX, rows, write_study

HU = (-200.0, 300.0)


MARKERS = ("ZEBEDEE", "MRN778899", "19510203", "Whisperfield", "XQROOM7")


def marked(index: object, dataset: pydicom.dataset.Dataset) -> None:
    dataset.PatientName, dataset.PatientID, dataset.PatientBirthDate = "ZEBEDEE^Quux", "MRN778899", "19510203"
    dataset.SeriesDescription, dataset.StudyDescription = "neck Whisperfield", "Whisperfield"
    dataset.InstitutionName, dataset.StationName, dataset.AccessionNumber = "Whisperfield", "XQROOM7", "XQROOM7"


def contents(folder: Path) -> Iterator[bytes]:
    """All that is in a folder, in lower case: names and bytes, as they are and unpacked."""
    for path in folder.rglob("*"):
        yield str(path.relative_to(folder)).encode().lower()
        if path.is_file():
            yield path.read_bytes().lower()
        if path.name.endswith(".gz"):
            yield gzip.decompress(path.read_bytes()).lower()


@pytest.mark.parametrize("identify", [False, True])
def test_nothing_tells_who_the_patient_is(dicom: Path, data: Path, identify: bool) -> None:
    write_study(
        dicom / "a", change=marked, rois=[*GLANDS, ("Zebedee boost", LEFT_BOX), ("Parotid_L Zebedee", LEFT_BOX)]
    )
    write_study(dicom / "b", change=marked, rois=None, seed=1)
    write_study(dicom / "c", change=marked, rois=GLANDS[:1], seed=2)
    said: list[str] = []
    build([dicom], data, DataSetOptions(identify=identify), say=said.append)
    beside = data.with_name(f"{data.name}.private")
    uids = [str(pydicom.dcmread(path).SeriesInstanceUID) for path in dicom.rglob("IM*.dcm")]
    for content in contents(data):
        assert not any(word.lower().encode() in content for word in (*MARKERS, *uids, str(dicom)))
    for word in (*MARKERS, *uids):
        assert not any(word.lower() in line.lower() for line in said)
        told = any(word.lower().encode() in content for content in contents(beside))
        assert told == (identify and (word == "MRN778899" or word in uids)), word
    assert beside.stat().st_mode & 0o077 == 0
    assert "(a name that tells who the patient is)" in [row["name"] for row in rows(data)]
