"""benchmarks/peers without the peers: arithmetic, table, bookkeeping, and contestants that fail."""

import json
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest

PLACES = [str(Path(__file__).parents[2] / "benchmarks" / each) for each in (".", "peers")]
sys.path[:0] = PLACES
import platform
from typing import Any

import budget
import contestants
import environments
import nnunet
import race
import report
from budget import Schedule, Timing
from contestants import Contestant
from nnunet import NnUnet
from race import Race, Rules
from record import Record
from watch import family

pytestmark = pytest.mark.slow


LINUX = pytest.mark.skipif(sys.platform != "linux", reason="watch.py reads /proc")
NAMES = ["a", "b", "c"]
SETTINGS = {"data": "Small", "scans": NAMES, "slow_scans": 2, "processor": "this one", "cores": 2}
MACHINE = {"date": "2026-11-24", "processor": "this one", "cores": 2, "memory_gib": 24.0, "system": "Linux"}
SCHEDULE = Schedule("2d", "T", 160.0, 1, 12, (128, 128), 60, 70, Timing(2.0, 3.0))


# ------------------------------------------------------------------------------------------------- budget


@pytest.mark.parametrize("seconds", [600, 4800, 9600])
@pytest.mark.parametrize("timing", [Timing(2.0, 2.5), Timing(30.0, 60.0), Timing(0.01, 1.0), Timing(150.0, 0.0)])
def test_epochs_fill_the_budget_and_stay_within(seconds: int, timing: Timing) -> None:
    epochs, iterations = budget.epochs_for(seconds, timing)
    an_epoch = iterations * timing.iteration + timing.rest
    assert epochs * an_epoch <= seconds
    assert seconds - epochs * an_epoch < an_epoch
    assert 1 <= iterations <= budget.MOST_ITERATIONS


def test_what_follows_an_epoch_takes_little_of_the_time() -> None:
    for seconds, timing in ((9600, Timing(2.0, 2.5)), (180, Timing(2.0, 2.5)), (9600, Timing(30.0, 60.0))):
        epochs, _ = budget.epochs_for(seconds, timing)
        assert epochs * timing.rest <= 0.06 * seconds
    assert budget.epochs_for(9600, Timing(2.0, 2.5))[0] == budget.EPOCHS_WANTED


def test_a_budget_that_is_too_short_is_refused() -> None:
    assert budget.epochs_for(12, Timing(10.0, 2.0)) == (1, 1)
    with pytest.raises(ValueError, match="too short"):
        budget.epochs_for(11, Timing(10.0, 2.0))


def test_a_schedule_is_kept_and_other_settings_refused(tmp_path: Path) -> None:
    path = tmp_path / "schedule.json"
    assert budget.read_schedule(path) is None
    budget.write_schedule(SCHEDULE, path)
    assert budget.read_schedule(path) == SCHEDULE
    assert [each.name for each in tmp_path.iterdir()] == ["schedule.json"]
    budget.check_same(SCHEDULE, core_minutes=160.0, batch_size=None, threads=1)
    with pytest.raises(SystemExit, match="threads 1, now 2"):
        budget.check_same(SCHEDULE, core_minutes=160.0, threads=2)


# ------------------------------------------------------------------------------------------------- nnU-Net


@pytest.fixture
def peer(tmp_path: Path) -> NnUnet:
    data = tmp_path / "Dataset007_Small"
    (data / "labelsTr").mkdir(parents=True)
    for name in NAMES:
        (data / "labelsTr" / f"{name}.nii.gz").touch()
    return NnUnet(tmp_path / "environment", tmp_path / "work", data)


def test_only_what_is_not_preprocessed_for_everyone_is_missing(peer: NnUnet) -> None:
    assert peer.missing() == ["2d", "3d_fullres"]
    for configuration, names in (("2d", NAMES), ("3d_fullres", NAMES[:2])):
        folder = peer.preprocessed / f"nnUNetPlans_{configuration}"
        folder.mkdir(parents=True)
        for name in names:
            (folder / f"{name}.pkl").touch()
    assert peer.missing() == ["2d", "3d_fullres"]  # no plans
    (peer.preprocessed / "nnUNetPlans.json").touch()
    assert peer.missing() == ["3d_fullres"]


def test_a_split_is_written_as_nnunet_reads_it(peer: NnUnet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(NnUnet, "missing", lambda _: [])
    peer.preprocessed.mkdir(parents=True)
    (tmp_path / "splits.json").write_text(json.dumps({"train": ["a", "b"], "validation": ["c"]}))
    for _ in range(2):
        peer.prepare(tmp_path / "splits.json", 1)
    split = json.loads((peer.preprocessed / "splits_final.json").read_text())
    assert split == [{"train": ["a", "b"], "val": ["c"]}]
    assert (peer.work / "raw" / "Dataset007_Small" / "labelsTr").is_dir()


def test_predictions_name_model_and_mirroring(peer: NnUnet) -> None:
    words = peer.predict("2d", Path("in"), Path("out"), trained=True, mirrored=False)
    assert f"nnUNet_results={peer.work / 'results'}" in words
    assert words[words.index("-tr") + 1] == nnunet.TRAINED_TRAINER
    assert "--disable_tta" in words
    words = peer.predict("2d", Path("in"), Path("out"), trained=False, mirrored=True)
    assert f"nnUNet_results={peer.work / 'untrained'}" in words
    assert words[words.index("-tr") + 1] == nnunet.DEFAULT_TRAINER
    assert "--disable_tta" not in words
    assert replace(peer, data=Path("anything")).dataset == "Dataset101_Parotid"


def test_a_training_counts_once_it_is_over_and_tells_its_time(peer: NnUnet) -> None:
    folder = peer.model("2d", nnunet.TRAINED_TRAINER)
    (folder / "fold_0").mkdir(parents=True)
    (folder / "fold_0" / "checkpoint_final.pth").touch()
    assert not peer.is_trained("2d")  # left by a probe
    budget.write_schedule(SCHEDULE, folder / "schedule.json")
    assert peer.is_trained("2d")
    lines = [{"epoch": 0, "seconds": 60.0}, {"epoch": 1, "seconds": 999.0}, {"epoch": 1, "seconds": 120.0}]
    (folder / "epochs.jsonl").write_text("\n".join(map(json.dumps, lines)) + '\n{"epoch": 2, "sec')
    training = peer.training("2d")
    assert (training["minutes"], training["epochs_done"], training["batch_size"]) == (3.0, 2, 12)
    assert contestants.words_of(training) == "3 minutes on 1 core(s), 60 x 70 batches of 12"


# ------------------------------------------------------------------------------------------------- environments


def test_an_environment_is_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = []

    def run(command: Any) -> None:
        done.append(command)
        if "venv" in command:
            (Path(command[-1]) / "bin").mkdir(parents=True)
            (Path(command[-1]) / "bin" / "python").touch()
            (Path(command[-1]) / "pyvenv.cfg").touch()
        elif "fails" in str(done[0]):
            raise SystemExit("no such version")

    for _ in range(2):
        environments.make("monai", tmp_path / "monai", run)
    assert len(done) == 2
    monkeypatch.setattr(platform, "python_version", lambda: "4.0")
    environments.make("monai", tmp_path / "monai", run)
    assert len(done) == 4
    for _ in range(2):
        environments.make("ours", tmp_path / "ours", run)
    assert len(done) == 7  # our code may have changed
    assert str(environments.CHECKOUT) in done[-1]
    done.clear()
    for _ in range(2):
        with pytest.raises(SystemExit, match="no such version"):
            environments.make("monai", tmp_path / "fails", run)
    assert len(done) == 4


def test_a_folder_that_is_no_environment_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(SystemExit, match="other files"):
        environments.make("monai", tmp_path, lambda _: None)
    assert (tmp_path / "thesis.tex").exists()


def test_versions_are_pinned() -> None:
    for name in environments.NAMES:
        lines = (environments.HERE / f"{name}.txt").read_text().splitlines()
        assert all("==" in line for line in lines if not line.startswith("#"))


# ------------------------------------------------------------------------------------------------- report


def row(one: float, many: float, *, scans: int = 10, **more: Any) -> dict[str, Any]:
    known = {"one_s": [one], "many_s": [many], "scans": scans, "engine_only": False, "slow": False}
    return {"title": "it", "weights": "w", **known, **more}


def test_start_up_and_a_scan_are_told_apart() -> None:
    found = report.figures(row(3.0, 12.0) | {"one_s": [3.0, 99.0, 2.0], "many_s": [12.0, 11.0, 98.0]})
    assert (found["seconds"], found["start_up_s"], found["s_a_scan_after"]) == (12.0, 2.0, 1.0)
    assert (found["s_a_scan"], found["scans_a_second"]) == (1.2, 10 / 12)
    assert report.figures(row(3.0, 3.0, scans=1))["start_up_s"] is None
    assert report.figures(row(3.0, 2.9, scans=2))["s_a_scan_after"] is None
    alone = report.figures(row(0.5, 5.0, engine_only=True))
    assert (alone["start_up_s"], alone["s_a_scan_after"]) == (0.5, 0.5)


def record_of(**rows: Any) -> dict[str, Any]:
    found = {"settings": SETTINGS, "machine": MACHINE, "environments": {"ours": {"numpy": "1.2"}}, "contestants": rows}
    report.add_figures(found)
    return found


def test_table_and_picture(tmp_path: Path) -> None:
    accuracy = {"dsc": {"mean": 0.79, "low": 0.77, "high": 0.81, "cases": 40}}
    found = record_of(
        ours=row(2.0, 11.0, title="ours", accuracy=accuracy),
        **{
            "nnunet-2d": row(12.0, 202.0, scans=4, title="nnU-Net", parameters=20_600_000, window=[128, 128]),
            "monai-2d": {"title": "MONAI", "failed": "Traceback\nImportError: no module", "one_s": [], "many_s": []},
            "plain-torch": {"one_s": [], "many_s": []},
        },
    )
    assert found["contestants"]["nnunet-2d"]["times_ours"] == pytest.approx(50.5 / 1.1)
    report.write(found, tmp_path / "race.json")
    text = (tmp_path / "race.md").read_text()
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert [line.split(" | ")[0] for line in rows] == ["| who", "| ours", "| nnU-Net"]
    assert all(line.count("|") == rows[0].count("|") for line in rows)
    assert "| 45.9 |" in rows[2]
    assert "0.790 (0.770 to 0.810), 40 scans" in rows[1]
    assert "- MONAI: ImportError: no module" in text
    assert (tmp_path / "race.png").read_bytes().startswith(b"\x89PNG")


def test_a_race_without_ours_has_no_ratios() -> None:
    found = record_of(other=row(2.0, 11.0))
    assert "times_ours" not in found["contestants"]["other"]
    assert "| it | 10 |" in report.table(found)


# ------------------------------------------------------------------------------------------------- the race


@pytest.fixture
def scans(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    monkeypatch.setattr(report, "draw", lambda _, picture: picture.touch())  # half a second each time
    for folder in ("imagesTs", "labelsTs"):
        (tmp_path / folder).mkdir()
    labels = np.zeros((6, 6, 6), np.uint8)
    labels[1:3, 1:3, 1:3], labels[4:6, 4:6, 4:6] = 1, 2
    for name in NAMES:
        nibabel.save(nibabel.Nifti1Image(labels, np.eye(4)), tmp_path / "labelsTs" / f"{name}.nii.gz")
        nibabel.save(nibabel.Nifti1Image(labels, np.eye(4)), tmp_path / "imagesTs" / f"{name}_0000.nii.gz")
    return sorted((tmp_path / "imagesTs").iterdir())


def contestant(script: str, **more: Any) -> Contestant:
    """A shell command that knows $in, $out and $n."""
    return Contestant(
        "it",
        "w",
        lambda job: ["env", f"in={job.folder}", f"out={job.out}", f"n={len(job.scans)}", "sh", "-c", script],
        lambda: {"parameters": 7},
        "ours",
        **more,
    )


COPIES = "cp $in/* $out"
"""The scans here are their own masks."""


def run(tmp_path: Path, scans: list[Path], everyone: dict[str, Contestant], **rules: Any) -> dict[str, Any]:
    record = Record(tmp_path / "race.json", SETTINGS)
    record.found["machine"] = MACHINE
    known = {"slow_scans": 2, "repeats": 1, "slow_repeats": 1, "most_minutes": 1.0}
    race.go(Race(everyone, scans, tmp_path / "labelsTs", tmp_path / "work", Rules(**{**known, **rules})), record)
    return json.loads((tmp_path / "race.json").read_text())["contestants"]


@LINUX
def test_who_fails_is_named_and_the_others_go_on(tmp_path: Path, scans: list[Path]) -> None:
    everyone = {
        "ours": contestant(COPIES, trained=True),
        "bare-broken": contestant("echo no such engine; exit 3"),
        "monai-silent": contestant("exit 1"),
        "monai-lazy": contestant("cp $in/a* $out"),
        "nnunet-2d": contestant(COPIES, slow=True, trained=True),
        "plain-engine": contestant('echo noise; echo \'{"load_s": 0.5, "engine_s": 6.0}\'', engine_only=True),
    }
    everyone["plain-unmade"] = replace(everyone["ours"], about=lambda: {"parameters": 1 / 0})
    found = run(tmp_path, scans, everyone)
    assert found["bare-broken"]["failed"] == "no such engine"
    assert found["monai-silent"]["failed"]
    assert "no mask for 1 of 2 scans, b" in found["monai-lazy"]["failed"]
    assert "division by zero" in found["plain-unmade"]["failed"]
    assert [found[name]["scans"] for name in ("ours", "nnunet-2d", "plain-engine")] == [3, 2, 3]
    assert found["plain-engine"]["s_a_scan"] == 2.0
    assert found["ours"]["parameters"] == 7
    assert found["ours"]["times_ours"] == 1.0
    for name in ("ours", "nnunet-2d"):  # the slow one is scored on all scans, too
        assert found[name]["accuracy"]["dsc"]["mean"] == 1.0
        assert found[name]["accuracy"]["dsc_by_case"] == dict.fromkeys(NAMES, 1.0)
    assert "accuracy" not in found["plain-engine"]


@LINUX
def test_a_race_that_was_cut_goes_on_where_it_was(tmp_path: Path, scans: list[Path]) -> None:
    counted = tmp_path / "counted"
    counts = f"echo $n >> {counted}; {COPIES}"
    everyone = {"ours": contestant(counts, trained=True), "monai-2d": contestant("exit 1")}
    run(tmp_path, scans, everyone, accuracy=False)
    assert counted.read_text().split() == ["2", "1", "3"]
    run(tmp_path, scans, everyone, accuracy=False)
    assert len(counted.read_text().split()) == 3
    everyone["monai-2d"] = contestant(COPIES, slow=True)
    found = run(tmp_path, scans, everyone, repeats=2)
    assert counted.read_text().split() == ["2", "1", "3", "1", "3"]  # the last masks are scored as they are
    assert [len(found[name]["many_s"]) for name in everyone] == [2, 1]
    assert found["ours"]["accuracy"]["dsc"]["cases"] == 3
    assert "failed" not in found["monai-2d"]
    with pytest.raises(SystemExit, match="other cores"):
        Record(tmp_path / "race.json", {**SETTINGS, "cores": 64})


@LINUX
def test_new_weights_begin_anew(tmp_path: Path, scans: list[Path]) -> None:
    untrained = contestant(COPIES)
    assert "accuracy" not in run(tmp_path, scans, {"nnunet-2d": untrained})["nnunet-2d"]
    trained = replace(untrained, weights="trained", trained=True)
    found = run(tmp_path, scans, {"nnunet-2d": trained})["nnunet-2d"]
    assert (found["weights"], len(found["many_s"]), found["accuracy"]["dsc"]["mean"]) == ("trained", 1, 1.0)


@LINUX
def test_who_takes_too_long_has_failed(tmp_path: Path, scans: list[Path]) -> None:
    found = run(tmp_path, scans, {"ours": contestant("sleep 30")}, most_minutes=1 / 60)
    assert "took longer than" in found["ours"]["failed"]


@LINUX
def test_nobody_goes_on_running_after_a_race_was_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    with subprocess.Popen(["sh", "-c", "sleep 60 & echo $!; wait"], stdout=subprocess.PIPE, text=True) as child:
        grandchild = int(child.stdout.readline())
        monkeypatch.setattr(race, "family", lambda own: [own, *family(child.pid)])
        with pytest.raises(KeyboardInterrupt):
            race.end_children()
        assert child.wait(timeout=5) == -signal.SIGKILL
    end = time.monotonic() + 5
    while runs(grandchild):
        assert time.monotonic() < end


def runs(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().split()[2] not in "ZX"
    except OSError:
        return False


def test_contestants_are_asked_for_by_their_beginning() -> None:
    everyone = ["ours", "ours-onnxruntime", "monai-2d", "monai-2d-onnxruntime", "monai-3d", "nnunet-2d"]
    assert contestants.chosen(everyone, []) == everyone
    assert contestants.chosen(everyone, ["monai-2d"]) == ["ours", "monai-2d"], "a whole name is only that one"
    assert contestants.chosen(everyone, ["monai"]) == ["ours", "monai-2d", "monai-2d-onnxruntime", "monai-3d"]
    assert contestants.chosen(everyone, ["nnunet"]) == ["ours", "nnunet-2d"]
    with pytest.raises(SystemExit, match="totalsegmentator"):
        contestants.chosen(everyone, ["totalsegmentator"])
