"""Several processes on the CPU, as torchrun starts them: the curves of one, whatever happens on the way."""

import json
import os
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from parotid_seg.train.checkpoint import load_checkpoint
from parotid_seg.train.settings import load_config, merge, to_toml
from tests.processes.forked import Forked
from tests.processes.ports import free_port
from tests.train.processes import double
from tests.train.processes.torchrun import after, ended, started, training, workers

pytestmark = pytest.mark.slow

STAGES = ("contrast", "dense", "segment")
ALL = "--stages", ",".join(STAGES)
DOUBLE = double.command
UNEVEN = ("train_seconds", "validation_seconds")
AN_EPOCH = "--max-minutes", 1e-6


EPOCHS = {"contrast": 3, "dense": 1, "segment": 3}
STILL = {"epochs": 1, "images_per_epoch": 8, "batch_size": 4}
"""Two steps an epoch. There is no stochastic depth either, which each process draws for itself."""
CONTRAST = STILL | {"hidden": 32, "features": 16, "points": 8, "drop_path": 0.0, "queue": 4}


def settings(balls: Path, small_config: Path, path: Path, epochs: dict[str, int]) -> tuple[Path | str, ...]:
    """Arguments of a training with these epochs, which is validated after the last one."""
    more = {
        "network": {"drop_path": 0.0},
        "contrast": CONTRAST | {"epochs": epochs["contrast"]},
        "dense": CONTRAST | {"epochs": epochs["dense"], "dense_negatives": "batch"},
        "segment": STILL | {"epochs": epochs["segment"], "validate_every": epochs["segment"]},
    }
    path.write_text(to_toml(merge(load_config("compact", small_config), more, where="test")))
    return balls, "--config", path, "--out"


@pytest.fixture(scope="module")
def options(balls: Path, small_config: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path | str, ...]:
    return settings(balls, small_config, tmp_path_factory.mktemp("config") / "still.toml", EPOCHS)


@pytest.fixture(scope="module")
def exact(options: tuple[Path | str, ...], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of one process in double precision."""
    run = tmp_path_factory.mktemp("exact") / "run"
    assert ended(training(1, *options, run, *ALL, program=DOUBLE)) == (0, [])
    return run


def begun(run: Path, exact: Path) -> Path:
    """A run whose earlier stages are done."""
    for stage in STAGES[:-1]:
        shutil.copytree(exact / stage, run / stage)
    return run


def curve(folder: Path) -> list[dict[str, Any]]:
    """A stage's records without times."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    records = [{name: value for name, value in json.loads(line).items() if name not in UNEVEN} for line in lines]
    assert [record["epoch"] for record in records] == [*range(1, len(records) + 1)]
    return records


def curves(run: Path) -> dict[str, list[dict[str, Any]]]:
    """Of all stages."""
    return {stage: curve(run if stage == STAGES[-1] else run / stage) for stage in STAGES}


def farthest(one: dict[str, list[dict[str, Any]]], two: dict[str, list[dict[str, Any]]]) -> dict[str, float]:
    """Largest relative distance of the loss in any epoch, by stage."""
    return {
        stage: max(abs(a["loss"] / b["loss"] - 1) for a, b in zip(one[stage], two[stage], strict=True))
        for stage in STAGES
    }


def assert_equal(found: Any, expected: Any) -> None:
    for record, wanted in zip(found, expected, strict=True):
        assert record == pytest.approx(wanted, rel=1e-8, abs=1e-8)


def test_two_processes_learn_exactly_what_one_does(
    options: tuple[Path | str, ...], exact: Path, tmp_path: Path
) -> None:
    process = training(2, *options, tmp_path / "run", *ALL, program=DOUBLE)
    stdout, stderr = process.communicate(timeout=300)
    assert process.returncode == 0, stderr
    told = [line.split("  ")[0] for line in stdout.splitlines() if line.startswith("epoch ")]
    assert told == [f"epoch {number + 1}" for stage in STAGES for number in range(EPOCHS[stage])], "one process reports"
    found, expected = curves(tmp_path / "run"), curves(exact)
    sys.stdout.write(f"double precision, largest relative distance of the loss: {farthest(found, expected)}\n")
    for stage in STAGES:
        assert_equal(found[stage], expected[stage])


def test_and_nearly_so_in_the_precision_of_training_also_as_the_command_torchrun_starts_it(
    balls: Path, small_config: Path, tmp_path: Path
) -> None:
    """bfloat16 rounds what is summed in another order; one process with one thread or two differs as much.

    Of processes that torchrun starts, which import for long and draw pictures, one stage is enough.
    """
    words = settings(balls, small_config, tmp_path / "one_epoch.toml", dict.fromkeys(STAGES, 1))
    for processes in (1, 2):
        assert ended(training(processes, *words, tmp_path / str(processes), *ALL)) == (0, [])
    distance = farthest(curves(tmp_path / "1"), curves(tmp_path / "2"))
    sys.stdout.write(f"bfloat16 autocast, largest relative distance of the loss: {distance}\n")
    assert distance["contrast"] < 0.15
    assert distance["dense"] < 0.05
    assert distance["segment"] < 0.03
    assert ended(started(2, *words, tmp_path / "started", "--stages", "contrast")) == (0, [])
    (forked,), (record,) = curve(tmp_path / "2" / "contrast"), curve(tmp_path / "started")
    assert record["loss"] == pytest.approx(forked["loss"], rel=1e-3)


def test_a_killed_process_ends_the_run_which_goes_on_with_one_and_with_two(
    options: tuple[Path | str, ...], exact: Path, tmp_path: Path
) -> None:
    run, stages = tmp_path / "run", ("--stages", "contrast")
    assert_killed(training(2, *options, run, *stages, program=DOUBLE), run, lost=1)
    for processes, more in ((1, AN_EPOCH), (2, ())):
        resumed = training(processes, *options, run, *stages, "--resume", *more, program=DOUBLE)
        assert ended(resumed) == (0, [])
    assert_equal(curve(run), curve(exact / "contrast"))


def test_nor_is_the_first_process_needed(options: tuple[Path | str, ...], exact: Path, tmp_path: Path) -> None:
    run = begun(tmp_path / "run", exact)
    assert_killed(training(2, *options, run, *ALL, program=DOUBLE), run, lost=0)
    with (run / "metrics.jsonl").open("a") as file:  # as if killed later, between a record and its checkpoint
        file.write('{"epoch": 3, "loss": 9}\n{"epo')
    (run / ".partial-0123456789abcdef-last.pt").write_text("half of it")
    assert ended(training(1, *options, run, *ALL, "--resume", program=DOUBLE)) == (0, [])
    assert_equal(curve(run), curve(exact))
    assert not [*run.rglob(".partial-*")]


def assert_killed(process: Forked, run: Path, lost: int) -> None:
    """Kill one of two processes in the second epoch: the run must end soon, with a line that helps."""
    after(process, "epoch 1 ")
    began = time.monotonic()
    os.kill(workers(process)[lost], signal.SIGKILL)
    status, lines = ended(process)
    assert time.monotonic() - began < 60
    assert status == 1
    assert len(lines) == 1
    assert "training stopped" in lines[0]
    assert "a process was lost" in lines[0]
    assert f"noticed by process {1 - lost} of 2" in lines[0]
    assert f"{run / 'last.pt'} is whole, and --resume goes on with it" in lines[0]
    assert load_checkpoint(run / "last.pt").progress["epochs_done"] >= 1


def test_two_machines_that_share_no_folder(options: tuple[Path | str, ...], exact: Path, tmp_path: Path) -> None:
    """The first one has the stages before and the checkpoints; the other gets from there what it needs."""
    runs = begun(tmp_path / "first", exact), tmp_path / "second"
    for more in (AN_EPOCH, ("--resume",)):
        port = free_port()
        machines = [
            training(
                1, *options, run, *ALL, *more, program=DOUBLE,
                launch=("--nnodes", 2, "--node-rank", rank, "--master-addr", "127.0.0.1", "--master-port", port),
            )
            for rank, run in enumerate(runs)
        ]  # fmt: skip
        assert [ended(machine) for machine in machines] == [(0, []), (0, [])]
    assert_equal(curve(runs[0]), curve(exact))
    assert [path.name for path in runs[1].iterdir()] == ["cache"]
