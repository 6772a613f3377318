"""`parotid-seg evaluate A B --references R`: paired differences of two sets of masks, and a verdict in words."""

import json
from collections.abc import Callable
from pathlib import Path

import jsonschema
import nibabel
import numpy as np
import pytest
from numpy.typing import NDArray

from parotid_seg.errors import InputError
from parotid_seg.metrics import mean_with_interval
from parotid_seg.records import schema_text
from parotid_seg.runtime.compare import FEWEST, ComparisonRecord, Difference, compare
from tests.command_line import Run
from tests.small_files import AFFINE, read_table, save_mask

pytestmark = pytest.mark.slow

SCHEMA = Path(__file__).parents[2] / "docs" / "comparison.schema.json"
PATIENTS = [f"p{number}" for number in range(8)]


def glands(left: int = 6, right: int = 6) -> NDArray[np.uint8]:
    """Two glands, boxes of so many layers."""
    labels = np.zeros((12, 8, 12), np.uint8)
    labels[1:5, 2:6, 2 : 2 + left], labels[7:11, 2:6, 2 : 2 + right] = 1, 2
    return labels


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    """References; A, which lacks one or two layers of each gland; and B, which is nearer."""
    for number, name in enumerate(PATIENTS):
        save_mask(tmp_path / "r" / f"{name}.nii.gz", glands())
        save_mask(tmp_path / "a" / f"{name}.nii.gz", glands(4, 4 + number % 2))
        save_mask(tmp_path / "b" / f"{name}.nii.gz", glands(5, 5 + number % 2))
    return tmp_path


def run(folders: Path) -> ComparisonRecord:
    return compare(folders / "a", folders / "b", folders / "r")


def found(result: ComparisonRecord, structure: str, figure: str) -> Difference:
    (each,) = (each for each in result.differences if (each.structure, each.figure) == (structure, figure))
    return each


def test_differences_are_paired_by_patient(folders: Path) -> None:
    result = run(folders)
    dsc = [2 * layers / (layers + 6) for layers in range(7)]
    left, both = found(result, "parotid_left", "dsc"), found(result, "glands", "dsc")
    assert (left.mean_a, left.mean_b, left.difference) == pytest.approx((dsc[4], dsc[5], dsc[5] - dsc[4]))
    assert left.low == left.high == pytest.approx(left.difference), "the same in every patient"
    pairs = [((dsc[5] - dsc[4]) + (dsc[5 + odd] - dsc[4 + odd])) / 2 for odd in (0, 1)] * 4
    assert both.difference == pytest.approx(np.mean(pairs))
    assert both.patients == len(PATIENTS), "patients are resampled, not glands"
    assert (both.low, both.high) == pytest.approx(mean_with_interval(pairs)[1:])
    volume = found(result, "parotid_left", "volume_error_ml")
    assert (volume.mean_a, volume.mean_b) == pytest.approx((2 * 0.192, 0.192)), "absolute values"
    assert {each.better for each in result.differences if each.figure != "accuracy"} == {"B"}
    assert result.better == "B"
    assert result.verdict.startswith("B is better: DSC of the glands 0.827 (A) and 0.932 (B), B minus A +0.105")
    assert "over 8 patients" in result.verdict
    assert compare(folders / "b", folders / "a", folders / "r").verdict.startswith("A is better")


def test_equal_masks_have_no_difference(folders: Path) -> None:
    result = compare(folders / "a", folders / "a", folders / "r")
    assert (result.better, result.verdict) == (None, "no difference: all figures are equal")


def test_what_comes_and_goes_is_no_difference(folders: Path) -> None:
    for number, name in enumerate(PATIENTS):
        save_mask(folders / "b" / f"{name}.nii.gz", glands(4 + 2 * (number % 2) - 1, 4 + number % 2))
    result = run(folders)
    assert result.better is None
    assert result.verdict.startswith("no difference in DSC can be told")
    assert "interval -" in result.verdict


def test_figures_that_contradict_each_other(folders: Path) -> None:
    """B has both glands and a slice far above each; A lacks two slices of each."""
    for name in PATIENTS:
        far = glands()
        far[1:5, 2:6, 11], far[7:11, 2:6, 11] = 1, 2
        save_mask(folders / "b" / f"{name}.nii.gz", far)
        save_mask(folders / "a" / f"{name}.nii.gz", glands(4, 4))
    result = run(folders)
    dsc, distance = found(result, "glands", "dsc"), found(result, "glands", "hd95_mm")
    assert (dsc.better, distance.better) == ("B", "A")
    assert result.better is None
    assert result.verdict.startswith("neither is better: B has the better DSC, A the better ")
    assert "HD95" in result.verdict


def test_too_few_patients_for_a_verdict(folders: Path) -> None:
    for name in PATIENTS[FEWEST - 1 :]:
        (folders / "a" / f"{name}.nii.gz").unlink()
    result = run(folders)
    assert result.better is None
    assert result.verdict == f"no verdict: found {FEWEST - 1} patients with both masks, expected at least {FEWEST}"
    assert not any(each.better for each in result.differences)


def test_missing_patients_are_named(command: Run, folders: Path) -> None:
    (folders / "a" / "p1.nii.gz").unlink()
    (folders / "b" / "p2.nii.gz").unlink()
    save_mask(folders / "b" / "extra.nii.gz", glands())
    done = command("evaluate", folders / "a", folders / "b", "--references", folders / "r")
    assert done.returncode == 0, done.stderr
    assert "2 patients not compared, since missing in A: extra, p1" in done.stdout
    assert "1 patient not compared, since missing in B: p2" in done.stdout
    assert "not compared, since missing in the references: extra" in done.stdout
    assert run(folders).patients == [name for name in PATIENTS if name not in ("p1", "p2")]


def test_a_gland_that_one_set_lacks_has_no_distance_and_is_named(folders: Path) -> None:
    save_mask(folders / "b" / "p3.nii.gz", glands(0, 5))
    result = run(folders)
    assert found(result, "parotid_left", "hd95_mm").left_out == ["p3"]
    assert found(result, "parotid_left", "dsc").patients == len(PATIENTS), "a DSC of 0 counts"
    assert "without distances of parotid_left, since a mask is empty: p3" in result.notes


def test_what_is_absent_in_a_set_and_the_reference_is_in_no_mean(folders: Path) -> None:
    """A finds nothing where nothing is, and so has no figure; B does. The patient counts by the other gland."""
    save_mask(folders / "r" / "p0.nii.gz", glands(0))
    save_mask(folders / "a" / "p0.nii.gz", glands(0, 4))
    save_mask(folders / "b" / "p0.nii.gz", glands(2, 5))
    result = run(folders)
    assert found(result, "parotid_left", "dsc").left_out == ["p0"]
    assert found(result, "glands", "dsc").patients == len(PATIENTS)
    told = "not compared, since one set has it, but neither the other nor the references: parotid_left in p0"
    assert told in result.notes
    assert not any("without distances" in note for note in result.notes), "it has no figure at all"


def test_what_only_one_set_has_is_no_equality(folders: Path) -> None:
    for name in PATIENTS:
        save_mask(folders / "r" / f"{name}.nii.gz", glands(0, 5))
        save_mask(folders / "a" / f"{name}.nii.gz", glands(4, 5))
        save_mask(folders / "b" / f"{name}.nii.gz", glands(0, 5))
    result = run(folders)
    told = "no difference in what is compared, but only one set has parotid_left where the references do not"
    assert (result.verdict, result.better) == (told, None)


def test_labels_are_matched_by_name(folders: Path) -> None:
    expected = run(folders).differences
    for path in (folders / "b").glob("*.nii.gz"):
        labels = np.asarray(nibabel.load(path).dataobj)
        save_mask(path, np.array([0, 3, 1], np.uint8)[labels])
    names = {"background": 0, "Parotid_R": 1, "tumour": 2, "Parotid_L": 3}
    (folders / "b" / "dataset.json").write_text(json.dumps({"labels": names}))
    ours = {"background": 0, "parotid_left": 1, "parotid_right": 2}
    (folders / "r" / "dataset.json").write_text(json.dumps({"labels": ours}))
    result = run(folders)
    assert result.differences == expected
    assert "B: not scored, since only the predictions have it: tumour" in result.notes


def test_dose(folders: Path) -> None:
    ramp = np.broadcast_to(np.arange(12, dtype=np.float32), (12, 8, 12))
    for name in PATIENTS:
        (folders / "doses").mkdir(exist_ok=True)
        nibabel.save(nibabel.Nifti1Image(ramp, AFFINE), folders / "doses" / f"{name}.nii.gz")
    result = compare(folders / "a", folders / "b", folders / "r", dose=folders / "doses")
    gray = found(result, "parotid_left", "mean_error_gy")
    assert (gray.mean_a, gray.mean_b, gray.better) == (1.0, 0.5, "B")
    assert "absolute error of the mean dose" in result.verdict


def test_the_files_fit_the_schema(command: Run, folders: Path, snapshot: Callable[[str, str | Path], None]) -> None:
    for out in ("out.json", "out.csv"):
        words = ("evaluate", folders / "a", folders / "b", "--references", folders / "r", "--out", folders / out, "-q")
        done = command(*words)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    text = schema_text(ComparisonRecord)
    snapshot(text, SCHEMA)
    content = json.loads((folders / "out.json").read_text())
    jsonschema.validate(content, json.loads(text), jsonschema.Draft202012Validator)
    rows = read_table(folders / "out.csv")
    assert len(rows) == len(content["differences"])
    assert rows[0]["structure"] == "parotid_left"
    assert float(rows[0]["difference"]) == content["differences"][0]["difference"]


def test_one_table_first_and_all_figures_on_request(command: Run, folders: Path) -> None:
    words = ("evaluate", folders / "a", folders / "b", "--references", folders / "r")
    short, full = command(*words).stdout, command(*words, "--all").stdout
    assert short.splitlines()[3].startswith("B is better: DSC of the glands")
    assert "IoU" not in short
    assert "IoU" in full
    assert "accuracy (recall)" in full


def test_three_files(folders: Path) -> None:
    files = [folders / each / f"p{number}.nii.gz" for number, each in enumerate("abr")]
    result = compare(*files)
    assert result.patients == ["p2"]
    assert result.verdict == f"no verdict: found 1 patient with both masks, expected at least {FEWEST}"


def test_with_references_one_set_is_evaluated_as_without(command: Run, folders: Path) -> None:
    plain = command("evaluate", folders / "a", folders / "r").stdout
    assert command("evaluate", folders / "a", "--references", folders / "r").stdout == plain


def test_nothing_in_common_and_nothing_to_compare_with(command: Run, folders: Path) -> None:
    for path in (folders / "b").iterdir():
        path.rename(path.with_name(f"other-{path.name}"))
    with pytest.raises(InputError, match=r"no case has a mask in all three, .* found .*/a: p0, .*/b: other-p0, "):
        run(folders)
    done = command("evaluate", folders / "a")
    assert done.returncode == 2
    assert "Missing argument 'REFERENCES'" in done.stderr
