"""What ends one process ends all, and is told once."""

import os
import signal
from pathlib import Path

import pytest

from parotid_seg.train.checkpoint import load_checkpoint
from tests.train.conftest import SMALL
from tests.train.processes import impatient
from tests.train.processes.torchrun import after, ended, training, workers

pytestmark = pytest.mark.slow


def test_an_error_of_one_process(data: Path, short_config: Path, tmp_path: Path) -> None:
    """Each reads a part of the scans; this one is in the second's."""
    path = data / "imagesTr" / "p1_0000.nii.gz"
    path.write_bytes(path.read_bytes()[:500])
    status, lines = ended(training(2, data, "--config", short_config, "--out", tmp_path / "run"))
    assert status == 1
    assert len(lines) == 1
    assert str(path) in lines[0]
    assert "training stopped" not in lines[0]


def test_an_error_of_all_processes(balls: Path, short_config: Path, tmp_path: Path) -> None:
    arguments: tuple[Path | str, ...] = balls, "--config", short_config, "--out", tmp_path / "run", "--resume"
    nothing = f"no epoch was finished in {tmp_path / 'run'}: it holds no checkpoint"
    assert ended(training(2, *arguments)) == (
        1,
        [f"parotid-seg: --resume: {nothing}; start without --resume"],
    )
    arguments = balls, "--config", tmp_path / "none.toml", "--out", tmp_path / "run"
    status, lines = ended(training(2, *arguments))
    assert status == 1
    assert len(lines) == 1
    assert "none.toml" in lines[0]


@pytest.mark.parametrize("interrupted", [False, True])
def test_a_process_that_hangs(balls: Path, interrupted: bool, tmp_path: Path) -> None:
    """The other one gives up; Ctrl-C is answered even while it waits."""
    run, config = tmp_path / "run", tmp_path / "many_epochs.toml"
    config.write_text(
        SMALL.replace("images_per_epoch = 160", "images_per_epoch = 16").replace("epochs = 4", "epochs = 99")
    )
    process = training(2, balls, "--config", config, "--out", run, program=impatient.command)
    after(process, "epoch 1 ")
    stopped = workers(process)[1]
    os.kill(stopped, signal.SIGSTOP)
    if interrupted:
        process.send_signal(signal.SIGINT)
    line = next(line for line in process.stderr if line.startswith("parotid-seg: "))
    os.kill(stopped, signal.SIGCONT)
    status, lines = ended(process)
    assert status == 1
    assert not lines, "a second line"
    if interrupted:
        assert line.startswith("parotid-seg: interrupted; ")
    else:
        assert "gave no sign for 0.1 minutes (noticed by process 0 of 2)" in line
    assert f"{run / 'last.pt'} is whole, and --resume goes on with it" in line
    assert load_checkpoint(run / "last.pt").progress["epochs_done"] >= 1
