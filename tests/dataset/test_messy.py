"""Archives as they are: both glands in one structure, series UIDs that several patients share, interrupted reruns."""

import shutil
from pathlib import Path
from typing import Any

import pydicom
import pytest
from pydicom.dataset import Dataset

from parotid_seg.dataset import cases
from parotid_seg.dataset.build import build
from parotid_seg.dataset.dataset_options import DataSetOptions
from parotid_seg.dataset.roi_names import RoiNames
from parotid_seg.errors import InputError, OptionError
from parotid_seg.train.data.data_set import open_data_set
from tests.dataset.studies import (
    GLANDS,
    RIGHT_BOX,
    SHAPE,
    case_from,
    names,
    reasons,
    rows,
    write_structures,
    write_study,
)
from tests.dicom_series import ct_voxels, lay, uid, write_series


def shared(index: int, dataset: Dataset) -> None:
    dataset.SeriesInstanceUID = uid("of everybody")


def both_in_the_left(dataset: Dataset) -> None:
    left, right = (list(drawn.ContourSequence) for drawn in dataset.ROIContourSequence)
    dataset.ROIContourSequence[0].ContourSequence = left + right
    del dataset.ROIContourSequence[1].ContourSequence


@pytest.mark.parametrize("right", [None, (slice(2, 4), *RIGHT_BOX[1:])], ids=["alone", "partly under its own name"])
def test_both_glands_in_one_structure_are_refused(dicom: Path, data: Path, right: Any) -> None:
    def wide(index: int, dataset: Dataset) -> None:
        dataset.PixelSpacing = ["1", "8"]

    def change(dataset: Dataset) -> None:
        both_in_the_left(dataset)
        if right is not None:
            drawn = dataset.ROIContourSequence[0].ContourSequence
            dataset.ROIContourSequence[1].ContourSequence = drawn[6:8]

    images = write_study(dicom / "a", rois=None, change=wide)
    write_structures(dicom / "rs.dcm", images, GLANDS, affine=lay((3.0, 1.0, 8.0)), change=change)
    assert build([dicom], data, DataSetOptions(partial=True)).labelled == 0
    (reason,) = reasons(data, "structure set")
    assert reason == (
        "parotid_left is 112 mm wide from side to side, expected at most 80: are both glands in one structure?"
    )


def test_a_scan_need_not_have_contours_to_ignore(dicom: Path, data: Path, tmp_path: Path) -> None:
    table = tmp_path / "names.toml"
    table.write_text('ignore = ["Artefact"]')
    options = DataSetOptions(labels=("parotid_left", "parotid_right", "ignore"), names=table)
    write_study(dicom / "a", patient="P0")
    write_study(dicom / "b", patient="P1", rois=[*GLANDS, ("Artefact", (slice(2, 4), slice(0, 2), slice(0, 2)))])
    write_study(dicom / "c", patient="P2", rois=[GLANDS[0], ("Artefact", RIGHT_BOX)])
    assert build([dicom], data, options).labelled == 2
    assert reasons(data, "structure set") == [
        "no contours of parotid_right, which would be learnt as background (--partial keeps the scan)"
    ]


@pytest.mark.parametrize("labels", [("Background", "parotid_left"), ("Ignore", "parotid_left")])
def test_labels_that_train_refuses_are_refused_in_any_case(labels: tuple[str, ...]) -> None:
    with pytest.raises(OptionError, match=f"--labels: found .*{labels[1]}, expected"):
        RoiNames(labels, {labels[0]: ("x",)})


def test_a_preference_that_no_structure_set_meets_is_reported(dicom: Path, data: Path) -> None:
    write_study(dicom / "a")
    said: list[str] = []
    build([dicom], data, DataSetOptions(prefer="Final"), say=said.append)
    assert "--prefer Final: found no structure set of this label; the other rules decide" in said
    said.clear()
    build([dicom], data, DataSetOptions(prefer="plan "), say=said.append)
    assert not [line for line in said if "--prefer" in line]


def test_an_interrupted_rerun_leaves_nothing_to_train_on(
    dicom: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_study(dicom / "a")
    write_study(dicom / "b", patient="P1", seed=1)
    build([dicom], data)
    write_study(dicom / "c", patient="P2", seed=2)

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cases, "write_volume", stop)
    with pytest.raises(KeyboardInterrupt):
        build([dicom], data)
    with pytest.raises(InputError, match=r"dataset\.json"):
        open_data_set(data)
    monkeypatch.undo()
    assert build([dicom], data).labelled == 3
    open_data_set(data)


def test_patients_who_share_a_series_uid_keep_their_cases(dicom: Path, data: Path) -> None:
    for seed, name in enumerate("bcd"):
        write_study(dicom / name, patient=name, seed=seed, change=shared)
    build([dicom], data, DataSetOptions(test=1))
    before = {row["folder"]: (row["case"], row["list"]) for row in rows(data, "cases.csv")}
    write_study(dicom / "a", patient="a", seed=7, change=shared)
    assert build([dicom], data, DataSetOptions(test=1)).made == 1
    after = {row["folder"]: (row["case"], row["list"]) for row in rows(data, "cases.csv")}
    assert before.items() <= after.items()
    assert case_from(data, dicom / "a") == "case_0004"
    shutil.rmtree(dicom / "b")
    assert build([dicom], data, DataSetOptions(test=1)).made == 0


@pytest.mark.parametrize("modality", ["CT", "MR"])
def test_contours_belong_to_the_series_of_their_images_whatever_else_the_set_lists(
    dicom: Path, data: Path, modality: str
) -> None:
    """The set lists all images of another series, and some of the one that its contours were drawn on."""
    drawn_on = write_study(dicom / "a", rois=None)
    other = write_series(dicom / "b", ct_voxels(SHAPE, 1) + 1000 * (modality == "MR"), modality=modality)
    headers = [pydicom.dcmread(image, stop_before_pixels=True) for image in (*drawn_on, *other)]

    def refers(dataset: Dataset) -> None:
        [series] = dataset.ReferencedFrameOfReferenceSequence[0].RTReferencedStudySequence[0].RTReferencedSeriesSequence
        series.ContourImageSequence = [_image(header) for header in headers[9:]]
        for structure in dataset.ROIContourSequence:
            for contour in structure.ContourSequence:
                place = round((float(contour.ContourData[2]) - lay()[2, 3]) / lay()[2, 0])
                contour.ContourImageSequence = [_image(headers[place])]

    write_structures(dicom / "contours.dcm", drawn_on, change=refers)
    built = build([dicom], data)
    assert (built.labelled, built.exit_status) == (1, 0)
    assert case_from(data, dicom / "a") == names(data, "labelsTr")[0].removesuffix(".nii.gz")


def _image(header: Dataset) -> Dataset:
    image = Dataset()
    image.ReferencedSOPClassUID, image.ReferencedSOPInstanceUID = header.SOPClassUID, header.SOPInstanceUID
    return image


def test_contours_drawn_on_mr_are_to_be_looked_at(dicom: Path, data: Path) -> None:
    write_study(dicom / "p1")
    mr = write_series(dicom / "mr", ct_voxels(SHAPE) + 1000, modality="MR")
    write_structures(dicom / "mr" / "contours.dcm", mr)
    assert build([dicom], data).exit_status == 3
    [row] = [row for row in rows(data) if row["look_at_it"]]
    assert row["reason"] == "drawn on a series of modality MR"


def test_another_patient_of_the_same_series_uid_does_not_replace_the_first(dicom: Path, data: Path) -> None:
    """In a later run, without the first one's files: the case stays, and the new scan is to be looked at."""

    write_study(dicom / "a", patient="a", change=shared)
    build([dicom / "a"], data)
    [path] = (data / "imagesTr").iterdir()
    before, [first] = path.read_bytes(), rows(data, "cases.csv")
    write_study(dicom / "b", patient="b", seed=1, change=shared)
    built = build([dicom / "b"], data)
    assert (built.labelled, built.made, built.exit_status) == (1, 0, 3)
    assert path.read_bytes() == before
    assert rows(data, "cases.csv") == [first]
    [row] = [row for row in rows(data) if row["look_at_it"]]
    assert row["reason"] == (
        "its series UID is that of case_0001, which has another PatientID and other images; "
        "expected a series UID of its own, or another --out"
    )


def test_a_case_stays_when_another_patient_comes_to_share_its_series_uid(dicom: Path, data: Path) -> None:
    write_study(dicom / "a", patient="a", change=shared)
    build([dicom], data)
    write_study(dicom / "b", patient="b", seed=1, change=shared)
    for made in (1, 0):
        built = build([dicom], data)
        assert (built.labelled, built.made, built.exit_status) == (2, made, 0)
    assert case_from(data, dicom / "a") == "case_0001"
    assert case_from(data, dicom / "b") == "case_0002"


def test_a_corrected_patient_id_of_the_same_images_keeps_the_case(dicom: Path, data: Path) -> None:
    for number in range(3):
        write_study(dicom / f"s{number}", patient=f"P{number}", seed=number)
    build([dicom], data)
    before = {row["folder"]: row["case"] for row in rows(data, "cases.csv")}
    shutil.rmtree(dicom / "s0")
    write_study(dicom / "s0", patient="P0 corrected", seed=0)
    assert build([dicom], data).exit_status == 0
    after = rows(data, "cases.csv")
    assert {row["folder"]: row["case"] for row in after} == before
    assert len({row["patient"] for row in after}) == 3
