"""Archives as they are: both glands in one structure, series UIDs that several patients share, interrupted reruns."""

import shutil
from pathlib import Path
from typing import Any

import pytest
from pydicom.dataset import Dataset

from parotid_seg.dataset import cases
from parotid_seg.dataset.build import build
from parotid_seg.dataset.dataset_options import DataSetOptions
from parotid_seg.dataset.roi_names import RoiNames
from parotid_seg.errors import InputError, OptionError
from parotid_seg.train.data.data_set import open_data_set
from tests.dataset.studies import GLANDS, RIGHT_BOX, case_from, reasons, rows, write_structures, write_study
from tests.dicom_series import lay, uid


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
    def shared(index: int, dataset: Dataset) -> None:
        dataset.SeriesInstanceUID = uid("of everybody")

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
