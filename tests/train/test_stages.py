"""Stages of a run: one starts from the other, finished ones are used again, other settings are refused."""

import json
import re
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from parotid_seg.errors import InputError
from parotid_seg.train.checkpoint import load_checkpoint
from parotid_seg.train.config import TrainConfig
from parotid_seg.train.settings import duration, load_config
from parotid_seg.train.stages import train
from tests.command_line import Run
from tests.train.pictures import none_drawn
from tests.train.processes.torchrun import after, training

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("without_pictures")]


@pytest.fixture(scope="module")
def first_stage(command: Run, balls: Path, short_config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose time was over after the first of its two stages."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    options = ("--config", short_config, "--device", "cpu", "--stages", "organs,segment", "--labelled", 2)
    with none_drawn():
        done = command("train", balls, "--out", folder, *options, "--max-minutes", 0.001)
    assert done.returncode == 0, done.stderr
    assert "stage organs: 0 of 1 epochs done" in done.stdout
    assert not (folder / "last.pt").exists(), "the time was over after the first stage"
    return folder


@pytest.fixture
def run(first_stage: Path, tmp_path: Path) -> Path:
    return shutil.copytree(first_stage, tmp_path / "run")


@pytest.fixture
def config(short_config: Path) -> TrainConfig:
    return load_config("compact", short_config, stages=["organs", "segment"])


def test_the_second_stage_starts_from_the_first(balls: Path, config: TrainConfig, run: Path) -> None:
    organs = load_checkpoint(run / "organs" / "last.pt")
    assert organs.labels == ("background", "Mandible")
    record = json.loads((run / "organs" / "metrics.jsonl").read_text())
    assert record["loss_encoder"] > 0, "the encoder's stages are asked for the organs as well"
    assert all(
        (name.startswith("unet.") and "unet.classify" in name) or "classify" not in name for name in organs.weights
    )
    assert organs.training["train_patients"] == 4
    said: list[str] = []
    assert not train(config, balls, run, labelled=2, device="cpu", max_minutes=0.0001, report=said.append)
    assert "stage organs: 1 of 1 epochs done" in said
    account = json.loads((run / "transfer.json").read_text())
    assert account["source"] == str(run / "organs" / "best.pt")
    assert account["random"] == ["classify.weight", "classify.bias"]
    segment = load_checkpoint(run / "last.pt")
    assert segment.labels == ("background", "parotid_left", "parotid_right")
    assert segment.training["train_patients"] == 2
    assert segment.training["epochs"] == 1
    with pytest.raises(InputError, match="holds a run already"):
        train(config, balls, run, labelled=2, device="cpu")
    before = (run / "organs" / "last.pt").stat().st_mtime_ns
    assert not train(config, balls, run, labelled=2, device="cpu", resume=True, max_minutes=0.0001)
    assert load_checkpoint(run / "last.pt").training["epochs"] == 2
    assert (run / "organs" / "last.pt").stat().st_mtime_ns == before
    with pytest.raises(InputError, match=r"run/last.pt .* settings: train patients \(it has 2, now 3\)"):
        train(config, balls, run, labelled=3, device="cpu", resume=True)


def test_a_stage_of_other_settings_is_not_used(balls: Path, short_config: Path, run: Path) -> None:
    other = load_config("compact", short_config, stages=["organs", "segment"], seed=9)
    words = (
        r"organs/last.pt was made with other settings: seed \(it has 0, now 9\); "
        r"give the same again \(settings are in \S+organs/config.toml\), or, for more epochs or other settings, "
        r"start a new run from it \(--init \S+organs/last.pt with another --out\)$"
    )
    with pytest.raises(InputError, match=words):
        train(other, balls, run, labelled=2, device="cpu", resume=True)


def test_weights_really_come_over(balls: Path, config: TrainConfig, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from parotid_seg.train.supervised import SegmentTrainer

    class SegmentBeginsError(Exception):
        pass

    started: dict[str, Any] = {}
    real = SegmentTrainer.start

    def start(self: Any, source: Any) -> None:
        real(self, source)
        if self.run == run:
            started.update((name, value.clone()) for name, value in self.net.state_dict().items())
            raise SegmentBeginsError

    monkeypatch.setattr(SegmentTrainer, "start", start)
    with pytest.raises(SegmentBeginsError):
        train(config, balls, run, labelled=2, device="cpu", resume=True)
    learnt = load_checkpoint(run / "organs" / "best.pt").weights
    assert started
    for name, value in started.items():
        if value.is_floating_point() and "classify" not in name:
            torch.testing.assert_close(value, learnt[name])


@pytest.mark.parametrize(
    ("stages", "words"), [(["segment", "organs"], "in this order"), (["dance"], "dance"), ([], "one or more")]
)
def test_wrong_stages(stages: list[str], words: str) -> None:
    with pytest.raises(InputError, match=words):
        load_config("compact", stages=stages)


def test_ctrl_c_is_one_line_and_the_run_resumes(balls: Path, short_config: Path, command: Run, tmp_path: Path) -> None:
    config = tmp_path / "long.toml"
    config.write_text(short_config.read_text().replace("epochs = 4", "epochs = 400"))
    arguments: list[Path | str] = [balls, "--out", tmp_path / "r", "--config", config]
    process = training(1, *arguments)
    after(process, "epoch 1 ")
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate()
    assert process.returncode == 130
    last, best = (tmp_path / "r" / name for name in ("last.pt", "best.pt"))
    assert stderr == f"parotid-seg: interrupted; {last} is whole, and --resume goes on with it; best so far: {best}\n"
    held = load_checkpoint(tmp_path / "r" / "last.pt").progress["epochs_done"]
    done = command("train", *arguments, "--device", "cpu", "--resume", "--max-minutes", 0.001)
    assert f"stage segment: {held} of 400 epochs done" in done.stdout


def test_a_run_says_who_is_held_out_and_how_far_it_is(balls: Path, short_config: Path, tmp_path: Path) -> None:
    said: list[str] = []
    shown: list[Any] = []
    run = tmp_path / "run"
    config = load_config("compact", short_config, stages=["segment"])
    done = train(
        config,
        balls,
        run,
        device="cpu",
        max_minutes=0.0001,
        report=said.append,
        progress=lambda *each: shown.append(each),
    )
    assert not done
    validated = sorted(json.loads((balls / "splits.json").read_text())["validation"])
    assert any(line.endswith(f"validates on {len(validated)}: {', '.join(validated)}") for line in said)
    length = f"{config.segment.epochs} epochs of {config.segment.images_per_epoch} slices (8 steps of 8 slices in all)"
    assert any(line.startswith(f"stage segment: {length}; trains on 4 patients, ") for line in said)
    steps = config.segment.images_per_epoch // config.segment.batch_size
    (estimate,) = (line for line in said if " steps, " in line)  # an early one; the next is due after a minute
    assert re.fullmatch(
        rf"stage segment, epoch 1 of \d+: 1 of {steps} steps, [\d.]+ s each; left: \d+ s of the epoch, .+ of the stage",
        estimate,
    )
    assert (f"stage segment, epoch 1 of {config.segment.epochs}", steps, steps) in shown
    assert (run / "best.pt").exists(), "though no validation was due"
    assert load_checkpoint(run / "last.pt").progress["best_dsc"] >= 0


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(5, "5 s"), (119, "119 s"), (150, "2.5 min"), (3600, "60 min"), (9000, "2.5 h"), (864000, "10 days")],
)
def test_durations(seconds: int, text: str) -> None:
    assert duration(seconds) == text
