"""What is read of a series' header for readers: nothing of the patient, nothing malformed."""

from pathlib import Path
from typing import Any

import pytest
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from parotid_seg.dicom.read.facts import WITHHELD, read_facts
from parotid_seg.dicom.read.series import SeriesFacts
from parotid_seg.dicom.read.series_volume import find_series
from tests.dicom_series import ct_voxels, write_enhanced, write_series


def facts_of(folder: Path, **values: Any) -> SeriesFacts:
    """The facts of a CT series whose headers have some values; None deletes one."""

    def change(_: object, dataset: Dataset) -> None:
        for keyword, value in values.items():
            if value is None:
                delattr(dataset, keyword)
            else:
                setattr(dataset, keyword, value)

    (series,) = find_series(write_series(folder, ct_voxels((10, 16, 16)), change=change)).series
    return series.facts


def test_what_a_ct_says(tmp_path: Path) -> None:
    facts = facts_of(
        tmp_path,
        SeriesDescription="Neck\n 2.0 mm",
        KVP="120",
        ConvolutionKernel=["Br40f", "3"],
        Manufacturer="Siemens",
        ManufacturerModelName="Force",
    )
    assert facts == SeriesFacts(
        "CT", 3, "Neck_ 2.0 mm", kv=120.0, kernel="Br40f/3", tesla=None, scanner="Siemens Force"
    )


def test_text_in_utf8_that_is_not_declared(tmp_path: Path) -> None:
    misread = "Sch\u00e4del".encode().decode("latin-1")
    assert (
        facts_of(tmp_path, SpecificCharacterSet="ISO_IR 100", SeriesDescription=misread).description == "Sch\u00e4del"
    )


@pytest.mark.parametrize(
    ("maker", "model", "told"),
    [
        ("Canon", "Canon Aquilion", "Canon Aquilion"),
        ("Canon", None, "Canon"),
        (None, "Aquilion", "Aquilion"),
        (None, None, ""),
    ],
)
def test_the_scanner(tmp_path: Path, maker: str | None, model: str | None, told: str) -> None:
    named = {"ManufacturerModelName": model} if model else {}
    assert facts_of(tmp_path, Manufacturer=maker, **named).scanner == told


@pytest.mark.parametrize("value", ["", "-120", "0", "1e9", ["120", "140"]])
def test_numbers_that_are_none_are_left_out(tmp_path: Path, value: Any) -> None:
    assert facts_of(tmp_path, KVP=value).kv is None


@pytest.mark.parametrize("keyword", ["SeriesDescription", "ConvolutionKernel", "Manufacturer", "ManufacturerModelName"])
def test_what_names_the_patient_is_withheld(tmp_path: Path, keyword: str) -> None:
    facts = facts_of(tmp_path, PatientName="Meyer^Ilse", **{keyword: "for ILSE"})
    texts = {"ConvolutionKernel": facts.kernel, "SeriesDescription": facts.description}
    assert texts.get(keyword, facts.scanner) == WITHHELD
    assert "ilse" not in str(facts).casefold()


@pytest.mark.parametrize(
    ("keyword", "value", "text"),
    [
        ("PatientName", "Müller^Änne", "MUELLER Neck"),
        ("PatientName", "Müller^Änne", "Mu\u0308ller"),
        ("PatientName", "Müller^Änne", "muller"),
        ("PatientName", "Mueller^Anne", "Hals Müller"),
        ("PatientName", "Mueller^Anne", "Hals Muller"),
        ("PatientName", "José^María", "JOSE MARIA"),
        ("PatientName", "Strauß^Björn", "STRAUSS"),
        ("PatientName", "Sørensen^Aage", "Soerensen"),
        ("PatientName", "O'Neill^Kim", "oneill"),
        ("PatientBirthDate", "19500102", "Neck 1950-01-02"),
        ("PatientBirthDate", "19500102", "02.01.1950"),
        ("PatientBirthDate", "19500102", "1/2/1950"),
        ("PatientBirthDate", "19500102", "02 01 1950"),
        ("PatientID", "12-34-56", "Neck 123456"),
        ("OtherPatientNames", ["Doe^Jane", "Meyer^Ilse"], "for Ilse"),
        ("OtherPatientIDs", ["A77", "B4711"], "b-4711"),
    ],
)
def test_other_ways_to_write_an_identity(tmp_path: Path, keyword: str, value: str | list[str], text: str) -> None:
    said = {"SpecificCharacterSet": "ISO_IR 192", keyword: value, "SeriesDescription": text}
    assert facts_of(tmp_path, **said).description == WITHHELD


@pytest.mark.parametrize("text", ["Head Neck 2.0", "CT 1950", "Hals nativ 02.01."])
def test_what_names_nobody_is_shown(tmp_path: Path, text: str) -> None:
    said = {"PatientName": "Müller^Änne", "PatientBirthDate": "19500102", "PatientID": "12-34-56"}
    assert facts_of(tmp_path, SpecificCharacterSet="ISO_IR 192", **said, SeriesDescription=text).description == text


@pytest.mark.filterwarnings("ignore:The value length")
def test_long_text_is_cut(tmp_path: Path) -> None:
    assert facts_of(tmp_path, SeriesDescription="x" * 70).description == "x" * 64


def test_groups_of_an_enhanced_object(tmp_path: Path) -> None:
    def change(_: object, dataset: Dataset) -> None:
        shared = dataset.SharedFunctionalGroupsSequence[0]
        shared.CTXRayDetailsSequence, shared.CTReconstructionSequence = (Sequence([Dataset()]) for _ in range(2))
        shared.CTXRayDetailsSequence[0].KVP = 140.0
        shared.CTReconstructionSequence[0].ConvolutionKernel = "FC08"

    path = write_enhanced(tmp_path / "all.dcm", ct_voxels((10, 16, 16)), change=change)
    (series,) = find_series([path]).series
    assert (series.facts.kv, series.facts.kernel) == (140.0, "FC08")


def test_a_file_that_is_gone_or_damaged(tmp_path: Path) -> None:
    (tmp_path / "text.dcm").write_text("no DICOM")
    for name in ("gone.dcm", "text.dcm"):
        assert read_facts(tmp_path / name, "CT", None) == SeriesFacts("CT", None, WITHHELD)
