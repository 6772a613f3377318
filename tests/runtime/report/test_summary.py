"""summary.csv: harmless in a spreadsheet whatever scans are called, numbers as they are."""

from pathlib import Path

import pytest

from parotid_seg.flags import Flag, FlagCode
from parotid_seg.runtime.pipeline.journal import Entry
from parotid_seg.runtime.report.summary import write_summary
from parotid_seg.tables import csv_safe, write_csv
from tests.small_files import summary_rows

LABELS = ("background", "parotid_left", "parotid_right")


@pytest.mark.parametrize("first", ["=", "+", "-", "@", "\t", "\r", "\n", "\uff1d"])
def test_no_text_is_a_formula(tmp_path: Path, first: str) -> None:
    evil = f'{first}HYPERLINK("http:x?"&A1,"see")'
    sizes = {"parotid_left": 20.0, evil: 3.0}
    entry = Entry(
        evil,
        evil,
        "",
        "done",
        reason=evil,
        mask=evil,
        flags=(Flag(FlagCode.DAMAGED_FILE_BESIDE, detail=evil), Flag(FlagCode.SHEARED, value=9.0)),
        volumes_ml=sizes,
        seconds={"read": 1e-05},
    )
    write_summary([entry], ("background", "parotid_left", evil), tmp_path / "summary.csv")
    (row,) = summary_rows(tmp_path)
    assert {name: row[name] for name in ("case", "reason", "mask", "source")} == dict.fromkeys(
        ("case", "reason", "mask", "source"), f"'{evil}"
    )
    assert row["flags"].startswith(f"'{evil}")
    assert row["flag_codes"] == "damaged_file_beside;sheared"
    assert (row["left_ml"], row[f"'{evil}_ml"], row["read_s"]) == ("20.00", "3.00", "1e-05")
    assert not any(text.startswith(first) for cell in row.items() for text in cell)


def test_other_texts_stay(tmp_path: Path) -> None:
    entry = Entry("a-1", "/scans/a=1.nii.gz", "", "failed", 'no "CT", only\nthis')
    write_summary([entry], LABELS, tmp_path / "summary.csv")
    (row,) = summary_rows(tmp_path)
    assert (row["case"], row["source"], row["reason"]) == ("a-1", "/scans/a=1.nii.gz", 'no "CT", only\nthis')
    assert (row["left_ml"], row["flags"]) == ("", "")
    assert csv_safe("") == ""


def test_it_is_utf8_with_its_own_line_ends(tmp_path: Path) -> None:
    write_summary([Entry("Müller-李", "/Größe.nii", "", "done")], LABELS, tmp_path / "summary.csv")
    content = (tmp_path / "summary.csv").read_bytes()
    assert content.count(b"\r\n") == content.count(b"\n") == 2
    assert "Müller-李".encode() in content


@pytest.mark.parametrize("separator", [";", "\t", "\n", "\r"])
def test_no_part_of_a_text_is_a_formula_where_spreadsheets_split(tmp_path: Path, separator: str) -> None:
    evil = separator.join(("x", "=1+1", ' "@y', "\uff0bz", "-5 mm"))
    write_summary([Entry(evil, f"/{evil}", "", "failed", evil)], LABELS, tmp_path / "summary.csv")
    (row,) = summary_rows(tmp_path)
    expected = separator.join(("x", "'=1+1", "' \"@y", "'\uff0bz", "'-5 mm"))
    assert (row["case"], row["source"], row["reason"]) == (expected, f"/{expected}", expected)


def test_every_cell_is_quoted(tmp_path: Path) -> None:
    write_csv([["a", "b"], [1, None], [2.5, "c,d"]], tmp_path / "a.csv")
    assert (tmp_path / "a.csv").read_bytes() == b'"a","b"\r\n"1",""\r\n"2.5","c,d"\r\n'
