"""A training from a model that is there: what is said before it, what is left of it, and who it must not see."""

import dataclasses
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch

from parotid_seg.errors import InputError, OptionError
from parotid_seg.scan.seen import HASH_DIGITS
from parotid_seg.train import loop, time_limit
from parotid_seg.train.checkpoint import Checkpoint, build_network, is_initial, load_checkpoint, save_checkpoint
from parotid_seg.train.config import TrainConfig
from parotid_seg.train.data.data_set import open_data_set
from parotid_seg.train.data.patients import load_patients
from parotid_seg.train.settings import load_config
from parotid_seg.train.stages import train

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("without_pictures")]

LABELS = ("background", "parotid_left", "parotid_right")


@pytest.fixture
def config(short_config: Path) -> TrainConfig:
    return load_config("compact", short_config, stages=["segment"])


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def start(config: TrainConfig, tmp_path: Path) -> Callable[..., str]:
    """Makes a whole model to start from, with this record of its training."""

    def make(**training: Any) -> str:
        path = tmp_path / "start.pt"
        torch.manual_seed(1)
        save_checkpoint(
            Checkpoint(config, LABELS, ("CT",), training, build_network(config, 1, 3).state_dict(), {}), path
        )
        return str(path)

    return make


def rewrite(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def hash_of(data: Path, case: str, cache: Path) -> str:
    return load_patients(open_data_set(data), [case], cache, (-200.0, 300.0))[0].sha256[:HASH_DIGITS]


class KilledError(Exception):
    pass


def test_a_run_that_is_killed_in_its_first_epoch_leaves_the_model_it_began_with(
    data: Path, config: TrainConfig, start: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, run = start(), tmp_path / "run"
    settings = {"init": source}

    def killed(*_: object) -> None:
        raise KilledError

    with monkeypatch.context() as patch:
        patch.setattr(loop.Trainer, "_train_step", killed)
        for _ in range(2):  # the second begins anew
            with pytest.raises(KilledError):
                train(_with(config, settings), data, run, device="cpu")
    best = load_checkpoint(run / "best.pt")
    for name, value in load_checkpoint(Path(source)).weights.items():
        torch.testing.assert_close(best.weights[name], value)
    assert best.training["epochs"] == 0
    (record,) = (json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines())
    assert (record["epoch"], record["validation_dsc"]) == (0, best.training["validation_dsc"])
    assert train(_with(config, settings), data, run, device="cpu")
    epochs = [json.loads(line)["epoch"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert epochs == [0, 1, 2, 3, 4]


def _with(config: TrainConfig, changes: dict[str, Any]) -> TrainConfig:
    return dataclasses.replace(config, **changes)


def test_an_epoch_is_cut_when_the_time_is_over(
    balls: Path, config: TrainConfig, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    run = tmp_path / "run"
    options: dict[str, Any] = {"device": "cpu", "cache": cache, "report": said.append}
    real = loop.Trainer._train_step

    def last_step(self: Any, *arguments: Any) -> dict[str, float]:
        """The time is over after this step."""
        monkeypatch.setattr(time_limit, "UNCUT_S", 0.0)
        monkeypatch.setattr(time_limit.TimeLimit, "over", lambda *_: True)
        return real(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(loop.Trainer, "_train_step", last_step)
        assert not train(config, balls, run, max_minutes=60.0, **options)
    monkeypatch.undo()
    best_file = run / "best.pt"
    assert said[-1] == (
        f"stopped after 0 of 4 epochs; {best_file} is there: the weights so far; no epoch is finished, so --resume has "
        f"nothing to continue: start again with more minutes, or train on with --init {best_file}; either with another "
        "--out"
    )
    best = load_checkpoint(run / "best.pt")
    assert (best.training["epochs"], best.training["images"]) == (0, config.segment.batch_size)
    assert not (run / "last.pt").exists()
    best.network()
    with pytest.raises(InputError, match=r"holds a run already: best.pt \(the weights so far\), but no last.pt"):
        train(config, balls, run, **options)

    run = tmp_path / "whole"
    assert not train(config, balls, run, max_minutes=1e-6, **options)
    assert said[-2].startswith("stopped after 1 of 4 epochs; best.pt is of epoch 1; --resume continues")
    assert said[-1] == f"{run / 'best.pt'} is of epoch 1; next: parotid-seg export {run / 'best.pt'} --out MODEL.onnx"
    whole = (run / "last.pt").read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(loop.Trainer, "_train_step", last_step)
        assert not train(config, balls, run, resume=True, max_minutes=60.0, **options)
    assert said[-2] == "stopped after 1 of 4 epochs; best.pt is of epoch 1; --resume continues"
    assert (run / "last.pt").read_bytes() == whole, "a part of an epoch cannot be resumed"


def test_a_long_stage_says_how_long_it_takes_and_is_not_changed_by_that(
    balls: Path, config: TrainConfig, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    weights = []
    monkeypatch.setattr(loop, "FIRST_ESTIMATE_S", 1e9)  # on a busy machine a line would come between
    for fewest in (loop.FEWEST_TO_ESTIMATE, 1):
        monkeypatch.setattr(loop, "FEWEST_TO_ESTIMATE", fewest)
        run = tmp_path / str(fewest)
        train(config, balls, run, device="cpu", cache=cache, max_minutes=1e-6, report=said.append)
        weights.append(load_checkpoint(run / "last.pt").weights)
    (estimate,) = (line for line in said if line.startswith("estimate: "))
    steps = 4 * config.segment.steps_per_epoch
    words = rf"estimate: .+, for {steps} steps of [\d.]+ s and the validations; --max-minutes ends it within 0 s"
    assert re.fullmatch(words, estimate)
    assert said[said.index(estimate) + 1].startswith("epoch 1 ")
    for name, value in weights[0].items():
        torch.testing.assert_close(weights[1][name], value, rtol=0, atol=0)


def test_a_share_of_the_initial_weights_is_kept(
    data: Path, config: TrainConfig, start: Callable[..., str], cache: Path, tmp_path: Path
) -> None:
    """The training is the same, and so is a resumed one; the weights that are saved lie between it and the start."""
    source = start()
    options: dict[str, Any] = {"device": "cpu", "cache": cache}

    def with_share(initial_share: float) -> TrainConfig:
        segment = dataclasses.replace(config.segment, epochs=2, initial_share=initial_share)
        return dataclasses.replace(config, init=source, segment=segment)

    assert train(with_share(0.0), data, tmp_path / "none", **options)
    kept = with_share(0.25)
    assert not train(kept, data, tmp_path / "kept", max_minutes=1e-6, **options)
    assert load_checkpoint(tmp_path / "kept" / "last.pt").training["epochs"] == 1
    assert train(kept, data, tmp_path / "kept", resume=True, **options)
    initial, last, mean = (
        load_checkpoint(path).weights
        for path in (Path(source), tmp_path / "none" / "best.pt", tmp_path / "kept" / "best.pt")
    )
    for name, value in mean.items():
        torch.testing.assert_close(value, last[name].lerp(initial[name], 0.25) if value.is_floating_point() else value)
    said: list[str] = []
    train(
        dataclasses.replace(kept, transfer=("encoder",)),
        data, tmp_path / "random", max_minutes=1e-6, report=said.append, **options,
    )  # fmt: skip
    (line,) = (line for line in said if line.startswith("initial_share"))
    assert re.fullmatch(r"initial_share 0\.25 is not used: \d+ initial weights are random", line)
    assert "initial" not in load_checkpoint(tmp_path / "random" / "last.pt").progress


def test_where_nothing_is_better_the_start_is_the_best(
    balls: Path,
    config: TrainConfig,
    cache: Path,
    start: Callable[..., str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from parotid_seg.train.supervised import SegmentTrainer

    monkeypatch.setattr(SegmentTrainer, "_judge", lambda *_: (np.zeros((24, 50, 50), np.uint8), [0.5, 0.5]))
    said: list[str] = []
    options: dict[str, Any] = {"device": "cpu", "cache": cache, "report": said.append}
    config = _with(config, {"init": start()})
    train(config, balls, tmp_path / "few", **options)
    assert "best.pt is the last epoch: 2 validation patients are too few to choose one by" in said
    assert load_checkpoint(tmp_path / "few" / "best.pt").training["epochs"] == 4
    monkeypatch.setattr("parotid_seg.train.supervised.FEWEST_TO_CHOOSE", 2)
    train(config, balls, tmp_path / "run", **options)
    assert any(line.startswith("no epoch was better on the validation patients than the start") for line in said)
    assert load_checkpoint(tmp_path / "run" / "best.pt").training["epochs"] == 0


def test_a_start_of_another_window_is_not_kept_as_the_unchanged_model(
    balls: Path, config: TrainConfig, cache: Path, start: Callable[..., str], tmp_path: Path
) -> None:
    said: list[str] = []
    changed = _with(config, {"init": start(), "window_hu": (-160.0, 240.0)})
    train(changed, balls, tmp_path / "run", device="cpu", cache=cache, max_minutes=1e-6, report=said.append)
    assert f"note: {changed.init} has another grid or window, so this is not its model unchanged" in said
    assert not any(line.startswith("best.pt is the model of --init, unchanged") for line in said)
    assert not any(line.startswith("epoch 0 ") for line in said)


def test_test_patients_are_named_and_in_no_stage(data: Path, config: TrainConfig, cache: Path, tmp_path: Path) -> None:
    rewrite(data / "splits.json", train=["p0", "p1", "p2"], test=["p3", "p9"])
    (data / "imagesUn").mkdir(exist_ok=True)
    shutil.copy(data / "imagesTr" / "p3_0000.nii.gz", data / "imagesUn")
    assert "p3" not in open_data_set(data, "contrast").train
    said: list[str] = []
    train(config, data, tmp_path / "run", device="cpu", cache=cache, max_minutes=1e-6, report=said.append)
    assert "locked for a test, never used here: 2: p3, p9" in said
    assert "note: test patient p9: no scan in imagesTr or imagesTs, so not compared with others" in said
    training = load_checkpoint(tmp_path / "run" / "best.pt").training
    assert training["scans"] == sorted(hash_of(data, case, cache) for case in ("p0", "p1", "p2"))
    assert training["scans_complete"] is True


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("list_name", ["train", "validation"])
def test_a_test_patient_s_scan_under_another_name(
    data: Path, config: TrainConfig, cache: Path, tmp_path: Path, list_name: str, named: bool
) -> None:
    """In the list "test" of splits.json, or in the folder of test patients only."""
    (data / "imagesTs").mkdir()
    other = json.loads((data / "splits.json").read_text())[list_name][0]
    image = nibabel.load(data / "imagesTr" / f"{other}_0000.nii.gz")
    turned = nibabel.Nifti1Image(np.asarray(image.dataobj)[::-1], image.affine @ np.diag([-1.0, 1, 1, 1]))
    nibabel.save(turned, data / "imagesTs" / "q_0000.nii.gz")
    if named:
        rewrite(data / "splits.json", test=["q"])
    what = {"train": "training"}.get(list_name, list_name)
    with pytest.raises(InputError, match=f"scans of the same voxels in test and {what}: q and {other}"):
        train(config, data, tmp_path / "run", device="cpu", cache=cache)
    assert not [*(tmp_path / "run").glob("*.pt")]


def test_a_start_that_was_trained_on_test_patients_is_refused(
    data: Path, config: TrainConfig, cache: Path, start: Callable[..., str], tmp_path: Path
) -> None:
    rewrite(data / "splits.json", train=["p0", "p1", "p2"], test=["p3"])
    locked, validated = hash_of(data, "p3", cache), hash_of(data, "p4", cache)
    source = start(scans=[locked], scans_complete=True)
    run = tmp_path / "run"
    options: dict[str, Any] = {"device": "cpu", "cache": cache}
    with pytest.raises(InputError, match="was trained on the test patients p3") as error:
        train(_with(config, {"init": source}), data, run, **options)
    assert f"--init {source}" in str(error.value)

    said: list[str] = []
    source = start(scans=["another", validated], scans_complete=True)
    train(_with(config, {"init": source}), data, run, max_minutes=1e-6, report=said.append, **options)
    assert f"note: --init {source}: was trained on p4, so their validation_dsc is too high" in said
    training = load_checkpoint(run / "best.pt").training
    assert {"another", hash_of(data, "p0", cache)} < set(training["scans"])
    assert training["validation_patients_seen"] == 1
    rewrite(data / "splits.json", train=["p0", "p1", "p3"], test=["p2"])
    with pytest.raises(InputError, match=r"last.pt: was trained on the test patients p2"):
        train(_with(config, {"init": source}), data, run, resume=True, **options)

    said.clear()
    rewrite(data / "splits.json", train=["p0", "p1", "p2"], test=["p3"])
    train(_with(config, {"init": start()}), data, tmp_path / "b", max_minutes=1e-6, report=said.append, **options)
    assert any("does not record which scans it was trained on" in line for line in said)
    assert load_checkpoint(tmp_path / "b" / "best.pt").training["scans_complete"] is False


@pytest.mark.parametrize("while_", ["reading scans", "validating the initial model"])
def test_the_minutes_count_from_the_start_of_the_command(
    balls: Path,
    config: TrainConfig,
    cache: Path,
    start: Callable[..., str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    while_: str,
) -> None:
    """The preparation is reported and cut as well; the initial model is then `best.pt`, and can be replaced."""
    said: list[str] = []
    run = tmp_path / "run"
    real = loop.Trainer.preparing

    def late(self: Any, phase: str, *rest: Any) -> None:
        if phase == while_:
            monkeypatch.setattr(self.pace, "_last", -1e9)
            object.__setattr__(self.limit, "started", self.limit.started - 100)
        real(self, phase, *rest)

    options: dict[str, Any] = {"device": "cpu", "cache": cache, "report": said.append, "max_minutes": 1.0}
    with monkeypatch.context() as patch:
        patch.setattr(loop.Trainer, "preparing", late)
        assert not train(_with(config, {"init": start()}), balls, run, **options)
    assert any(re.fullmatch(rf"{while_}: 0 of \d+ done", line) for line in said)
    assert f"the time was over before its first step, while {while_}; " in said[-1]
    assert said[-1].startswith("stopped after 0 of 4 epochs of the stage segment: ")
    if while_ == "reading scans":
        assert "there is no best.pt" in said[-1]
        assert not (run / "best.pt").exists()
        return
    assert f"{run / 'best.pt'} is there: the model of --init, unchanged; no epoch is finished" in said[-1]
    initial = load_checkpoint(run / "best.pt").training
    assert is_initial(initial)
    assert initial["scans"] == [], "it was trained on none of these patients"
    with pytest.raises(InputError, match=r"no epoch was finished in .*: best.pt is the model of --init, unchanged"):
        train(_with(config, {"init": start()}), balls, run, resume=True, **options)


def test_a_resumed_run_has_its_old_contours(data: Path, config: TrainConfig, cache: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    options: dict[str, Any] = {"device": "cpu", "cache": cache}
    assert not train(config, data, run, max_minutes=1e-6, **options)
    path = data / "labelsTr" / "p1.nii.gz"
    image = nibabel.load(path)
    corrected = np.asarray(image.dataobj).copy()
    nibabel.save(nibabel.Nifti1Image(corrected, image.affine), path)
    assert not train(config, data, run, resume=True, max_minutes=1e-6, **options), "the same voxels in a new file"
    corrected[:, :, 12] = 0
    nibabel.save(nibabel.Nifti1Image(corrected, image.affine), path)
    words = r"--resume: the label maps of p1 changed after .*last.pt was written; .* start it with another --out$"
    with pytest.raises(InputError, match=words):
        train(config, data, run, resume=True, **options)
    checkpoint = load_checkpoint(run / "last.pt")
    assert "p1" not in repr(checkpoint.progress["patients"]), "names stay out of checkpoints"
    finished = {**checkpoint.progress, "epochs_done": 4}
    save_checkpoint(dataclasses.replace(checkpoint, progress=finished), run / "last.pt")
    with pytest.raises(InputError, match=words):
        train(config, data, run, resume=True, **options)


def test_a_worse_end_is_said_after_the_last_epoch(
    balls: Path,
    config: TrainConfig,
    cache: Path,
    start: Callable[..., str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from parotid_seg.train.supervised import SegmentTrainer

    def judged(self: SegmentTrainer, *_: object) -> tuple[Any, list[float]]:
        return np.zeros((24, 50, 50), np.uint8), [0.5 if self.step else 0.7] * 2

    monkeypatch.setattr(SegmentTrainer, "_judge", judged)
    said: list[str] = []
    run = tmp_path / "run"
    one_epoch = {"init": start(), "segment": dataclasses.replace(config.segment, epochs=1)}
    train(_with(config, one_epoch), balls, run, device="cpu", cache=cache, report=said.append)
    assert said[-4].startswith("epoch 1 ")
    assert said[-3].startswith("best.pt is the last epoch")
    assert said[-2] == "the last validation_dsc, 0.5000, is below that of the start, 0.7000"
    assert said[-1].endswith(f"next: parotid-seg export {run / 'best.pt'} --out MODEL.onnx")


def test_a_misspelt_start_is_refused_before_scans_are_read(balls: Path, config: TrainConfig, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"'packagd', expected scratch, packaged, .*; did you mean packaged\?"):
        train(_with(config, {"init": "packagd"}), balls, tmp_path / "run", device="cpu")
    assert not (tmp_path / "run").exists()
