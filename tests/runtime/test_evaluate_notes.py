"""`parotid-seg evaluate` says what was found: exchanged sides, a file that is no mask, masks without a partner, and
structures that were not written."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest

from parotid_seg.errors import ScanError
from parotid_seg.files import hash_file
from parotid_seg.runtime.compare import compare
from parotid_seg.runtime.evaluation import evaluate
from tests.command_line import Run
from tests.small_files import save_mask


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    reference = np.zeros((10, 10, 10), np.uint8)
    reference[2:4, 2:4, 2:6], reference[6:8, 2:4, 2:6] = 1, 2
    for place in ("references", "predictions"):
        for case in "ab":
            save_mask(tmp_path / place / f"{case}.nii.gz", reference)
    return tmp_path


def test_a_single_file_is_named_by_what_it_is(command: Run, folders: Path) -> None:
    text = folders / "notes.txt"
    text.write_text("no mask")
    done = command("evaluate", text, folders / "references")
    assert done.stderr == (
        f"parotid-seg: {text}: found a file that is no mask by its name, expected one ending in .nii or .nii.gz\n"
    )
    mask = folders / "predictions" / "a.nii.gz"
    done = command("evaluate", mask, folders / "references")
    assert f"{mask}: no prediction for b of {folders / 'references'}; found masks of a\n" in done.stderr


@pytest.mark.parametrize("cases", ["a", "ab"])
def test_exchanged_sides_are_named(command: Run, folders: Path, cases: str) -> None:
    for case in cases:
        reference = np.asarray(nibabel.load(folders / "references" / f"{case}.nii.gz").dataobj)
        save_mask(folders / "predictions" / f"{case}.nii.gz", np.array([0, 2, 1], np.uint8)[reference])
    done = command("evaluate", folders / "predictions", folders / "references")
    names = {"a": "1 case (a)", "ab": "2 cases (a, b)"}[cases]
    told = "left and right seem exchanged between predictions and references, DSC 0.00, 1.00 when exchanged: "
    assert told + names in " ".join(done.stdout.split())
    assert "exchanged" not in command("evaluate", folders / "references", folders / "references").stdout


def test_labels_of_a_linked_folder_are_named_by_the_data_set_that_links_it(folders: Path) -> None:
    data = folders / "DATA"
    data.mkdir()
    (data / "labelsTr").symlink_to(folders / "references")
    labels = {"background": 0, "parotid_right": 1, "parotid_left": 2}
    (data / "dataset.json").write_text(json.dumps({"labels": labels}))
    ours = {"background": 0, "parotid_left": 1, "parotid_right": 2}
    (folders / "predictions" / "dataset.json").write_text(json.dumps({"labels": ours}))
    found = evaluate(folders / "predictions", data / "labelsTr")
    assert found.labels.references.source == data / "dataset.json"
    assert found.labels.pairs == {"parotid_left": "parotid_left", "parotid_right": "parotid_right"}
    assert found.means["glands dsc"].mean == 0, "left is right there"


def test_structures_of_one_mask_only_are_named_with_their_cases(folders: Path) -> None:
    only = {"references": np.array([0, 0, 2], np.uint8), "predictions": np.array([0, 1, 0], np.uint8)}
    for place, table in only.items():
        path = folders / place / "b.nii.gz"
        save_mask(path, table[np.asarray(nibabel.load(path).dataobj)])
    notes = evaluate(folders / "predictions", folders / "references").notes
    told = "in the predictions only, DSC 0 (absent in the patient, or not contoured?): parotid_left in 1 case (b)"
    assert told in notes
    assert "in the references only, DSC 0: parotid_right in 1 case (b)" in notes
    assert not any("absent in both" in note for note in notes)


def only_left(folders: Path) -> None:
    """Masks as `infer --only parotid_left` leaves them."""
    for path in (folders / "predictions").glob("*.nii.gz"):
        save_mask(path, np.array([0, 1, 0], np.uint8)[np.asarray(nibabel.load(path).dataobj)])
    model = {"contract": {"labels": ["background", "parotid_left", "parotid_right"]}}
    content = {"model": model, "options": {"only": ["parotid_left"], "tta": False}}
    (folders / "predictions" / "run.json").write_text(json.dumps(content))


def test_volumes_of_sheared_voxels_are_theirs(folders: Path) -> None:
    sheared = np.diag([2.0, 2.0, 3.0, 1.0])
    sheared[1, 2] = 1.5  # the planes lean: 3 mm apart, with their middles 3.35 mm apart
    for place in ("references", "predictions"):
        image = nibabel.load(folders / place / "a.nii.gz")
        save_mask(folders / place / "a.nii.gz", np.asarray(image.dataobj), sheared)
    result = evaluate(folders / "predictions", folders / "references")
    of_a, of_b = (result.cases[case].labels["parotid_left"] for case in "ab")
    assert of_a.volume_ml == of_a.reference_ml == pytest.approx(of_b.volume_ml) == pytest.approx(16 * 12 / 1000)
    told = "voxel axes not at right angles (gantry tilt), distances and surfaces computed as if they were: 1 case (a)"
    assert told in result.notes


def test_a_reference_whose_place_is_in_doubt_is_told(folders: Path) -> None:
    for place in ("references", "predictions"):
        path = folders / place / "a.nii.gz"
        image = nibabel.Nifti1Image(np.asarray(nibabel.load(path).dataobj), np.diag([2.0, 2.0, 3.0, 1.0]))
        image.set_sform(None)
        image.set_qform(None)
        nibabel.save(image, path)
    notes = evaluate(folders / "predictions", folders / "references").notes
    (note,) = (note for note in notes if note.startswith("no orientation in the header (sform and qform codes are 0)"))
    assert note.endswith(": 1 case (a)")


@pytest.mark.parametrize("named", [True, False])
def test_structures_that_infer_was_not_asked_for_are_not_scored(folders: Path, named: bool) -> None:
    only_left(folders)
    shutil.copytree(folders / "references", folders / "other")
    if named:
        labels = {"background": 0, "parotid_left": 1, "parotid_right": 2}
        (folders / "references" / "dataset.json").write_text(json.dumps({"labels": labels}))
    result = evaluate(folders / "predictions", folders / "references")
    assert result.labels.names == ("background", "parotid_left")
    assert result.means["glands dsc"].mean == 1
    assert "not scored, since only the references have it: parotid_right" in result.notes
    assert not any("only the predictions" in note for note in result.notes)
    record = compare(folders / "predictions", folders / "other", folders / "references")
    assert {each.structure for each in record.differences} == {"parotid_left", "glands"}
    assert record.verdict == "no verdict: found 2 patients with both masks, expected at least 6"


def test_a_mask_with_a_structure_that_its_run_did_not_write_is_refused(folders: Path) -> None:
    only_left(folders)
    shutil.copy(folders / "references" / "a.nii.gz", folders / "predictions")
    with pytest.raises(ScanError, match=r"found label 2, expected one of 0, 1: predictions have 1 = parotid_left \("):
        evaluate(folders / "predictions", folders / "references")


@pytest.mark.parametrize("shown", [("parotid_left",), ("parotid_right", "parotid_left"), ()])
def test_a_mask_of_an_earlier_run_with_other_structures_is_refused(folders: Path, shown: tuple[str, ...]) -> None:
    """As results.json records it; run.json is of the last run only."""
    both = ("parotid_left", "parotid_right")
    model = {"contract": {"labels": ["background", *both]}}
    (folders / "predictions" / "run.json").write_text(json.dumps({"model": model, "options": {"only": []}}))

    def record(of_b: tuple[str, ...]) -> None:
        cases = [
            {"status": "done", "structures": [{"name": each, "ml": 1} for each in names], "files": {name: "ab"}}
            for name, names in (("a.nii.gz", both), ("b.nii.gz", of_b))
        ]
        (folders / "predictions" / "results.json").write_text(json.dumps({"cases": cases}))

    record(both)
    assert evaluate(folders / "predictions", folders / "references").means["glands dsc"].mean == 1
    record(shown)
    with pytest.raises(
        ScanError, match=rf"b\.nii\.gz: an earlier run made it, of {', '.join(shown)}; predictions have"
    ):
        evaluate(folders / "predictions", folders / "references")


def test_masks_that_are_not_the_results_beside_them_are_named(command: Run, folders: Path) -> None:
    """One that results.json does not list, as after a failed run, and one that was changed after it was written."""
    place = folders / "predictions"
    model = {"contract": {"labels": ["background", "parotid_left", "parotid_right"]}}
    (place / "run.json").write_text(json.dumps({"model": model}))
    labels = {"background": 0, "parotid_left": 1, "parotid_right": 2}
    (folders / "references" / "dataset.json").write_text(json.dumps({"labels": labels}))
    structures = [{"name": "parotid_left"}, {"name": "parotid_right"}]

    def record(*names: str) -> None:
        files = {name: hash_file(place / name) for name in names}
        cases = [{"structures": structures, "files": {name: sha256}} for name, sha256 in files.items()]
        (place / "results.json").write_text(json.dumps({"cases": [*cases, {"structures": [], "files": {}}]}))

    record("a.nii.gz", "b.nii.gz")
    assert evaluate(place, folders / "references").notes_on_masks == []
    record("a.nii.gz")
    voxels = np.asarray(nibabel.load(place / "a.nii.gz").dataobj).copy()
    voxels[2, 2, 2] = 0
    save_mask(place / "a.nii.gz", voxels)
    assert evaluate(place, folders / "references").notes_on_masks == [
        "predictions that have changed since infer wrote them: 1 case (a)",
        "predictions that the results.json beside them does not list, so that they are not of its run: 1 case (b)",
    ]
    assert "does not list" in command("evaluate", place, folders / "references").stdout
    compared = compare(place, folders / "references", folders / "references")
    assert any(note.startswith("A: predictions that the results.json") for note in compared.notes)


def test_a_case_is_named_once_in_a_note_on_its_dose(folders: Path) -> None:
    """Prediction and reference lie outside the dose in different shares."""
    for case in "ab":
        dose = np.ones((7, 10, 10), np.float32)
        save_mask(folders / "doses" / f"{case}.nii.gz", dose)
        save_mask(folders / "predictions" / f"{case}.nii.gz", np.full((10, 10, 10), 2, np.uint8))
    notes = evaluate(folders / "predictions", folders / "references", dose=folders / "doses").notes
    assert "partly or wholly outside the dose grid: parotid_right: 2 cases (a, b)" in notes


@pytest.mark.parametrize("name", ["run.json", "dataset.json"])
def test_files_that_name_labels_are_not_replaced(command: Run, folders: Path, name: str) -> None:
    only_left(folders)
    labels = {"background": 0, "parotid_left": 1, "parotid_right": 2}
    (folders / "dataset.json").write_text(json.dumps({"labels": labels}))
    place = folders / "predictions" / name if name == "run.json" else folders / name
    before = place.read_bytes()
    done = command("evaluate", folders / "predictions", folders / "references", "--out", place)
    assert (done.returncode, place.read_bytes()) == (2, before)
    assert f"{place}: cannot be written: it is one of the files that are read" in done.stderr


@pytest.mark.parametrize("compared", [False, True])
def test_records_and_tables_of_evaluate_are_replaced(command: Run, folders: Path, compared: bool) -> None:
    words = ["evaluate", folders / "predictions", folders / "references"]
    words += ["--references", folders / "references"] if compared else []
    for name in ("scores.json", "scores.csv"):
        for _ in range(2):
            assert command(*words, "--out", folders / name).returncode == 0


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo], ids=["folder", "fifo"])
def test_names_of_labels_in_what_is_no_file_are_refused(
    command: Run, folders: Path, make: Callable[[Path], None]
) -> None:
    make(folders / "references" / "dataset.json")
    done = command("evaluate", folders / "predictions", folders / "references")
    assert done.returncode == 1
    assert "dataset.json: found no regular file, expected the names of the masks' labels in it" in done.stderr


def test_names_are_printed_as_they_are(command: Run, folders: Path) -> None:
    """Square brackets and colons are no markup."""
    for place in ("references", "predictions"):
        (folders / place / "a.nii.gz").rename(folders / place / "x[red]1:100:2.nii.gz")
        labels = {"background": 0, "[/x] gland": 1, "gland:star:": 2}
        (folders / place / "dataset.json").write_text(json.dumps({"labels": labels}))
    words = ("evaluate", folders / "predictions", folders / "references")
    for done in (command(*words, "--all"), command(*words, "--references", folders / "references", "--all")):
        assert (done.returncode, done.stderr) == (0, "")
        assert "[/x] gland" in done.stdout
        assert "gland:star:" in done.stdout
    assert "x[red]1:100:2" in command(*words, "--all").stdout


@pytest.mark.parametrize(
    ("name", "status", "told"),
    [
        ("scores.xlsx", 2, "expected a name ending in .json or .csv"),
        ("folder.json", 2, "found a folder, expected a file to make"),
        ("mine.json", 2, "found a file that is not of evaluate, expected another name"),
        ("mine.csv", 2, "found a file that is not of evaluate, expected another name"),
        ("predictions/.written.json", 2, "found a file that is not of evaluate, expected another name"),
        ("predictions/results.json", 2, "a file of infer or of a data set"),
        ("predictions/dataset.json", 2, "a file of infer or of a data set"),
        ("run/summary.csv", 2, "a file of infer or of a data set"),
        ("predictions/a.nii.gz/scores.json", 1, "the folder cannot be made or written to"),
    ],
)
def test_an_output_that_cannot_be_is_refused_before_any_work(
    command: Run, folders: Path, name: str, status: int, told: str
) -> None:
    for folder in ("folder.json", "run"):
        (folders / folder).mkdir()
    (folders / "run" / "run.json").write_text("{}")
    (folders / "mine.json").write_text(json.dumps({"train": ["a"], "test": ["b"]}))
    (folders / "mine.csv").write_text("case,age\na,50\n")
    (folders / "predictions" / ".written.json").write_text("[]")
    (folders / "references" / "a.nii.gz").write_bytes(b"no mask, which is told by work")
    before = {path: path.is_file() and path.read_bytes() for path in folders.rglob("*")}
    done = command("evaluate", folders / "predictions", folders / "references", "--out", folders / name)
    assert done.returncode == status
    assert told in done.stderr
    assert before == {path: path.is_file() and path.read_bytes() for path in folders.rglob("*")}


def test_an_output_gets_its_folder_and_may_have_any_name_elsewhere(command: Run, folders: Path) -> None:
    done = command(
        "evaluate", folders / "predictions", folders / "references", "--out", folders / "new" / "results.json"
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads((folders / "new" / "results.json").read_text())["cases"].keys() == {"a", "b"}


def test_figures_that_no_case_has_are_none(command: Run, folders: Path) -> None:
    for case in "ab":
        save_mask(folders / "predictions" / f"{case}.nii.gz", np.zeros((10, 10, 10), np.uint8))
    table = command("evaluate", folders / "predictions", folders / "references", "--all").stdout
    assert "none, 2 empty in one" in table
    assert "nan (" not in table
