"""Two processes on the CPU, as torchrun starts them, against one with the same batch."""

import json
import subprocess
import sys

import pytest
import torch

from parotid_seg.errors import InputError
from parotid_seg.train.checkpoint import load_checkpoint
from parotid_seg.train.parallel import Processes
from tests.train.conftest import CONTRAST

pytestmark = pytest.mark.slow

STILL = "drop_path = 0.0\n"
STAGES = f"""{CONTRAST}
drop_path = 0.0
queue = 8
[dense]
epochs = 1
images_per_epoch = 32
batch_size = 8
hidden = 32
features = 16
points = 8
drop_path = 0.0
"""


@pytest.fixture(scope="module")
def still_config(small_config, tmp_path_factory):
    """No stochastic depth: that is drawn by each process for itself."""
    path = tmp_path_factory.mktemp("config") / "still.toml"
    text = small_config.read_text().replace("[network]\n", f"[network]\n{STILL}")
    path.write_text(
        text.replace("images_per_epoch = 640", "images_per_epoch = 64").replace("epochs = 4", "epochs = 1") + STAGES
    )
    return path


def run_training(processes, *arguments):
    launch = (
        ["torch.distributed.run", "--standalone", "--nproc-per-node", str(processes), "-m"] if processes > 1 else []
    )
    command = [sys.executable, "-m", *launch, "parotid_seg", "train", *map(str, arguments), "--device", "cpu"]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


@pytest.mark.parametrize("stage", ["contrast", "dense", "segment"])
def test_two_processes_learn_what_one_does(balls, still_config, stage, tmp_path):
    found = {}
    for processes in (1, 2):
        run = tmp_path / str(processes)
        done = run_training(processes, balls, "--out", run, "--config", still_config, "--stages", stage)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("epoch 1 ") == 1, "one process reports"
        records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        assert len(records) == 1, "one process writes"
        found[processes] = records[0], load_checkpoint(run / "best.pt").weights
    (one, weights), (two, others) = found[1], found[2]
    assert two["loss"] == pytest.approx(one["loss"], rel=2e-3), "measured: 1e-3 and less"
    if stage == "segment":
        assert two["validation_dsc"] == pytest.approx(one["validation_dsc"], abs=0.05)
    moved = torch.cat(
        [(value - others[name]).flatten() for name, value in weights.items() if value.is_floating_point()]
    )
    size = torch.cat([value.flatten() for value in weights.values() if value.is_floating_point()])
    assert moved.norm() < 0.02 * size.norm()


def test_a_run_goes_on_with_another_number_of_processes(balls, still_config, tmp_path):
    arguments = (balls, "--out", tmp_path / "run", "--config", still_config, "--stages", "contrast,segment")
    assert run_training(2, *arguments, "--max-minutes", 1e-6).returncode == 0
    done = run_training(1, *arguments, "--resume")
    assert done.returncode == 0, done.stderr
    assert "stage contrast: 1 of 1 epochs done" in done.stdout


def test_a_batch_that_cannot_be_split():
    with pytest.raises(InputError, match="expected a multiple of the 3 processes"):
        Processes(0, 3, torch.device("cpu")).share(8)
    assert list(Processes(1, 2, torch.device("cpu")).share(8)) == [4, 5, 6, 7]
