"""All scans of a patient are in one list, whatever becomes of IDs, lists and files."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pydicom
import pytest
from pydicom.dataset import Dataset

from parotid_seg.dataset.build import build
from parotid_seg.dataset.dataset_options import DataSetOptions
from tests.dataset.studies import case_from, rows, write_study
from tests.dicom_series import uid


def write_patients(dicom: Path, count: int, *more: tuple[str, str]) -> None:
    """A study each of patients P0, P1 and so on; and further series of a study, each with its PatientID."""
    for number in range(count):
        write_study(dicom / f"p{number}", patient=f"P{number}", change=in_study(f"P{number}"), seed=number)
    for seed, (study, patient) in enumerate(more, start=count):
        write_study(dicom / f"further{seed}", patient=patient, change=in_study(study), seed=seed)


def in_study(name: str) -> Callable[[int, Dataset], None]:
    def change(index: int, dataset: Dataset) -> None:
        dataset.StudyInstanceUID = uid("study", name)

    return change


def splits(data: Path) -> dict[str, list[str]]:
    found: dict[str, list[str]] = json.loads((data / "splits.json").read_text())
    return found


@pytest.mark.parametrize("patient", ["", "p0", " P0 "])
def test_a_study_is_of_one_patient_also_without_an_id_or_in_lower_case(dicom: Path, data: Path, patient: str) -> None:
    write_patients(dicom, 4, *(("P0", patient),) * 3)
    build([dicom], data, DataSetOptions(test=1))
    patients = {row["patient"] for row in rows(data, "cases.csv")}
    own = {row["patient"] for row in rows(data, "cases.csv") if "further" in row["folder"]}
    (first,) = (row["patient"] for row in rows(data, "cases.csv") if row["folder"] == str(dicom / "p0"))
    assert (len(patients), own) == (4, {first})


def test_a_study_of_several_ids_is_reported(dicom: Path, data: Path) -> None:
    write_patients(dicom, 2, ("P0", "other"))
    said: list[str] = []
    build([dicom], data, say=said.append)
    assert any(line.startswith("note: 1 study with scans of several PatientIDs") for line in said)


def test_patients_keep_their_lists_when_all_ids_change(dicom: Path, data: Path) -> None:
    write_patients(dicom, 6)
    options = DataSetOptions(test=2)
    build([dicom], data, options)
    before = splits(data)
    for path in dicom.rglob("*.dcm"):
        dataset = pydicom.dcmread(path)
        dataset.PatientID = f"pseudonym {dataset.PatientID}"
        dataset.save_as(path)
    build([dicom], data, options)
    assert splits(data) == before
    (data / "splits.json").unlink()
    build([dicom], data, options)
    assert splits(data) == before


def test_cases_whose_files_are_gone_are_in_no_list(dicom: Path, data: Path) -> None:
    write_patients(dicom, 3)
    build([dicom], data)
    shutil.rmtree(data)
    shutil.rmtree(dicom)
    for number in range(3, 6):
        write_study(dicom / f"p{number}", patient=f"P{number}", seed=number)
    said: list[str] = []
    built = build([dicom], data, say=said.append)
    assert built.labelled == 3
    text = "3 cases of earlier runs lack files, made again if their scans are here"
    assert f"{text}: case_0001, case_0002, case_0003" in said
    here = {case_from(data, dicom / f"p{number}") for number in range(3, 6)}
    assert {case for cases in splits(data).values() for case in cases} == here
    assert json.loads((data / "dataset.json").read_text())["counts"]["patients"] == 3
