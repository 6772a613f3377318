"""DICOM studies to a data set: what is in it, and what is not."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom
import pytest

from parotid_seg.dataset.build import Built, build
from parotid_seg.dataset.dataset_options import DataSetOptions
from parotid_seg.dicom.read.find import find_series
from parotid_seg.dicom.write.rtstruct import write_rtstruct
from parotid_seg.errors import InputError
from parotid_seg.scan.nifti import read_mask, read_nifti
from parotid_seg.train.data.data_set import open_data_set
from parotid_seg.train.data.patients import load_patients
from tests.command_line import Run
from tests.dataset.studies import (
    GLANDS,
    LEFT_BOX,
    RIGHT_BOX,
    SHAPE,
    box_mask,
    case_from,
    change_file,
    names,
    reasons,
    rows,
    write_structures,
    write_study,
)
from tests.dicom_series import TILTED, ct_voxels, lay, write_enhanced, write_series

pytestmark = pytest.mark.slow


HU = (-200.0, 300.0)


@pytest.mark.parametrize(
    ("built", "line"),
    [
        (Built(1, 0, 1, 0, 0, 0, Path("x")), "1 scan with contours, 0 without, 1 made now; 0 items not used; see "),
        (
            Built(6, 2, 8, 1, 1, 1, Path("x")),
            "6 scans with contours (1 needs review), 2 without, 8 made now; 1 item not used (1 needs",
        ),
        (
            Built(6, 2, 8, 3, 4, 2, Path("x")),
            "6 scans with contours (3 need review), 2 without, 8 made now; 4 items not used (2 need",
        ),
    ],
)
def test_the_last_line_counts_what_needs_review(
    built: Built, line: str, command: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("parotid_seg.dataset.build.build", lambda *_, **__: built)
    said = command("dataset", tmp_path, "--out", tmp_path / "data").stdout.splitlines()
    assert len(said) == 1
    assert said[0].startswith(line)
    assert said[0].endswith("; see cases.csv and left_out.csv in x")


def test_studies_become_what_train_takes(dicom: Path, data: Path, tmp_path: Path) -> None:
    for number in range(3):
        write_study(dicom / f"s{number}", patient=f"P{number}", seed=number)
    write_study(dicom / "bare", patient="P9", rois=None, seed=9)
    found = build([dicom], data)
    assert (found.labelled, found.unlabelled, found.made, found.look_at, found.exit_status) == (3, 1, 4, 0, 0)
    assert sorted(path.name for path in data.iterdir()) == [
        "dataset.json",
        "imagesTr",
        "imagesUn",
        "labelsTr",
        "splits.json",
    ]
    assert len(names(data, "labelsTr")) == len(names(data, "imagesTr")) == 3
    description = json.loads((data / "dataset.json").read_text())
    assert description["labels"] == {"background": 0, "parotid_left": 1, "parotid_right": 2}
    assert (description["channel_names"], description["numTraining"]) == ({"0": "CT"}, 3)
    assert description["counts"] == {
        **{"patients": 3, "train": 2, "validation": 1, "unlabelled": 1},
        "contoured": {"parotid_left": 3, "parotid_right": 3},
    }
    opened = open_data_set(data)
    assert (len(opened.train), len(opened.validation)) == (2, 1)
    assert len(open_data_set(data, "contrast").unlabelled) == 1
    for patient in load_patients(opened, opened.train, tmp_path / "cache", HU):
        np.testing.assert_array_equal(patient.labels, box_mask(LEFT_BOX, RIGHT_BOX))
        assert patient.volume.spacing_mm == (3.0, 1.0, 1.0)
    case = case_from(data, dicom / "s1")
    scan = read_nifti(data / "imagesTr" / f"{case}_0000.nii.gz")
    np.testing.assert_array_equal(scan.volume.voxels[0], ct_voxels(SHAPE, 1))


LAYS = {
    "axial": lay(),
    "feet last": lay(step=(0, 0, -3.0)),
    "prone": lay(row=(-1, 0, 0), column=(0, -1, 0)),
    "sagittal": lay((1.5, 1.3, 3.0), row=(0, 1, 0), column=(0, 0, -1)),
    "oblique": lay((4.0, 2.0, 2.5), row=TILTED[0], column=TILTED[1]),
    "tilted gantry": lay(step=(0, 0.6, 3.0)),
}


@pytest.mark.parametrize("writer", ["hand", "own"])
@pytest.mark.parametrize("name", LAYS)
def test_labels_lie_where_the_contours_do(dicom: Path, data: Path, name: str, writer: str) -> None:
    """Voxel by voxel in patient space, whatever way the slices run."""
    affine = LAYS[name]
    images = write_series(dicom / "study", ct_voxels(SHAPE), affine)
    mask = box_mask(LEFT_BOX)
    if writer == "hand":
        write_structures(dicom / "contours.dcm", images, [("Gland", LEFT_BOX)], affine=affine)
    else:
        (series,) = find_series(images).series
        ours = mask if np.allclose(series.affine, affine) else mask[::-1]
        write_rtstruct(series, ours, ("background", "gland"), dicom / "contours.dcm", model="test")
        change_file(dicom / "contours.dcm", lambda dataset: setattr(dataset, "ApprovalStatus", "APPROVED"))
    table = dicom.parent / "names.toml"
    table.write_text('gland = ["gland"]')
    assert build([dicom], data, DataSetOptions(labels=("gland",), names=table)).exit_status == 0
    image = nibabel.load(data / "labelsTr" / "case_0001.nii.gz")
    found = np.argwhere(np.asarray(image.dataobj) == 1) @ image.affine[:3, :3].T + image.affine[:3, 3]
    expected = np.argwhere(mask) @ affine[:3, :3].T + affine[:3, 3]
    expected[:, :2] *= -1
    assert len(found) == len(expected)
    order = [np.lexsort(np.round(points, 2).T) for points in (found, expected)]
    np.testing.assert_allclose(found[order[0]], expected[order[1]], atol=0.01)
    labels, _ = read_mask(
        data / "labelsTr" / "case_0001.nii.gz", like=read_nifti(data / "imagesTr" / "case_0001_0000.nii.gz")
    )
    assert labels.sum() == mask.sum()


def spoil(**options: Any) -> Callable[..., None]:
    def write(folder: Path) -> None:
        images = write_study(folder, rois=None)
        write_structures(folder / "contours.dcm", images, **options)

    return write


def two(first: dict[str, Any], second: dict[str, Any]) -> Callable[..., None]:
    def write(folder: Path) -> None:
        images = write_study(folder, rois=None)
        write_structures(folder / "a.dcm", images, **first)
        write_structures(folder / "b.dcm", images, **second)

    return write


GAPS = (slice(1, 12, 5), *LEFT_BOX[1:])
REFUSED = {
    "one gland": (spoil(rois=GLANDS[:1]), "no contours of parotid_right, which would be learnt as background"),
    "two of a name": (
        spoil(rois=[*GLANDS, ("LT PAROTID", LEFT_BOX)]),
        "2 ROIs mean parotid_left: Parotid_L, LT PAROTID",
    ),
    "swapped": (spoil(rois=[("Parotid_R", LEFT_BOX), ("Parotid_L", RIGHT_BOX)]), "left and right are swapped"),
    "beyond": (spoil(affine=lay(origin=(-100, -120, 200))), "beyond"),
    "between slices": (spoil(affine=lay(origin=(-100, -120, -48.5))), "slice"),
    "beside": (spoil(affine=lay(origin=(500, -120, -50))), "enclose no voxel"),
    "gaps": (
        spoil(rois=[("Parotid_L", GAPS), GLANDS[1]]),
        "no contour on 4 slices in a row between its ends (3 of 11 have one): found contours 15.0 mm apart",
    ),
    "equal": (two({}, {"label": "Other"}), "2 structure sets of the series are of equal standing and date"),
    "all in another": (spoil(rois=[("Parotid_L", LEFT_BOX), ("Parotid_R", LEFT_BOX)]), "parotid_left: all its voxels"),
    "unknown names": (
        spoil(rois=[("Parotid_L_PRV", LEFT_BOX), ("Parotids", RIGHT_BOX)]),
        "no ROI with contours can be used as a label",
    ),
    "empty": (spoil(rois=[("Parotid_L", None), GLANDS[1]]), "no contours of parotid_left"),
    "another patient": (
        spoil(change=lambda dataset: setattr(dataset, "PatientID", "Q")),
        "its PatientID differs",
    ),
    "another frame": (spoil(frame="1.2.3"), "no ROI with contours"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_contours_leave_a_scan_without_labels(dicom: Path, data: Path, name: str) -> None:
    write, words = REFUSED[name]
    write(dicom / "bad")
    write_study(dicom / "good", patient="P1", seed=1)
    said: list[str] = []
    found = build([dicom], data, say=said.append)
    assert (found.labelled, found.unlabelled, found.exit_status) == (1, 1, 3)
    assert any(words in reason for reason in reasons(data, "structure set")), rows(data)
    assert any(words in line for line in said)
    assert not any(";'" in reason for reason in reasons(data, "structure set")), "no cell that looks like a formula"
    assert names(data, "labelsTr") == [f"{case_from(data, dicom / 'good')}.nii.gz"]


def test_every_roi_not_used_is_listed(dicom: Path, data: Path) -> None:
    rois = [*GLANDS, ("Mandible", LEFT_BOX), ("Parotid_L_PRV", LEFT_BOX), ("=1+1", RIGHT_BOX), ("Left Parotid", None)]
    write_study(dicom / "a", rois=rois)
    assert build([dicom], data).exit_status == 0
    assert reasons(data, "ROI") == [
        "Mandible: its name means none of the labels",
        "Parotid_L_PRV: its name says more than gland and side",
        "'=1+1: its name means none of the labels",
        "Left Parotid: it has no contours",
    ]


def test_partial_keeps_a_scan_with_one_gland_on_its_own_side(dicom: Path, data: Path) -> None:
    write_study(dicom / "a", rois=GLANDS[:1])
    write_study(dicom / "b", patient="P1", rois=[("Parotid_L", RIGHT_BOX)])
    found = build([dicom], data, DataSetOptions(partial=True))
    assert (found.labelled, found.unlabelled) == (1, 1)
    assert "parotid_left lies on the wrong side of the patient's middle" in reasons(data, "structure set")[0]
    assert rows(data, "cases.csv")[int(case_from(data, dicom / "a")[-1]) - 1]["labels"] == "parotid_left"


@pytest.mark.parametrize(
    ("first", "second", "prefer", "taken"),
    [
        ({"date": "20200102"}, {"date": "20200103"}, None, "b"),
        ({"date": "20200102", "approval": "APPROVED"}, {"date": "20200103"}, None, "a"),
        ({"date": "20200102"}, {"date": "20200103", "approval": "REJECTED"}, None, "a"),
        ({"date": "20200102"}, {"date": "20200103", "rois": GLANDS[:1]}, None, "a"),
        ({"label": "Plan"}, {"label": "Replan"}, "replan", "b"),
        ({"label": "Plan"}, {"label": "Replan", "approval": "APPROVED"}, "Plan", "a"),
    ],
)
def test_which_of_several_structure_sets_counts(
    dicom: Path,
    data: Path,
    first: dict[str, str],
    second: dict[str, str | tuple[tuple[str, tuple[slice, slice, slice]]]],
    prefer: str | None,
    taken: str,
) -> None:
    two(first, second)(dicom / "study")
    assert build([dicom], data, DataSetOptions(prefer=prefer)).exit_status == 0
    (case,) = rows(data, "cases.csv")
    assert Path(case["rtstruct"]).stem == taken
    assert len(reasons(data, "structure set")) == 1


def test_contours_are_brought_to_their_series(dicom: Path, data: Path) -> None:
    """By the images they name, else by the frame of reference; never by guessing."""
    images = write_study(dicom / "a", rois=None)
    write_structures(dicom / "elsewhere.dcm", images)
    far = write_study(dicom / "b", patient="P1", rois=None)
    write_structures(dicom / "b" / "frame.dcm", far, refers=False)
    lost = write_study(dicom / "c", patient="P2")
    for path in lost:
        path.unlink()
    twins = [write_series(dicom / name, ct_voxels(SHAPE), uids="") for name in ("d", "e")]
    for path in twins[1]:
        change_file(
            path,
            lambda dataset: setattr(dataset, "FrameOfReferenceUID", pydicom.dcmread(twins[0][0]).FrameOfReferenceUID),
        )
    write_structures(dicom / "d" / "either.dcm", twins[0], refers=False)
    found = build([dicom], data)
    assert (found.labelled, found.unlabelled, found.exit_status) == (2, 2, 3)
    by = {row["folder"]: row["matched_by"] for row in rows(data, "cases.csv") if row["kind"] == "labelled"}
    assert by == {str(dicom / "a"): "images", str(dicom / "b"): "frame of reference"}
    assert sorted(reasons(data, "structure set")) == [
        "2 series fit its frame of reference, expected one",
        "refers to a series that is not among the scans found",
    ]


def test_own_names_go_before_the_rules(dicom: Path, data: Path, tmp_path: Path) -> None:
    write_study(dicom / "a", rois=[*GLANDS, ("Gland final", (slice(4, 8), *LEFT_BOX[1:]))])
    table = tmp_path / "names.toml"
    table.write_text('parotid_left = ["gland FINAL"]')
    assert build([dicom], data, DataSetOptions(names=table)).exit_status == 0
    assert reasons(data, "ROI") == ["Parotid_L: another ROI is parotid_left by --names"]
    labels, _ = read_mask(data / "labelsTr" / "case_0001.nii.gz")
    np.testing.assert_array_equal(labels, box_mask((slice(4, 8), *LEFT_BOX[1:]), RIGHT_BOX))


def test_overlaps_and_what_lies_beyond_are_told(dicom: Path, data: Path, tmp_path: Path) -> None:
    """The later label has the voxels; what is drawn beyond the scan is dropped."""
    inner = (slice(4, 6), slice(6, 8), slice(14, 16))
    write_study(dicom / "a", rois=[*GLANDS, ("GTV", inner)])
    table = tmp_path / "names.toml"
    table.write_text('tumour = ["GTV"]')
    labels = ("parotid_left", "parotid_right", "tumour")
    assert build([dicom], data, DataSetOptions(labels=labels, names=table)).labelled == 1
    found, _ = read_mask(data / "labelsTr" / "case_0001.nii.gz")
    np.testing.assert_array_equal(found, box_mask(LEFT_BOX, RIGHT_BOX, inner))
    notes = rows(data, "cases.csv")[0]["notes"].split("; ")
    assert notes[0] == "8 voxels of left parotid are in tumour, too, which has them"

    images = write_study(dicom / "b", patient="P1", rois=None, seed=1)
    write_structures(dicom / "b.dcm", images, affine=lay(origin=(-100, -120, -62)))
    build([dicom], tmp_path / "low")
    case = case_from(tmp_path / "low", dicom / "b")
    (low,) = [row["notes"] for row in rows(tmp_path / "low", "cases.csv") if row["case"] == case]
    assert "left parotid: 1 of 6 contours" in low
    assert "right parotid: 2 of 6 contours" in low


def test_a_multi_frame_file(dicom: Path, data: Path) -> None:
    path = write_enhanced(dicom / "all.dcm", ct_voxels(SHAPE))
    write_structures(dicom / "contours.dcm", [path] * SHAPE[0])
    assert build([dicom], data).exit_status == 0
    labels, _ = read_mask(data / "labelsTr" / "case_0001.nii.gz")
    np.testing.assert_array_equal(labels, box_mask(LEFT_BOX, RIGHT_BOX))


def test_contours_on_derived_images_of_a_study_with_original_ones(dicom: Path, data: Path) -> None:
    def derived(index: object, dataset: pydicom.dataset.Dataset) -> None:
        dataset.ImageType = ["DERIVED", "SECONDARY", "AXIAL"]
        dataset.StudyInstanceUID = original.StudyInstanceUID

    original = pydicom.dcmread(write_study(dicom / "a", rois=None)[0], stop_before_pixels=True)
    write_study(dicom / "b", change=derived, seed=1)
    write_study(dicom / "c", change=derived, rois=None, seed=2)
    found = build([dicom], data)
    assert (found.labelled, found.unlabelled, found.exit_status) == (1, 1, 0)
    assert {row["kind"]: row["folder"] for row in rows(data, "cases.csv")} == {
        "labelled": str(dicom / "b"),
        "unlabelled": str(dicom / "a"),
    }
    assert [row["place"] for row in rows(data) if "derived" in row["reason"]] == [str(dicom / "c")]


def test_what_this_package_drew_is_no_reference_until_somebody_approves_it(dicom: Path, data: Path) -> None:
    images = write_study(dicom / "a", rois=None)
    (series,) = find_series(images).series
    labels = ("background", "parotid_left", "parotid_right")
    path = dicom / "a" / "ours.dcm"
    write_rtstruct(series, box_mask(LEFT_BOX, RIGHT_BOX), labels, path, model="test")
    found = build([dicom], data)
    assert (found.labelled, found.unlabelled, found.exit_status) == (0, 1, 0)
    assert reasons(data, "ROI") == [
        f"{name}: parotid-seg drew it and nobody has approved it" for name in ("Parotid_L", "Parotid_R")
    ]
    change_file(path, lambda dataset: setattr(dataset, "ApprovalStatus", "APPROVED"))
    assert build([dicom], data).labelled == 1


def test_other_modalities_and_files_are_told_of(dicom: Path, data: Path) -> None:
    write_study(dicom / "a")
    write_series(dicom / "mr", np.abs(ct_voxels(SHAPE)), modality="MR")
    (dicom / "notes.txt").write_text("nothing")
    shutil.copytree(dicom / "a", dicom / "copy")
    found = build([dicom], data)
    assert (found.labelled, found.unlabelled) == (1, 0)
    assert "found modality MR, expected CT" in reasons(data, "series")


def test_wrong_requests(dicom: Path, data: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file or folder"):
        build([dicom / "none"], data)
    with pytest.raises(InputError, match=r"found no CT series, expected DICOM studies$"):
        build([dicom], data)
    (dicom / "notes.txt").write_text("nothing")
    for image in write_study(dicom / "short", rois=None)[6:]:
        image.unlink()
    words = r"; not used: file .*short: CT series .* 6 slices cover 18.0 mm .*; file .*notes.txt: not DICOM$"
    with pytest.raises(InputError, match=words):
        build([dicom], data)
    write_study(dicom / "a")
    with pytest.raises(InputError, match=r"--private: .*lies in the data set"):
        build([dicom], data, DataSetOptions(private=data / "private"))
    assert not data.exists()
    with pytest.raises(InputError, match="--validation: found 1"):
        build([dicom], data, DataSetOptions(validation=1))
    build([dicom], data)
    table = tmp_path / "names.toml"
    table.write_text('gland = ["Parotid_L"]')
    with pytest.raises(InputError, match="has the labels parotid_left, parotid_right, found --labels gland"):
        build([dicom], data, DataSetOptions(labels=("gland",), names=table))
    shutil.rmtree(data.with_name(f"{data.name}.private"))
    with pytest.raises(InputError, match="holds a data set, but found no"):
        build([dicom], data)


def test_a_structure_set_without_a_file_header_and_a_damaged_one(dicom: Path, data: Path) -> None:
    """The one is used, the other told of, once."""
    write_study(dicom / "a")
    path = dicom / "a" / "contours.dcm"
    whole = path.read_bytes()
    path.write_bytes(whole[144 + int.from_bytes(whole[140:144], "little") :])
    (dicom / "a" / "cut.dcm").write_bytes(whole[: len(whole) // 2])
    found = build([dicom], data)
    assert (found.labelled, found.look_at, found.exit_status) == (1, 1, 3)
    assert [(Path(row["place"]).name, row["kind"]) for row in rows(data)] == [("cut.dcm", "structure set")]
