"""A data set from linked studies: all of them, each once, and links that lead nowhere are to be looked at."""

import os
from pathlib import Path

import pytest

from parotid_seg.dataset.build import build
from parotid_seg.dataset.dataset_options import DataSetOptions
from parotid_seg.errors import OutputError
from tests.dataset.studies import names, rows, write_study
from tests.dicom_series import ct_voxels, write_series


def test_a_cohort_of_links_to_studies_is_whole(dicom: Path, data: Path, tmp_path: Path) -> None:
    write_study(tmp_path / "store" / "p1", "1", seed=1)
    write_study(tmp_path / "store" / "p2", "2", seed=2)
    write_study(dicom / "p0", "0")
    for name in ("p1", "p2"):
        (dicom / name).symlink_to(tmp_path / "store" / name)
    (dicom / "p1 again").symlink_to(tmp_path / "store" / "p1")
    (dicom / "loop").symlink_to(".")
    built = build([dicom], data)
    assert (built.labelled, built.exit_status) == (3, 0)
    assert names(data, "labelsTr") == ["case_0001.nii.gz", "case_0002.nii.gz", "case_0003.nii.gz"]
    told = {row["place"].rpartition("/")[2]: row["reason"] for row in rows(data)}
    assert told["loop"] == "a link to a folder that it lies in; it is not followed"
    assert told["p1 again"].endswith("which is searched")


def test_hard_linked_studies_are_one_case(dicom: Path, data: Path) -> None:
    write_study(dicom / "p1")
    (dicom / "p2").mkdir()
    for path in sorted((dicom / "p1").iterdir()):
        os.link(path, dicom / "p2" / path.name)
    built = build([dicom], data)
    assert (built.labelled, built.exit_status) == (1, 0)
    assert [(row["place"], row["look_at_it"]) for row in rows(data)] == [(str(dicom / "p2"), "")]


def test_a_link_that_leads_nowhere_is_to_be_looked_at(dicom: Path, data: Path) -> None:
    write_study(dicom / "p1")
    (dicom / "p2").symlink_to("/gone/p2")
    built = build([dicom], data)
    assert (built.labelled, built.exit_status) == (1, 3)
    assert [row["place"] for row in rows(data) if row["look_at_it"]] == [str(dicom / "p2")]


def test_an_mr_series_with_a_gap_is_not_to_be_looked_at(dicom: Path, data: Path) -> None:
    write_study(dicom / "p1")
    write_series(dicom / "mr", ct_voxels((12, 16, 20)) + 1000, modality="MR")[3].unlink()
    built = build([dicom], data)
    assert (built.labelled, built.exit_status) == (1, 0)
    assert any("1 slice missing" in row["reason"] for row in rows(data))


def test_private_tables_go_through_no_link_but_one_that_is_given(dicom: Path, data: Path, tmp_path: Path) -> None:
    write_study(dicom / "p1")
    shared = tmp_path / "shared"
    shared.mkdir()
    beside = data.with_name(f"{data.name}.private")
    beside.symlink_to(shared)
    with pytest.raises(OutputError, match=r"\.private: found a symbolic link, expected a folder"):
        build([dicom], data)
    assert list(shared.iterdir()) == []
    assert build([dicom], data, DataSetOptions(private=beside)).labelled == 1
    assert (shared / "cases.csv").is_file()
