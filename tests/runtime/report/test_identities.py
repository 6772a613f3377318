"""Whose a scan is, for --identify."""

from pathlib import Path
from typing import Any

import pytest
from pydicom.dataset import Dataset

from parotid_seg.dicom.read.series_volume import find_series
from parotid_seg.runtime.pipeline.discovery import Case
from parotid_seg.runtime.pipeline.journal import Entry
from parotid_seg.runtime.report.identities import PatientIdentity, patients_of
from parotid_seg.runtime.report.page import write_report
from parotid_seg.runtime.report.results import results_of
from parotid_seg.runtime.report.summary import write_summary
from tests.dicom_series import ct_voxels, write_series
from tests.runtime.report.records import LABELS, run_of
from tests.small_files import summary_rows

EVIL = "=<b>Doe\u202e\n"


def case_of(folder: Path, **texts: Any) -> Case:
    """A case of a series whose headers have some texts."""

    def change(_: object, dataset: Dataset) -> None:
        for keyword, text in texts.items():
            setattr(dataset, keyword, text)

    paths = write_series(folder, ct_voxels((10, 24, 24)), change=change)
    (series,) = find_series(paths).series
    return Case(folder.name, (series,))


@pytest.mark.parametrize(
    ("texts", "told"),
    [
        (("Doe^Jane", "4711", "19500102"), "Doe^Jane, ID 4711, born 1950-01-02"),
        (("Yamada^Tarou=山田^太郎=やまだ^たろう", "", ""), "Yamada^Tarou=山田^太郎=やまだ^たろう"),
        (("", "4711", "1950"), "ID 4711, born 1950"),
        (("Doe", "", "19501399"), "Doe, born 19501399"),
    ],
)
@pytest.mark.filterwarnings("ignore:Invalid value for VR DA")
def test_what_the_file_says(tmp_path: Path, texts: tuple[str, str, str], told: str) -> None:
    name, number, born = texts
    case = case_of(tmp_path / "ct", PatientName=name, PatientID=number, PatientBirthDate=born)
    assert str(patients_of([case])["ct"]) == told


def test_a_name_in_utf8_that_is_not_declared(tmp_path: Path) -> None:
    misread = "M\u00fcller^J\u00fcrgen".encode().decode("latin-1")
    case = case_of(tmp_path / "ct", SpecificCharacterSet="ISO_IR 100", PatientName=misread)
    assert patients_of([case])["ct"].name == "M\u00fcller^J\u00fcrgen"


def test_scans_that_say_nothing(tmp_path: Path) -> None:
    anonymous = case_of(tmp_path / "anonymous", PatientName="", PatientID="", PatientBirthDate="")
    gone, nifti = case_of(tmp_path / "gone"), Case("nifti", (tmp_path / "a.nii.gz",))
    for each in gone.scan[0].slices:
        each.path.unlink()
    assert patients_of([anonymous, gone, nifti]) == {}


@pytest.fixture
def written(tmp_path: Path) -> Any:
    """Summary and report of two cases and of one that is unknown; the table and the patients of results.json."""
    entries = [
        Entry("a", "/a", "", "done", mask="a.nii.gz", mask_sha256="a", volumes_ml=dict.fromkeys(LABELS[1:], 20.0)),
        Entry("b", "/b", "", "failed", reason="not a scan", path="/b"),
        Entry("", "/c", "", "failed", reason="no such file", path="/c"),
    ]
    patients = {"a": PatientIdentity(EVIL, "4711", "1950-01-02"), "b": PatientIdentity("Roe", "", "unknown")}
    (tmp_path / "a.nii.gz").write_bytes(b"mask")
    write_summary(entries, LABELS, tmp_path / "summary.csv", patients)
    results = results_of(entries, run_of(), patients)
    write_report(results, tmp_path)
    rows = {row["source"]: row["patient"] for row in summary_rows(tmp_path)}
    return rows, {case.scan.source: case.patient for case in results.cases}


def test_the_summary(written: Any) -> None:
    told = "=<b>Doe\\u202e\\u000a, ID 4711, born 1950-01-02"
    assert written[0] == {"/a": f"'{told}", "/b": "Roe, born unknown", "/c": ""}


def test_the_report(written: Any, tmp_path: Path) -> None:
    text = (tmp_path / "report.html").read_text("ascii")
    assert text.count("<bdi>=&lt;b&gt;Doe\\u202e\\u000a, ID 4711, born 1950-01-02</bdi>") == 2, "in table and section"
    assert text.count("<bdi>Roe, born unknown</bdi>") == 2
    assert text.count("<dt>Patient</dt>") == 2
    assert "<b>Doe" not in text


def test_the_results(written: Any) -> None:
    assert written[1] == {
        "/a": PatientIdentity(EVIL, "4711", "1950-01-02"),
        "/b": PatientIdentity("Roe", "", "unknown"),
        "/c": None,
    }, "as they stand in the file"


def test_by_default_nobody_is_told(tmp_path: Path) -> None:
    write_summary([Entry("b", "/b", "", "failed")], LABELS, tmp_path / "summary.csv")
    results = results_of([Entry("b", "/b", "", "failed")], run_of())
    write_report(results, tmp_path)
    assert results.cases[0].patient is None
    text = (tmp_path / "report.html").read_text()
    assert "patient" not in (tmp_path / "summary.csv").read_text()
    assert "no other data on who the patient is" in text
    assert "<dt>Patient</dt>" not in text
