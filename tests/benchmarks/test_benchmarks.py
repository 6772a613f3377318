"""Every script in benchmarks/ runs to its end on next to nothing and writes what it promises."""

import hashlib
import json
import pickle
import shutil
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import nibabel
import numpy as np
import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
sys.path[:0] = [str(BENCHMARKS), str(BENCHMARKS / "training")]
from typing import Any

import onnx
import study
from cross_validation import report_by_size

from parotid_seg.contract import Contract
from parotid_seg.export.onnx_file import with_contract
from parotid_seg.models import DEFAULT_MODEL
from parotid_seg.runtime.engines.model_file import read_model
from parotid_seg.train.settings import load_config
from tests.export import test_calibrate
from tests.export.conftest import marked, run, translated  # noqa: F401
from tests.processes import forked
from tests.processes.forked import Forked, ForkedCommands
from tests.train.conftest import balls, short_config, small_config, without_pictures  # noqa: F401

SCRIPTS = {
    path.name: path
    for folder in (".", "quality", "speed", "stability", "training")
    for path in (BENCHMARKS / folder).glob("*.py")
}
ELSEWHERE = {
    "bench_noise.py": "not run: five whole runs of bench take minutes; tests/bench runs what it calls",
    "calibrate.py": "test_a_model_is_calibrated_on_the_masks_of_finished_folds, below",
    "cluster.py": "test_scale.py and tests/cluster; needs network namespaces and Ray for an hour",
    "cross_validation.py": "test_folds_are_disjoint_and_their_results_become_a_table, below",
    "plain_loop.py": "run by runtime.py",
    "distil.py": "test_teacher.py",
    "replicates.py": "test_replicates.py",
    "replicates_report.py": "test_replicates.py",
    "masked.py": "test_replicates.py",
    "resources.py": "imported by many_runs.py and node_series.py",
    "slowed.py": "not run, as bench_noise.py",
    "stress_kinds.py": "imported by stress.py; test_stress_kinds.py",
    "study.py": "test_the_study_trains_and_tests, below",
    "study_report.py": "test_the_study_s_tables_and_picture, below",
    "teacher.py": "test_teacher.py",
    "teacher_net.py": "imported by teacher.py",
    "teacher_views.py": "imported by teacher.py",
    "watch.py": "run by runtime.py",
}
"""Scripts and modules that are not in `COMMANDS`, and what runs them. test_gpu_benchmark.py runs those in gpu/."""
COMMANDS: dict[str, list[str]] = {
    "accuracy.py": ["--scans", "{scans}", "--references", "{labels}", "--out", "{out}", "--worst", "1"],
    "browser.py": ["{scans}/one_0000.nii.gz", "--out", "{out}/x.json"],
    "ceiling.py": ["{balls}", "{trained}", "{trained}", "--cache", "{out}/cache", "--out", "{out}/x.json"],
    "contours.py": [
        *("{own}", "{own}/labelsTr", "--below", "1.1", "--pictures", "{out}/pictures", "--out", "{out}/x.json"),
    ],
    "dose.py": ["{scans}", "{labels}", "{doses}", "--out", "{out}/x.json"],
    "expected_dsc.py": ["{scans}", "{labels}", "--out", "{out}/x.json"],
    "export.py": ["{trained}", "--verify", "{one}", "--precisions", "fp16", "--out", "{out}/x.json"],
    "further_features.py": [
        *("{benchmarks}/results/2026-11-30-calibration.json", "{benchmarks}/results/2026-11-24-uncertainty.json"),
        *("{scans}/one_0000.nii.gz", "--out", "{out}/x.json"),
    ],
    "hounsfield.py": ["{scans}", "--every", "1", "--only", "HU: strip of 0", "inverted", "--out", "{out}/x.json"],
    "kills.py": ["{middle}", "--kills", "1", "--scans", "1", "--out", "{out}/x.json"],
    "locate.py": ["{scans}", "--out", "{out}/x.json"],
    "many_runs.py": ["--runs", "2", "--out", "{out}/x.json"],
    "native_sizes.py": ["{trained}", "{exported}", "--scans", "{one}", "--count", "1", "--out", "{out}/x.json"],
    "node_series.py": ["--series", "3", "--out", "{out}/x.json"],
    "packaged_checkpoint.py": ["{out}/x.pt", "--scans", "{scans}"],
    "planted_faults.py": ["{scans}/..", "--draws", "1", "--runs", "1", "--out", "{out}/x.json"],
    "precision_dose.py": [
        *("{scans}", "{doses}", "--int8", "{root}/parotid_seg/models/parotid-ct.onnx", "--out", "{out}/x.json"),
    ],
    "runtime.py": [
        *("{scans}", "--checkpoint", "{trained}", "--parts", "race", "start", "flat"),
        *("--many", "2", "--out", "{out}/x.json"),
    ],
    "slice_order.py": ["{scans}", "--out", "{out}/x.json"],
    "stress.py": ["{scans}/..", "--patients", "1", "--kinds", "noise", "mirrored", "--json", "{out}/x.json"],
    "sums.py": ["{benchmarks}/results/2026-11-26-cluster.json"],
    "ten_patients.py": [
        *("{own}", "--folds", "{own}/folds.json", "--init", "packaged", "--sets", "unlike", "--config", "{one_batch}"),
        *("--out", "{out}/x.json"),
    ],
    "train_speed.py": [
        *("{balls}", "--images", "4", "--batch-size", "4", "--repeats", "1", "--labelled", "2"),
        *("--out", "{out}/x.json"),
    ],
    "two_versions.py": ["{root}", "{root}", "{scans}/one_0000.nii.gz", "--turns", "1", "--out", "{out}/x.json"],
    "uncertainty.py": ["{scans}", "{labels}", "--out", "{out}/x.json"],
}
WRITES = {"accuracy.py": "scores.md", "packaged_checkpoint.py": "x.pt"}
"""Files in the output folder, where it is not x.json."""
WITH_TORCH = {
    "ceiling.py",
    "cross_validation.py",
    "distil.py",
    "export.py",
    "native_sizes.py",
    "packaged_checkpoint.py",
    "teacher.py",
    "ten_patients.py",
    "train_speed.py",
}
"""Scripts that need torch. The others run in small processes, whose workers and commands are quickly forked."""


def export_packaged(checkpoint: Path, out: Path, *_: object, **__: object) -> None:
    """In place of `export`: the model that the training began with."""
    assert checkpoint.is_file()
    shutil.copy(DEFAULT_MODEL, out)


CONSTANTS: dict[str, dict[str, object]] = {
    "export.py": {"subprocess": SimpleNamespace(run=forked.here)},
    "further_features.py": {"REPEATS": 1},
    "kills.py": {"subprocess": ForkedCommands(workers_too=False)},
    "native_sizes.py": {"SIZES": (96, 160)},
    "runtime.py": {
        **{"STARTS": 1, "REPEATS": 1, "FEW": 1, "RACED": ("onnxruntime",)},
        "watch.EVERY_S": 0.3,
        "watch.subprocess": ForkedCommands(workers_too=True),
    },
    "ten_patients.py": {"OWN": 4, "export": export_packaged},
    "train_speed.py": {"STAGES": ("segment",), "subprocess": SimpleNamespace(run=forked.here)},
}
"""What names of a script stand for, to be quick."""


@pytest.fixture(scope="session")
def files(
    tmp_path_factory: pytest.TempPathFactory,
    example: nibabel.Nifti1Image,
    around_glands: tuple[slice, ...],
    head: nibabel.Nifti1Image,
    head_labels: nibabel.Nifti1Image,
    balls: Path,  # noqa: F811
    run: Path,  # noqa: F811
    translated: tuple[onnx.ModelProto, Contract],  # noqa: F811
) -> dict[str, Any]:
    """What the scripts take: two scans of a few slices with their contours, a data set, and a small model."""
    folder = tmp_path_factory.mktemp("benchmarks")
    scans, labels, doses, one = folder / "imagesTs", folder / "labelsTs", folder / "dosesTs", folder / "one"
    for each in (scans, labels, doses, one):
        each.mkdir()
    few = slice(2, 8)
    for name, part in (("one", few), ("two", slice(3, 9))):
        nibabel.save(head.slicer[:, :, part], scans / f"{name}_0000.nii.gz")
        nibabel.save(head_labels.slicer[:, :, part], labels / f"{name}.nii.gz")
        drawn = head_labels.slicer[:, :, part]
        gray = np.asarray(drawn.dataobj, np.float32) + 0.5
        nibabel.save(nibabel.Nifti1Image(gray, drawn.affine), doses / f"{name}.nii.gz")
    shutil.copy(balls / "imagesTr" / "p4_0000.nii.gz", one)
    *plane, slices = around_glands
    wider = slice(slices.start - 3, slices.stop + 3)  # its middle third is as high as a scan must be
    nibabel.save(example.slicer[(*plane, wider)], folder / "middle.nii.gz")
    own, names = folder / "own", ("a", "b", "c", "d", "e")
    for place, ending, image in (("imagesTr", "_0000", head), ("labelsTr", "", head_labels)):
        (own / place).mkdir(parents=True)
        for name in names:  # one patient's voxels, which the script changes
            nibabel.save(image.slicer[:, :, few], own / place / f"{name}{ending}.nii.gz")
    shutil.copy(balls / "dataset.json", own)
    (own / "splits.json").write_text(json.dumps({"train": names[:3], "validation": names[3:]}))
    (own / "folds.json").write_text(json.dumps([names]))
    (folder / "one_batch.toml").write_text("[segment]\nepochs = 1\nimages_per_epoch = 24\n")
    (folder / "translated").write_bytes(pickle.dumps(translated))
    (folder / "small.onnx").write_bytes(with_contract(*translated))
    return {
        "benchmarks": BENCHMARKS,
        "root": BENCHMARKS.parent,
        "scans": scans,
        "labels": labels,
        "doses": doses,
        "middle": folder / "middle.nii.gz",
        "balls": balls,
        "one": one,
        "own": own,
        "one_batch": folder / "one_batch.toml",
        "trained": run / "best.pt",
        "exported": folder / "small.onnx",
        "translated": folder / "translated",
    }


def run_script(script: str, *words: str, constants: Mapping[str, object] | None = None) -> str:
    """What a script prints; an error with all of it if it fails."""
    program = partial(forked.script, SCRIPTS[script], words, constants or CONSTANTS.get(script, {}))
    process = Forked(program) if script in WITH_TORCH else Forked(partial(forked.forking, program), server=forked.LIGHT)
    stdout, stderr = process.communicate(timeout=500)
    assert process.returncode == 0, stdout[-3000:] + stderr[-3000:]
    return stdout


def test_every_script_is_run_somewhere() -> None:
    assert SCRIPTS.keys() == COMMANDS.keys() | ELSEWHERE.keys()


def read_translated(file: Path, _: object, *, probabilities: bool) -> tuple[onnx.ModelProto, Contract]:
    """In place of `export.to_onnx`, which takes a dozen seconds."""
    assert not probabilities
    made: tuple[onnx.ModelProto, Contract] = pickle.loads(file.read_bytes())
    return made


@pytest.mark.slow
@pytest.mark.parametrize("script", COMMANDS)
def test_a_script_runs(script: str, files: dict[str, Any], tmp_path: Path) -> None:
    words = [word.format(out=tmp_path, **files) for word in COMMANDS[script]]
    constants = dict(CONSTANTS.get(script, {}))
    if script == "export.py":
        constants["parotid_seg.export.verified_export.to_onnx"] = partial(read_translated, files["translated"])
    printed = run_script(script, *words, constants=constants)
    written = tmp_path / WRITES.get(script, "x.json")
    if "{out}" in " ".join(COMMANDS[script]):
        assert written.stat().st_size
    else:
        assert printed.strip()


@pytest.mark.slow
def test_the_dsc_of_each_patient_is_kept(tmp_path: Path) -> None:
    import ten_patients  # it imports torch, which takes seconds

    labels = np.zeros((4, 4, 4), np.uint8)
    labels[:2], labels[2:] = 1, 2
    half = np.where(labels == 2, labels, 0).astype(np.uint8)
    for folder, content in (("masks", half), ("references", labels)):
        (tmp_path / folder).mkdir()
        nibabel.save(nibabel.Nifti1Image(content, np.eye(4)), tmp_path / folder / "p1.nii.gz")
    assert ten_patients.dsc_of_patients(tmp_path / "masks", tmp_path / "references") == {"p1": 0.5}


def test_contours_of_ten_patients_are_grown_by_what_the_script_says() -> None:
    import ten_patients  # it imports torch, which takes seconds

    spacing, radius_mm, grown_mm = np.array([4.0, 3.0, 2.5]), 20.0, 3.0
    places = (np.indices((30, 40, 48)).T - [14.6, 19.7, 23.3]).T * spacing[:, None, None, None]
    ball = (np.linalg.norm(places, axis=0) <= radius_mm).astype(np.uint8)
    scan, labels = (nibabel.Nifti1Image(each, np.diag([*spacing, 1.0])) for each in (ball.astype(np.int16), ball))
    _, grown = ten_patients.unlike(scan, labels, grown_mm, seed=0)
    volume = np.count_nonzero(grown.dataobj) * np.prod(grown.header.get_zooms())
    assert (3 * volume / (4 * np.pi)) ** (1 / 3) == pytest.approx(radius_mm + grown_mm, abs=0.5)


def test_amount_and_place_of_masks_by_size_of_the_gland(tmp_path: Path) -> None:
    glands = [{"reference_ml": ml, "volume_ml": ml * (0.5 if ml % 2 else 2), "dsc": 0.5} for ml in range(4, 12)]
    patients = {f"p{number}": {"parotid_left": gland} for number, gland in enumerate(glands)}
    (tmp_path / "small").mkdir()
    (tmp_path / "small" / "fold-0.json").write_text(json.dumps({"fold": 0, "patients": patients}))
    rows = report_by_size(tmp_path).splitlines()[2:]
    assert len(rows) == 4
    assert rows[0] == "| small | 4.0 to 5.0 | 0.500 | 1.25 (0.88 to 1.62) | 0.667 |"


@pytest.mark.slow
def test_folds_are_disjoint_and_their_results_become_a_table(balls: Path, short_config: Path, tmp_path: Path) -> None:  # noqa: F811
    recipe = shutil.copy(short_config, tmp_path / "small.toml")
    words = [str(each) for each in (balls, recipe, "--folds", 0, "--runs", tmp_path / "runs")]
    words += ["--results", str(tmp_path / "results")]
    run_script("cross_validation.py", *words)
    folds = json.loads((tmp_path / "results" / "folds.json").read_text())
    names = [name for fold in folds for name in fold]
    assert sorted(names) == sorted(set(names)) == [f"p{index}" for index in range(6)]
    result = json.loads((tmp_path / "results" / "small" / "fold-0.json").read_text())
    assert sorted(result["patients"]) == folds[0]
    assert {path.name for path in (tmp_path / "results" / "small" / "masks").iterdir()} == {
        f"{name}.nii.gz" for name in folds[0]
    }
    table = run_script("cross_validation.py", "--report", "--results", str(tmp_path / "results"))
    assert f"| small | 0 | {len(folds[0])} |" in table


def done_by(name: str) -> dict[str, Any]:
    """What the study has of a run."""
    found = study.read(name)
    assert found is not None
    return found


@pytest.mark.slow
@pytest.mark.usefixtures("without_pictures")
def test_the_study_trains_and_tests(
    balls: Path,  # noqa: F811
    small_config: Path,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With a small network in place of the preset's."""
    monkeypatch.setattr("parotid_seg.train.settings.load_config", partial(load_config, file=small_config))
    data = tmp_path / "data"
    data.mkdir()
    for entry in balls.iterdir():
        (data / entry.name).symlink_to(entry)
    monkeypatch.setattr(study, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(study, "SLICES_AN_EPOCH", 24)
    monkeypatch.setattr(study, "LABELLED", (2,))
    monkeypatch.setattr(study, "SEEDS", {2: {2: (0,)}, 6: {2: ()}})
    runs = tmp_path / "runs"
    run = study.Run("scratch", study.BOTH, 2, 2, 0, study.RATES[0])  # noqa: F811
    assert next(study.work(runs)) == run.name
    study.do(run.name, data, runs)
    assert done_by(run.name)["minutes"] > 0
    for made, source in (("imagesTs", "imagesTr"), ("labelsTs", "labelsTr")):
        (data / made).symlink_to(balls / source)
    study.do(f"test:{run.name}", data, runs)
    assert set(done_by(run.name)["test"]) == {f"p{index}" for index in range(6)}


def test_the_study_s_tables_and_picture_come_from_the_committed_results(tmp_path: Path) -> None:
    import study_report  # it imports scipy.stats, which takes seconds

    page, picture = tmp_path / "study.md", tmp_path / "study.png"
    committed = (study_report.DOCS / "study.md").read_text()
    page.write_text(committed)
    study_report.report(page, picture)
    assert page.read_text() == committed
    assert picture.stat().st_size


def test_a_model_is_calibrated_on_the_masks_of_finished_folds(tmp_path: Path) -> None:
    data = test_calibrate.masks_for(test_calibrate.place_for(tmp_path / "data", patients=15))
    recipe, model = tmp_path / "data", tmp_path / "m.onnx"
    shutil.copy(DEFAULT_MODEL, model)
    model.with_suffix(".parity.json").write_text('{"passed": true, "model_sha256": ""}')
    for fold in range(2):
        patients = dict.fromkeys(f"p{number}" for number in range(fold, 15, 2))
        (recipe / f"fold-{fold}.json").write_text(json.dumps({"fold": fold, "patients": patients}))
    words = (str(data), str(recipe), "--out", str(tmp_path / "x.json"), "--store", str(model))
    assert "30 structures of 15 patients" in run_script("calibrate.py", *words)
    found = json.loads((tmp_path / "x.json").read_text())
    figures = found["parotid_left and parotid_right"]
    assert (figures["glands"], figures["patients"], len(figures["all"])) == (30, 15, 30)
    (stored,) = read_model(model).contract.calibrations
    record = json.loads(model.with_suffix(".parity.json").read_text())
    assert record == {"passed": True, "model_sha256": hashlib.sha256(model.read_bytes()).hexdigest()}
    assert (stored.glands, stored.margin) == (30, found["calibrations"][0]["margin"])
    limits = read_model(model).contract.operating_range
    assert limits is not None
    assert (limits.patients, limits.margin) == (15, found["operating range"]["margin"])
    assert len(found["operating range"]["all"]) == 15
    assert stored.made == found["made"] == "out-of-fold masks of the recipe data, fold 0, 1"
    assert all(each["dsc"] >= each["floor_dsc"] for each in figures["all"]) == (figures["floor_held"] == 1.0)


def test_stress_of_patients_that_a_model_has_not_seen(tmp_path: Path) -> None:
    data = test_calibrate.masks_for(test_calibrate.place_for(tmp_path / "data", patients=15))
    patients = dict.fromkeys(f"p{number}" for number in range(15))
    (data / "fold-0.json").write_text(json.dumps({"fold": 0, "patients": patients}))
    words = (str(data), "--held-out", str(data), "--kinds", "mirrored", "--json", str(tmp_path / "x.json"))
    run_script("stress.py", *words)
    found = json.loads((tmp_path / "x.json").read_text())
    assert sorted((*found["patients"], *found["left_out"])) == sorted(patients)
