"""A data set over time: it grows, changes, and stays whole."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray

from parotid_seg.dataset.build import build
from parotid_seg.dataset.dataset_options import DataSetOptions
from parotid_seg.errors import InputError
from parotid_seg.scan.nifti import NiftiScan, read_mask, write_volume
from parotid_seg.train.data.data_set import open_data_set
from tests.dataset.studies import (
    GLANDS,
    LEFT_BOX,
    RIGHT_BOX,
    box_mask,
    case_from,
    names,
    reasons,
    rows,
    write_structures,
    write_study,
)

pytestmark = pytest.mark.slow


HU = (-200.0, 300.0)


def test_patients_with_several_studies_stay_together(dicom: Path, data: Path) -> None:
    for number in range(8):
        write_study(dicom / f"s{number}", patient=f"P{number // 2}", seed=number)
    build([dicom], data, DataSetOptions(validation=1))
    splits = json.loads((data / "splits.json").read_text())
    patients = {row["case"]: row["patient"] for row in rows(data, "cases.csv")}
    assert len(splits["validation"]) == 2
    assert not {patients[case] for case in splits["validation"]} & {patients[case] for case in splits["train"]}
    held_out = next(row["folder"] for row in rows(data, "cases.csv") if row["case"] in splits["validation"])
    patient = f"P{int(held_out[-1]) // 2}"
    write_study(dicom / "late", patient=patient, rois=None, seed=20)
    write_study(dicom / "later", patient=patient, seed=21)
    found = build([dicom], data)
    assert (found.labelled, found.unlabelled, found.exit_status) == (9, 0, 0), "nothing of a held-out patient is learnt"
    assert case_from(data, dicom / "later") in json.loads((data / "splits.json").read_text())["validation"]
    assert "of which nothing may be learnt" in reasons(data, "series")[0]
    open_data_set(data, "contrast")


def test_a_scan_goes_once_its_patient_is_held_out(dicom: Path, data: Path) -> None:
    write_study(dicom / "a", patient="P0")
    write_study(dicom / "a2", patient="P0", rois=None, seed=1)
    write_study(dicom / "b", patient="P1", seed=2)
    write_study(dicom / "b2", patient="P1", rois=None, seed=3)
    assert build([dicom], data).unlabelled == 1, "one of two patients is held out"
    a, b = case_from(data, dicom / "a"), case_from(data, dicom / "b")
    (data / "splits.json").write_text(json.dumps({"test": [a, b], "train": [], "validation": []}))
    assert build([dicom], data).unlabelled == 0
    assert names(data, "imagesUn") == []
    assert json.loads((data / "splits.json").read_text()) == {"train": [], "validation": [], "test": sorted([a, b])}


def times(data: Path) -> dict[str, int]:
    return {
        path.name: path.stat().st_mtime_ns
        for folder in ("imagesTr", "labelsTr", "imagesUn")
        for path in (data / folder).iterdir()
    }


def test_a_rerun_goes_on(dicom: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_study(dicom / "a", seed=0)
    write_study(dicom / "b", patient="P1", rois=None, seed=1)
    assert build([dicom], data).made == 2
    before, first = times(data), rows(data, "cases.csv")
    assert build([dicom], data).made == 0
    assert times(data) == before

    write_study(dicom / "c", patient="P2", seed=2)
    assert build([dicom], data).made == 1
    assert case_from(data, dicom / "c") == "case_0003"
    assert before.items() <= times(data).items()

    write_structures(dicom / "b" / "late.dcm", sorted((dicom / "b").glob("IM*")), refers=False)
    assert build([dicom], data).made == 1
    assert case_from(data, dicom / "b") == next(row["case"] for row in first if row["folder"] == str(dicom / "b"))
    assert names(data, "imagesUn") == []
    assert len(open_data_set(data).train) == 2

    shutil.rmtree(dicom / "a")
    found = build([dicom], data)
    assert (found.labelled, found.made) == (3, 0), "what is there stays"
    shutil.rmtree(dicom / "c")
    write_study(dicom / "d", patient="P3", seed=3)
    build([dicom], data)
    assert case_from(data, dicom / "d") == "case_0004"

    (data / "labelsTr" / "case_0003.nii.gz").unlink()
    write_study(dicom / "c", patient="P2", seed=2)
    assert build([dicom], data).made == 1, "what is missing is made again"


def test_a_changed_case_is_made_again_and_may_lose_its_labels(dicom: Path, data: Path) -> None:
    write_study(dicom / "a", patient="P0")
    write_study(dicom / "b", patient="P1", seed=1)
    build([dicom], data)
    case = case_from(data, dicom / "a")
    images = sorted((dicom / "a").glob("IM*"), key=lambda path: pydicom.dcmread(path).ImagePositionPatient[2])
    moved = (slice(4, 9), *LEFT_BOX[1:])
    write_structures(dicom / "a" / "contours.dcm", images, [("Parotid_L", moved), GLANDS[1]])
    assert build([dicom], data).made == 1
    labels, _ = read_mask(data / "labelsTr" / f"{case}.nii.gz")
    np.testing.assert_array_equal(labels, box_mask(moved, RIGHT_BOX))
    write_structures(dicom / "a" / "contours.dcm", images, GLANDS[:1])
    assert build([dicom], data).exit_status == 3
    assert (len(names(data, "labelsTr")), names(data, "imagesUn")) == (1, [f"{case}_0000.nii.gz"])
    assert case not in (data / "splits.json").read_text()


def test_a_scan_that_cannot_be_read_any_more_keeps_its_case(dicom: Path, data: Path) -> None:
    images = write_study(dicom / "a")
    write_study(dicom / "b", patient="P1", seed=1)
    build([dicom], data)
    before = times(data)
    images[3].write_bytes(images[3].read_bytes()[:-100])
    found = build([dicom], data)
    assert (found.labelled, found.made, found.exit_status) == (2, 0, 3)
    assert times(data) == before


def test_killed_between_two_files(dicom: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A case without all of its files is none: the next run makes it, and train does not take it."""
    write_study(dicom / "a")
    write_study(dicom / "b", patient="P1", seed=1)
    from parotid_seg.dataset import cases

    written = write_volume

    def stop(voxels: NDArray[Any], scan: NiftiScan, path: Path) -> None:
        if path.parent.name == "imagesTr" and path.name.startswith("case_0002"):
            raise KeyboardInterrupt
        written(voxels, scan, path)

    monkeypatch.setattr(cases, "write_volume", stop)
    with pytest.raises(KeyboardInterrupt):
        build([dicom], data)
    with pytest.raises(InputError, match=r"dataset\.json"):
        open_data_set(data)
    monkeypatch.undo()
    before = times(data)
    assert build([dicom], data).made == 1
    after = times(data)
    assert {name: time for name, time in after.items() if "0001" in name} == {
        name: time for name, time in before.items() if "0001" in name
    }
    open_data_set(data)


def lists(data: Path) -> dict[str, list[str]]:
    found: dict[str, list[str]] = json.loads((data / "splits.json").read_text())
    return found


def test_a_corrected_test_patient_stays_one(dicom: Path, data: Path) -> None:
    """With newer contours, without any, and with new ones again: nothing of the patient is ever trained on."""
    for number in range(6):
        write_study(dicom / f"s{number}", patient=f"P{number}", seed=number)
    said: list[str] = []
    build([dicom], data, DataSetOptions(validation=1, test=2), say=said.append)
    (case, other), first = lists(data)["test"], lists(data)
    assert {name: len(cases) for name, cases in first.items()} == {"train": 3, "validation": 1, "test": 2}
    assert f"test: {case}, {other}" in said
    study = next(dicom / f"s{number}" for number in range(6) if case_from(data, dicom / f"s{number}") == case)
    images = sorted(study.glob("IM*"), key=lambda path: pydicom.dcmread(path).ImagePositionPatient[2])
    moved = (slice(4, 9), *LEFT_BOX[1:])
    write_structures(study / "corrected.dcm", images, [("Parotid_L", moved), GLANDS[1]], date="20210101")
    assert build([dicom], data).made == 1
    labels, _ = read_mask(data / "labelsTr" / f"{case}.nii.gz")
    np.testing.assert_array_equal(labels, box_mask(moved, RIGHT_BOX))
    assert lists(data) == first

    for name in ("corrected.dcm", "contours.dcm"):
        (study / name).unlink()
    build([dicom], data)
    assert lists(data)["test"] == [other]
    assert names(data, "imagesUn") == [], "its scan is not trained on without labels either"
    (data / "splits.json").unlink()
    build([dicom], data)
    write_structures(study / "corrected.dcm", images, date="20210102")
    build([dicom], data)
    assert lists(data) == first

    moved_by_hand = {**first, "train": [*first["train"], case], "test": [other]}
    (data / "splits.json").write_text(json.dumps(moved_by_hand))
    with pytest.raises(InputError, match=f"{case} is in train, but the patient is a test patient"):
        build([dicom], data)


def test_a_larger_test_locks_new_patients_and_says_what_it_cannot(dicom: Path, data: Path) -> None:
    for number in range(4):
        write_study(dicom / f"s{number}", patient=f"P{number}", seed=number)
    build([dicom], data, DataSetOptions(test=1))
    first, said = lists(data), list[str]()
    build([dicom], data, DataSetOptions(test=2), say=said.append)
    assert lists(data) == first
    assert any(line.startswith("--test 2: 1 locked in all, and no further new patients to lock;") for line in said)
    write_study(dicom / "s4", patient="P4", seed=4)
    said.clear()
    build([dicom], data, DataSetOptions(test=2), say=said.append)
    assert lists(data) == {**first, "test": [*first["test"], case_from(data, dicom / "s4")]}
    assert not any(line.startswith("--test") for line in said)
    with pytest.raises(InputError, match="--test: found 1, expected at least 2"):
        build([dicom], data, DataSetOptions(test=1))


def test_too_many_to_hold_out_is_refused_before_anything_is_converted(dicom: Path, data: Path) -> None:
    for number in range(3):
        write_study(dicom / f"s{number}", patient=f"P{number}", seed=number)
    write_study(dicom / "bare", patient="P9", rois=None, seed=9)
    for options in (DataSetOptions(test=2), DataSetOptions(validation=3)):
        with pytest.raises(InputError, match="there are 3 patients with contours"):
            build([dicom], data, options)
        assert list(data.iterdir()) == []
    images = sorted((dicom / "s0").glob("IM*"), key=lambda path: pydicom.dcmread(path).ImagePositionPatient[2])
    write_structures(dicom / "s0" / "contours.dcm", images, [("Parotid_L", RIGHT_BOX), ("Parotid_R", LEFT_BOX)])
    with pytest.raises(InputError, match=r"2 patients .* converted cases are kept for the next run"):
        build([dicom], data, DataSetOptions(test=1))
    assert len(names(data, "imagesTr")) == 2
    assert build([dicom], data).made == 2, "the scans without usable contours"


def test_too_few_patients_to_train_are_reported(dicom: Path, data: Path) -> None:
    write_study(dicom / "a", patient="P0")
    said: list[str] = []
    assert build([dicom], data, say=said.append).exit_status == 0
    assert said[-1] == (
        "too few patients with contours to train on labels: found 1 for training and 0 for validation, expected at "
        "least 1 of each"
    )
    write_study(dicom / "b", patient="P1", seed=1)
    said.clear()
    build([dicom], data, say=said.append)
    assert not any(line.startswith("too few") for line in said)


def test_where_a_case_comes_from_is_kept_up_to_date(dicom: Path, data: Path) -> None:
    write_study(dicom / "a", patient="P0")
    write_study(dicom / "b", patient="P1", seed=1)
    write_study(dicom / "c", patient="P2", seed=2, rois=None)
    build([dicom], data)
    before = {row["folder"]: row["case"] for row in rows(data, "cases.csv")}
    for name in "abc":
        (dicom / name).rename(dicom / f"moved_{name}")
    assert build([dicom], data).made == 0
    found = {row["case"]: (row["folder"], row["rtstruct"]) for row in rows(data, "cases.csv")}
    for name in "abc":
        folder = dicom / f"moved_{name}"
        contours = "" if name == "c" else str(folder / "contours.dcm")
        assert found[before[str(dicom / name)]] == (str(folder), contours)


def test_cases_whose_scans_are_gone_are_counted(dicom: Path, data: Path) -> None:
    write_study(dicom / "a", patient="P0")
    write_study(dicom / "b", patient="P1", seed=1)
    said: list[str] = []
    build([dicom], data, say=said.append)
    gone = case_from(data, dicom / "a")
    line = f"of earlier runs, and not among these scans: 1 case, kept ({gone})"
    assert line not in said
    shutil.rmtree(dicom / "a")
    assert build([dicom], data, say=said.append).labelled == 2
    assert line in said
