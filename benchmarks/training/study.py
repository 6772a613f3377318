"""Is contrastive pre-training worth it? Starts x transfers x labelled patients, measured on test patients.

    python benchmarks/training/study.py DATA --runs runs/study --jobs 2 --minutes 150     trains what is missing
    python benchmarks/training/study_report.py                                            makes tables and picture

Every training is small enough for a CPU core and resumes where it was cut. What a training gave is kept as one JSON
file in `benchmarks/results/study/`; a run whose file is there is never trained again. The learning rate of each start
is chosen on the validation patients with 10 labelled patients; the test patients are looked at once for each run of
the chosen rate.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parents[1] / "results" / "study"
FIGURES = ("dsc", "mpa", "macc", "miou", "hd_mm", "hd95_mm")

RATES = (1e-3, 2e-3, 4e-3)
"""Each start has its own of them, for each budget."""
SLICES_AN_EPOCH = 3000
BUDGETS: dict[int, dict[str, Any]] = {
    2: {"epochs": 2, "validate_every": 2, "calm_epochs": 1, "warmup_epochs": 0.5},
    6: {"epochs": 6, "validate_every": 6, "calm_epochs": 2},
}
"""Fine-tuning, short and long, by epochs."""
LABELLED = (10, 160, 40, 5)
"""In the order of their turn; rates are chosen at the first."""
SEEDS = {2: {10: (0, 1, 2), 160: (0,), 40: (0,), 5: (0, 1)}, 6: {10: (0,), 160: (), 40: (), 5: ()}}
"""By budget and labelled patients."""
BOTH, ENCODER = ("encoder", "decoder"), ("encoder",)


@dataclass(frozen=True)
class Start:
    """A way to come by first weights: a stage, what it starts from itself, and its settings over the preset's."""

    stage: str
    source: str
    settings: dict[str, object]


AUGMENT = {"bolus_probability": 0.0}
"""Every run's, as in those that were made before bolus was part of the preset."""
MILD = {"noise_hu": 10.0, "blur_px": 0.6, "contrast": 0.15, "offset_hu": 30.0, "couch_probability": 0.1}
STARTS = {
    "organs": Start("organs", "scratch", {"epochs": 20}),
    "contrast": Start("contrast", "scratch", {"epochs": 20}),
    "organs+contrast": Start("contrast", "organs", {"epochs": 20}),
    "organs+contrast+dense": Start("dense", "organs+contrast", {"epochs": 8}),
}
ARMS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("scratch", BOTH),
    ("organs", BOTH),
    ("organs+contrast", BOTH),
    ("contrast", BOTH),
    ("organs+contrast", ENCODER),
    ("organs", ENCODER),
    ("contrast", ENCODER),
    ("organs+contrast+dense", BOTH),
)
MAIN_ARMS = {2: 4, 6: 3}
"""By budget: the first so many are tried at every number of patients."""
SAME_RATE = "organs+contrast"
"""Its rate serves for the starts that differ from it in details only: dense contrast, and the trials."""

SHORT: dict[str, object] = {"epochs": 4}
TRIALS: dict[str, Start] = {
    "as it is": Start("contrast", "organs", SHORT),
    "crops down to 0.3 of the side": Start(
        "contrast", "organs", {**SHORT, "first": {"crop": 0.3}, "second": {"crop": 0.3}}
    ),
    "crops down to 0.9": Start("contrast", "organs", {**SHORT, "first": {"crop": 0.9}, "second": {"crop": 0.9}}),
    "half of the changes of intensity": Start("contrast", "organs", {**SHORT, "first": MILD, "second": MILD}),
    "temperature 0.07": Start("contrast", "organs", {**SHORT, "temperature": 0.07}),
    "temperature 1": Start("contrast", "organs", {**SHORT, "temperature": 1.0}),
    "queue of 4096 keys": Start("contrast", "organs", {**SHORT, "queue": 4096}),
    "encoder and decoder together": Start("contrast", "organs", {**SHORT, "dense_share": 0.5, "batch_size": 24}),
    "decoder afterwards": Start("dense", "organs+contrast", {"epochs": 2}),
    "decoder afterwards, negatives of other images": Start(
        "dense", "organs+contrast", {"epochs": 2, "dense_negatives": "batch"}
    ),
    "decoder afterwards, near places as negatives": Start("dense", "organs+contrast", {"epochs": 2, "apart_mm": 0.0}),
    "decoder alone, from organs": Start("dense", "organs", {"epochs": 2}),
}
"""Contrast in other ways, shorter; each fine-tuned once with 10 patients and judged on the validation patients."""
STARTS_AND_TRIALS: dict[str, Start] = {**STARTS, **TRIALS}
TRIAL_EPOCHS = 2


@dataclass(frozen=True)
class Run:
    """One fine-tuning."""

    start: str
    transfer: tuple[str, ...]
    epochs: int
    labelled: int
    seed: int
    rate: float

    @property
    def name(self) -> str:
        """Of its folder and its result."""
        return (
            f"{slug(self.start)}-{'-'.join(self.transfer)}-e{self.epochs}-n{self.labelled}-s{self.seed}-lr{self.rate:g}"
        )


def read(name: str) -> dict[str, Any] | None:
    """The result of a run, or None."""
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else None


def chosen_rate(start: str, epochs: int) -> float | None:
    """The rate with the best validation at the first number of patients; None until all were tried."""
    start = SAME_RATE if start in TRIALS or start == "organs+contrast+dense" else start
    tried = {rate: read(Run(start, BOTH, epochs, LABELLED[0], 0, rate).name) for rate in RATES}
    validation = {rate: float(result["validation_dsc"]) for rate, result in tried.items() if result}
    return max(RATES, key=lambda rate: validation[rate]) if len(validation) == len(RATES) else None


def wanted() -> Iterator[tuple[Run, bool]]:
    """All runs in the order of their turn, and whether each is to be tested; those whose rate is open are left out."""
    for epochs in BUDGETS:
        for start, _ in ARMS[: MAIN_ARMS[epochs]]:
            yield from ((Run(start, BOTH, epochs, LABELLED[0], 0, rate), False) for rate in RATES)
        for labelled in LABELLED:
            yield from ((run, True) for run in arms(epochs, labelled))
        if epochs == TRIAL_EPOCHS and (rate := chosen_rate(SAME_RATE, epochs)):
            yield from ((Run(start, BOTH, epochs, LABELLED[0], 0, rate), False) for start in TRIALS)


def arms(epochs: int, labelled: int) -> Iterator[Run]:
    """Starts and transfers at their chosen rates: all of them short and at the first number of patients, else four."""
    all_of_them = epochs == TRIAL_EPOCHS and labelled == LABELLED[0]
    for seed in SEEDS[epochs][labelled]:
        for start, transfer in ARMS if all_of_them else ARMS[: MAIN_ARMS[epochs]]:
            if rate := chosen_rate(start, epochs):
                yield Run(start, transfer, epochs, labelled, seed, rate)


def work(runs: Path) -> Iterator[str]:
    """Names of what is to be done, most wanted first: starts, runs, and tests ("test:" and the run's name)."""
    for run, to_test in wanted():
        result = read(run.name)
        if result is None:
            yield first_missing(run.start, runs) or run.name
        elif to_test and "test" not in result:
            yield f"test:{run.name}"


def first_missing(start: str, runs: Path) -> str | None:
    """The start itself or what it starts from, whichever has to be trained first."""
    if start == "scratch" or finished(runs / start):
        return None
    return first_missing(STARTS_AND_TRIALS[start].source, runs) or start


def finished(folder: Path) -> bool:
    """Whether a start is trained to its end."""
    return (folder / "finished").exists()


def do(name: str, data: Path, runs: Path, device: str = "cpu") -> None:
    """One item of `work`, on one core or a GPU."""
    import torch

    torch.set_num_threads(1)
    from parotid_seg.train.settings import load_config, merge
    from parotid_seg.train.stages import train

    common: dict[str, Any] = {"device": device, "cache": runs / "cache", "report": lambda line: print(line, flush=True)}
    started = time.time()
    if name in STARTS_AND_TRIALS:
        start = STARTS_AND_TRIALS[name]
        init = start.source if start.source == "scratch" else str(runs / start.source / "best.pt")
        values: dict[str, Any] = {"stages": [start.stage], "init": init, start.stage: start.settings}
        config = merge(load_config("compact"), {**values, "augment": AUGMENT}, where=f"{name}: ")
        train(config, data, runs / name, resume=(runs / name / "last.pt").exists(), **common)
        keep_start(name, runs / name, device)
        (runs / name / "finished").touch()
    elif name.startswith("test:"):
        write(name.removeprefix("test:"), {"test": test(data, runs / name.removeprefix("test:") / "best.pt", device)})
    else:
        run = next(run for run, _ in wanted() if run.name == name)
        folder = runs / name
        init = "scratch" if run.start == "scratch" else str(runs / run.start / "best.pt")
        values = {"seed": run.seed, "init": init, "transfer": list(run.transfer), "stages": ["segment"]}
        budget: dict[str, Any] = {**BUDGETS[run.epochs], "images_per_epoch": SLICES_AN_EPOCH}
        values["segment"] = {**budget, "learning_rate": run.rate}
        config = merge(load_config("compact"), {**values, "augment": AUGMENT}, where=f"{name}: ")
        train(config, data, folder, labelled=run.labelled, resume=(folder / "last.pt").exists(), **common)
        last = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])
        found = {"validation_dsc": last["validation_dsc"], "training_loss": last["loss"]}
        found["minutes"] = (time.time() - started) / 60
        (folder / "last.pt").unlink()
        write(name, {**asdict(run), **budget, **found, **machine(device)})


def keep_start(name: str, folder: Path, device: str) -> None:
    """Write the last record of a start's training to the results, to tell how well it learnt its own task."""
    last = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])
    write(f"start-{slug(name)}", {"start": name, **asdict(STARTS_AND_TRIALS[name]), "last": last, **machine(device)})


def slug(name: str) -> str:
    """A name for files."""
    return name.replace(" ", "-").replace(",", "")


def machine(device: str) -> dict[str, Any]:
    """What a figure was made with."""
    import torch

    from parotid_seg.system import versions_of

    versions = versions_of(("parotid-seg", "torch", "timm", "numpy"))
    return {
        "versions": versions,
        "python": platform.python_version(),
        "cores": os.cpu_count(),
        **({} if device == "cpu" else {"gpu": torch.cuda.get_device_name(device)}),
        "date": f"{time.strftime('%F')}",
    }


def write(name: str, values: dict[str, Any]) -> None:
    """Add to the result of a run."""
    from parotid_seg.files import write_text

    RESULTS.mkdir(parents=True, exist_ok=True)
    write_text(json.dumps({**(read(name) or {}), **values}, indent=1) + "\n", RESULTS / f"{name}.json")


def test(data: Path, checkpoint: Path, device: str) -> dict[str, dict[str, float | None]]:
    """Figures of every test patient: means over the glands, and over the whole scan."""
    import numpy as np
    import torch

    from parotid_seg.metrics import score_case
    from parotid_seg.scan.components import keep_largest_components
    from parotid_seg.scan.intensity import fixed_windows, in_windows
    from parotid_seg.scan.nifti import read_mask, read_nifti
    from parotid_seg.train.checkpoint import load_checkpoint
    from parotid_seg.train.supervised import segment_volume

    trained = load_checkpoint(checkpoint)
    net = trained.network().to(device)
    fixed = fixed_windows(trained.channels, trained.config.window_hu)
    found = {}
    for path in sorted((data / "imagesTs").glob("*_0000.nii.gz")):
        case = path.name.removesuffix("_0000.nii.gz")
        scan = read_nifti(path)
        volume, windows = in_windows(scan.volume, trained.channels, fixed)
        reference, _ = read_mask(data / "labelsTs" / f"{case}.nii.gz", like=scan)
        mask = segment_volume(net, volume, windows, trained.config.grid, torch.device(device))
        mask = keep_largest_components(mask, trained.labels)
        scores = score_case(mask, reference, scan.volume.spacing_mm, trained.labels)
        of_glands = {
            name: np.mean([getattr(each, name) for each in scores.labels.values() if each.reference_ml])
            for name in ("dsc", "hd_mm", "hd95_mm")
        }
        of_scan = {name: getattr(scores, name) for name in ("mpa", "macc", "miou")}
        found[case] = {
            name: round(float(value), 5) if math.isfinite(value) else None
            for name, value in {**of_glands, **of_scan}.items()
        }
    return found


def keep_busy(command: Sequence[str], work: Callable[[], Iterator[str]], runs: Path, jobs: int, minutes: float) -> None:
    """Do what is missing, some at a time, until nothing is left or the time is over.

    Args:
        command: does one item, whose name comes last.
        work: gives the names of what is to be done, most wanted first.
        runs: folder for a log of each item.
        jobs: items at a time.
        minutes: stop then.
    """
    end = time.monotonic() + 60 * minutes
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    running: dict[str, subprocess.Popen[bytes]] = {}
    failed: set[str] = set()
    runs.mkdir(parents=True, exist_ok=True)
    while time.monotonic() < end or running:
        for name, process in list(running.items()):
            if process.poll() is not None:
                del running[name]
                if process.returncode:
                    failed.add(name)
                print(f"{time.strftime('%H:%M')}  {'FAILED' if process.returncode else 'done'}  {name}", flush=True)
        if time.monotonic() >= end:
            for process in running.values():
                process.terminate()
            for process in running.values():
                process.wait()
            return
        open_work = (name for name in work() if name not in running and name not in failed)
        upcoming = next(open_work, None) if len(running) < jobs else None
        if upcoming:
            with (runs / f"{upcoming.replace(':', '-')}.log").open("a") as log:
                running[upcoming] = subprocess.Popen([*command, upcoming], env=environment, stdout=log, stderr=log)
        elif running:
            time.sleep(1)
        else:
            return


def run_command(
    description: str | None,
    script: str,
    work: Callable[[Path], Iterator[str]],
    do: Callable[[str, Path, Path, str], None],
) -> None:
    """The command line of a study.

    Args:
        description: for --help.
        script: its file, which is called again for each item.
        work: names of what is to be done, most wanted first, from the folder of the runs.
        do: one item: its name, the data set, the folder of the runs and the device.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "data", type=Path, help="data set in nnU-Net's raw layout, with imagesTs, labelsTs and organsTr"
    )
    parser.add_argument("--runs", type=Path, required=True, help="folder for checkpoints and decoded scans")
    parser.add_argument("--jobs", type=int, default=2, help="trainings at a time, a core each")
    parser.add_argument("--minutes", type=float, default=math.inf, help="stop then; the next call goes on")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="with cuda, several share the GPU")
    parser.add_argument("--only", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.only:
        do(arguments.only, arguments.data, arguments.runs, arguments.device)
        return
    where = ["--runs", str(arguments.runs), "--device", arguments.device]
    command = [sys.executable, script, str(arguments.data), *where, "--only"]
    keep_busy(command, partial(work, arguments.runs), arguments.runs, arguments.jobs, arguments.minutes)


if __name__ == "__main__":
    run_command(__doc__, __file__, work, do)
