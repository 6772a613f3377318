"""The paper's claims with replicates: five pre-trainings of each start, and two draws of ten labelled patients.

    python benchmarks/training/replicates.py DATA --runs runs/replicates --jobs 2    trains what is missing
    python benchmarks/training/replicates_report.py                                  makes table and picture

A pre-training is a seed, and gives several starts: `organs`, a network that has learnt other organs; and the same
trained on by momentum contrast (`organs+contrast`), with organs (`organs+organs`) or by masked autoencoding
(`organs+masked`), each for about as long. `organs+long contrast` has ten times the contrast, in one pre-training. These
and `scratch` are fine-tuned on each draw of patients, with the pre-training's seed; a draw is the same for all starts.
`study.py` is the wider study, with one pre-training of each start.

All runs have one learning rate. The test patients are looked at once for each run. Trainings take one core each and
resume where they were cut; a result is a file in `benchmarks/results/replicates/`, and is never made again.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

sys.path.insert(0, str(Path(__file__).parents[1]))
import numpy as np
from cross_validation import make_fold_data
from study import AUGMENT, BOTH, BUDGETS, ENCODER, SLICES_AN_EPOCH, Start, machine, run_command, slug, test

RESULTS = Path(__file__).parents[1] / "results" / "replicates"
PRETRAININGS = 5
DRAWS = 2
LABELLED = 10
RATE = 2e-3
"""Learning rate. From scratch, 0.001, 0.002 and 0.004 gave a mean validation DSC of 0.684, 0.687 and 0.680 over both
draws; 0.002, again on another kind of CPU, 0.684. In `study.py` the rate matters as little for the other starts."""
BUDGET = 6
"""Epochs of fine-tuning, of 3,000 slices."""
MASKED = "masked"
STARTS = {
    "organs": Start("organs", "scratch", {"epochs": 20}),
    "organs+contrast": Start("contrast", "organs", {"epochs": 20}),
    "organs+organs": Start("organs", "organs", {"epochs": 28}),
    "organs+masked": Start(MASKED, "organs", {"epochs": 32}),
    "organs+long contrast": Start("contrast", "organs", {"epochs": 200}),
}
"""An epoch of contrast takes 1.4 times as long as one of organs, and 1.6 times as long as a masked one."""
FIRST_PRETRAINING_ONLY = ("organs+long contrast",)
ARMS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("scratch", BOTH),
    ("organs+contrast", BOTH),
    ("organs", BOTH),
    ("organs+contrast", ENCODER),
    ("organs", ENCODER),
    ("organs+organs", BOTH),
    ("organs+masked", BOTH),
    ("organs+long contrast", BOTH),
)
TURNS = (slice(0, 3), slice(3, 7), slice(7, None))
"""Arms whose turn comes together, with all pre-trainings: the first decide the paper's main claim."""


@dataclass(frozen=True)
class Run:
    """One fine-tuning.

    Attributes:
        start: of `STARTS`, or scratch.
        transfer: parts of the network that are taken from it.
        pretraining: its number, and the seed.
        draw: number of the draw of labelled patients.
    """

    start: str
    transfer: tuple[str, ...]
    pretraining: int
    draw: int

    @property
    def name(self) -> str:
        """Of its folder and its result."""
        return f"{slug(self.start)}-{'-'.join(self.transfer)}-p{self.pretraining}-d{self.draw}"


def drawn(patients: list[str], draw: int) -> list[str]:
    """`LABELLED` of the training patients."""
    return sorted(map(str, np.random.default_rng([LABELLED, draw]).choice(sorted(patients), LABELLED, replace=False)))


def read(name: str) -> dict[str, Any] | None:
    """A result, or None."""
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else None


def write(name: str, values: dict[str, Any]) -> None:
    """Add to a result."""
    from parotid_seg.files import write_text

    RESULTS.mkdir(parents=True, exist_ok=True)
    write_text(json.dumps({**(read(name) or {}), **values}, indent=1) + "\n", RESULTS / f"{name}.json")


def wanted() -> list[Run]:
    """All runs in the order of their turn."""
    return [
        Run(start, transfer, pretraining, draw)
        for turn in TURNS
        for pretraining in range(PRETRAININGS)
        for start, transfer in ARMS[turn]
        if not (pretraining and start in FIRST_PRETRAINING_ONLY)
        for draw in range(DRAWS)
    ]


def work(runs: Path) -> Iterator[str]:
    """Names of what is to be done, most wanted first: pre-trainings, runs, and tests ("test:" and the run's name)."""
    for run in wanted():
        if "test" in (read(run.name) or {}):
            continue
        if (runs / run.name / "best.pt").exists():
            yield f"test:{run.name}"
        else:
            yield first_missing(run.start, run.pretraining, runs) or run.name


def first_missing(start: str, pretraining: int, runs: Path) -> str | None:
    """The pre-training itself or what it starts from, whichever has to be done first."""
    if start == "scratch" or (runs / pretraining_name(start, pretraining) / "finished").exists():
        return None
    return first_missing(STARTS[start].source, pretraining, runs) or pretraining_name(start, pretraining)


def pretraining_name(start: str, pretraining: int) -> str:
    """Of its folder; its result has "start-" before it."""
    return f"{slug(start)}-p{pretraining}"


class CoreMinutes:
    """Minutes of a core that a training has taken, also before it was cut.

    Args:
        folder: of the run.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.file = folder / "core-minutes"
        self.before = float(self.file.read_text()) if self.file.exists() else 0.0

    def note(self) -> float:
        """Keep and return what it has taken until now."""
        now = self.before + time.process_time() / 60
        self.file.write_text(f"{now:.2f}")
        return round(now, 2)


def do(name: str, data: Path, runs: Path, device: str = "cpu") -> None:
    """One item of `work`, on one core or a GPU."""
    import torch

    torch.set_num_threads(1)
    if name.startswith("test:"):
        run = name.removeprefix("test:")
        write(run, {"test": test(data, runs / run / "best.pt", device)})
        return
    for start, pretraining in ((start, number) for start in STARTS for number in range(PRETRAININGS)):
        if name == pretraining_name(start, pretraining):
            pretrain(start, pretraining, data, runs, device)
            return
    fine_tune(next(run for run in wanted() if run.name == name), data, runs, device)


def fitted(values: dict[str, Any], data: Path, folder: Path, cache: Path, device: str) -> dict[str, Any]:
    """Train; the last record of its metrics, with the minutes of a core."""
    from parotid_seg.train.settings import load_config, merge
    from parotid_seg.train.stages import train

    minutes = CoreMinutes(folder)

    def report(line: str) -> None:
        minutes.note()
        print(f"{time.strftime('%H:%M:%S')}  {folder.name}: {line}", flush=True)

    config = merge(load_config("compact"), {**values, "augment": AUGMENT}, where=f"{folder.name}: ")
    resume = (folder / "run" / "last.pt").exists()
    train(config, data, folder / "run", device=device, resume=resume, cache=cache, report=report)
    last: dict[str, Any] = json.loads((folder / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    return {**last, "core_minutes": minutes.note()}


def init_of(start: str, pretraining: int, runs: Path) -> str:
    """Initial weights: of a start, or none."""
    return start if start == "scratch" else str(runs / pretraining_name(start, pretraining) / "run" / "best.pt")


def pretrain(start: str, pretraining: int, data: Path, runs: Path, device: str) -> None:
    """One pre-training of a start. Masked autoencoding takes the place and the settings of the stage "contrast"."""
    from masked import MaskedTrainer

    from parotid_seg.train.stages import TRAINERS

    masked, name = STARTS[start].stage == MASKED, pretraining_name(start, pretraining)
    stage = "contrast" if masked else STARTS[start].stage
    values: dict[str, Any] = {"seed": pretraining, "stages": [stage], stage: STARTS[start].settings}
    values["init"] = init_of(STARTS[start].source, pretraining, runs)
    with patch.dict(TRAINERS, {"contrast": MaskedTrainer} if masked else {}):
        last = fitted(values, data, runs / name, runs / "cache", device)
    result = {"start": start, "pretraining": pretraining, **asdict(STARTS[start]), "last": last, **machine(device)}
    write(f"start-{name}", result)
    (runs / name / "finished").touch()


def fine_tune(run: Run, data: Path, runs: Path, device: str) -> None:
    """One fine-tuning, validated at its end."""
    splits, folder = json.loads((data / "splits.json").read_text()), runs / run.name
    patients = drawn(splits["train"], run.draw)
    make_fold_data(data, folder / "data", splits["validation"], patients)
    budget: dict[str, Any] = {**BUDGETS[BUDGET], "images_per_epoch": SLICES_AN_EPOCH, "learning_rate": RATE}
    values = {
        "seed": run.pretraining,
        "init": init_of(run.start, run.pretraining, runs),
        "transfer": list(run.transfer),
        "stages": ["segment"],
        "segment": budget,
    }
    last = fitted(values, folder / "data", folder, runs / "cache", device)
    found = {
        "validation_dsc": last["validation_dsc"],
        "training_loss": last["loss"],
        "core_minutes": last["core_minutes"],
    }
    (folder / "run" / "best.pt").rename(folder / "best.pt")
    write(run.name, {**asdict(run), "patients": patients, **budget, **found, **machine(device)})


if __name__ == "__main__":
    run_command(__doc__, __file__, work, do)
