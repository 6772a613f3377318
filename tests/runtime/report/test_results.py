"""results.json: what its types say, read strictly, and what the schema in docs says."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from parotid_seg.dicom.read.series import SeriesFacts
from parotid_seg.errors import RecordError
from parotid_seg.flags import Flag, FlagCode
from parotid_seg.records import record_text, schema_text, write_record
from parotid_seg.runtime.pipeline.journal import Entry
from parotid_seg.runtime.report.results import Results, read_results, results_of
from tests.runtime.report.records import entry, failed, run_of

SCHEMA = Path(__file__).parents[3] / "docs" / "results.schema.json"
CASE = replace(
    entry(
        agreement={"parotid_left": 0.97, "parotid_right": 0.9},
        flags=(Flag(FlagCode.SFORM_UNUSABLE), Flag(FlagCode.UNUSUAL_VOLUME, "parotid_left", 70.5)),
        further={"a.seg.dcm": "cd" * 32},
        mask_sha256="ab" * 32,
    ),
    source="/scans/who/series-1f0c2a9b",
    series="CT series 3 (1f0c2a9b)",
    shape=(120, 512, 512),
    spacing_mm=(3.0, 0.9765, 0.9765),
    facts=SeriesFacts("CT", 3, "Neck", kv=120.0, kernel="B30f", scanner="Maker Model"),
    dose="/doses/a.dcm",
    dose_sha256="ef" * 32,
    mean_gy={"parotid_left": 24.5},
    expected_dsc={"parotid_left": 0.81},
    floor_dsc={"parotid_left": 0.71},
)


def written(folder: Path, *cases: Entry) -> Path:
    write_record(results_of(cases or [CASE, failed()], run_of()), folder / "results.json")
    return folder / "results.json"


def test_what_it_says_of_a_case(tmp_path: Path) -> None:
    bad, good = json.loads(written(tmp_path).read_text())["cases"]
    assert (bad["case"], bad["status"], bad["structures"], bad["engine"]) == ("broken", "failed", [], None)
    assert bad["failure"] == {"reason": "not a NIfTI file", "path": "/scans/who/broken.nii.gz"}
    assert good["failure"] is None
    assert good["scan"] == {
        "source": "/scans/who",
        "series": "CT series 3 (1f0c2a9b)",
        "shape": [120, 512, 512],
        "spacing_mm": [3.0, 0.9765, 0.9765],
        "decoders": [],
        "facts": {
            "modality": "CT",
            "number": 3,
            "description": "Neck",
            "kv": 120.0,
            "kernel": "B30f",
            "tesla": None,
            "scanner": "Maker Model",
        },
    }
    assert good["structures"] == [
        {
            "name": "parotid_left",
            "volume_ml": 30.0,
            "agreement": 0.97,
            "mean_gy": 24.5,
            "expected_dsc": 0.81,
            "floor_dsc": 0.71,
        },
        {
            "name": "parotid_right",
            "volume_ml": 28.0,
            "agreement": 0.9,
            "mean_gy": None,
            "expected_dsc": None,
            "floor_dsc": None,
        },
    ]
    assert good["dose"] == {"source": "/doses/a.dcm", "sha256": "ef" * 32}
    assert good["ratio"] == pytest.approx(30 / 28)
    assert good["flags"][1] == {
        "code": "unusual_volume",
        "structure": "parotid_left",
        "value": 70.5,
        "detail": "",
        "severity": 3,
        "text": "left parotid of unusual volume (70.5 ml)",
    }
    assert good["seconds"] == {"read": 0.1, "segment": 0.5, "write": 0.2}
    assert good["engine"] == {
        "backend": "onnxruntime 1.32.0",
        "device": "cpu",
        "precision": "fp32",
        "model_sha256": "ab" * 32,
    }
    assert good["files"] == {"a.nii.gz": "ab" * 32, "a.seg.dcm": "cd" * 32}


def test_a_series_that_failed_is_told_by_paths_that_exist_and_its_name(tmp_path: Path) -> None:
    place = "/scans/who/series-1f0c2a9b"
    entry = Entry("ct", place, "", "failed", "cut off", place, series="CT series 3 (1f0c2a9b)")
    case = read_results(written(tmp_path, entry)).cases[0]
    assert (case.failure.path, case.scan.source, case.reason) == ("/scans/who", "/scans/who", "who: cut off")
    assert entry.failure == "/scans/who: CT series 3 (1f0c2a9b): cut off"


def test_it_is_read_as_it_was_written(tmp_path: Path) -> None:
    path = written(tmp_path)
    assert path.read_bytes().isascii()
    assert record_text(read_results(path)) == path.read_text()
    assert read_results(path) == results_of([CASE, failed()], run_of())


def test_names_come_back_as_they_are(tmp_path: Path) -> None:
    evil = "a\u202e\udcff\n<b>"
    case = read_results(written(tmp_path, replace(CASE, source=f"/{evil}", series=""))).cases[0]
    assert case.scan.source == f"/{evil}"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"schema_version": 2}, "found schema_version 2, expected 1"),
        ({"more": 1}, "unknown field `more`"),
        ({"cases": [{}]}, "missing required field `case`"),
        ({"run": None}, r"Expected `object`, got `null` - at `\$.run`"),
    ],
)
def test_anything_else_is_refused(
    tmp_path: Path, change: dict[str, int | list[dict[Any, Any]] | None], words: str
) -> None:
    path = written(tmp_path)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(RecordError, match=words):
        read_results(path)


def test_the_schema_in_docs_is_that_of_the_types(snapshot: Callable[[str, str | Path], None]) -> None:
    snapshot(schema_text(Results), SCHEMA)


def test_the_file_fits_the_schema(tmp_path: Path) -> None:
    schema = json.loads(SCHEMA.read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    content = json.loads(written(tmp_path).read_text())
    jsonschema.validate(content, schema, jsonschema.Draft202012Validator)
    content["cases"][1]["flags"][0]["code"] = "something"
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(content, schema, jsonschema.Draft202012Validator)


def test_ratio_and_structures_of_other_names(tmp_path: Path) -> None:
    case = read_results(written(tmp_path, replace(CASE, volumes_ml={"left_right_parotid": 9.0, "tumour": 1.0}))).cases[
        0
    ]
    assert [each.name for each in case.structures] == ["left_right_parotid", "tumour"]
    assert case.ratio is None
