"""Train nnU-Net within a budget of time; runs in nnU-Net's environment, started by `nnunet.py train`.

    python nnunet_train.py 2d --dataset Dataset101_OpenKBP --core-minutes 160 --threads 1

Killed at any moment and started again with the same command, it goes on after the last whole epoch. How many epochs
there are is worked out once (see `budget`). What it keeps beside nnU-Net's own files: schedule.json and epochs.jsonl.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

FOLD = 0
PROBED, UNCOUNTED = 8, 3
"""Iterations that are timed, and how many of the first of them do not count."""
DIE_WITH_PARENT = 1
"""Linux's PR_SET_PDEATHSIG."""


def arguments_of() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("configuration", choices=("2d", "3d_fullres"))
    parser.add_argument("--dataset", required=True, help="name of the data set, planned and preprocessed")
    parser.add_argument("--core-minutes", type=float, default=160.0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch-size", type=int, help="default: nnU-Net's plan")
    parser.add_argument("--patch-size", type=int, nargs="+", help="default: nnU-Net's plan")
    return parser.parse_args()


ARGUMENTS = arguments_of() if __name__ == "__main__" else None
if ARGUMENTS is not None:  # both are read while nnU-Net and numpy are imported
    os.environ["nnUNet_n_proc_DA"] = str(ARGUMENTS.threads - 1)  # noqa: SIM112
    os.environ["OMP_NUM_THREADS"] = str(ARGUMENTS.threads)

import torch
from budget import VALIDATIONS, Schedule, Timing, check_same, epochs_for, read_schedule, write_schedule
from nnunet import TRAINED_TRAINER
from nnunetv2.paths import nnUNet_preprocessed
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name


def make_trainer(arguments: argparse.Namespace, *, resume: bool) -> nnUNetTrainer:
    """nnU-Net's trainer with its plan, or with the batch and patch asked for."""
    folder = Path(str(nnUNet_preprocessed), arguments.dataset)
    plans = json.loads((folder / "nnUNetPlans.json").read_text())
    plan = plans["configurations"][arguments.configuration]
    plan["batch_size"] = arguments.batch_size or plan["batch_size"]
    plan["patch_size"] = arguments.patch_size or plan["patch_size"]
    plans["continue_training"] = resume
    trainer = recursive_find_trainer_class_by_name(TRAINED_TRAINER)(
        plans=plans,
        configuration=arguments.configuration,
        fold=FOLD,
        dataset_json=json.loads((folder / "dataset.json").read_text()),
        device=torch.device("cpu"),
    )
    trainer.num_val_iterations_per_epoch = VALIDATIONS
    trainer.save_every = 1
    trainer.save_checkpoint = whole(trainer.save_checkpoint)
    return trainer


def whole(save: Callable[[str], None]) -> Callable[[str], None]:
    """Write checkpoints beside their name first, so that a kill never leaves half of one."""

    def save_whole(path: str) -> None:
        save(f"{path}.partial")
        os.replace(f"{path}.partial", path)  # noqa: PTH105

    return save_whole


def probe(arguments: argparse.Namespace) -> Timing:
    """Time one short epoch, and forget it."""
    trainer = make_trainer(arguments, resume=False)
    trainer.num_epochs, trainer.num_iterations_per_epoch = 1, PROBED
    ended: list[float] = []
    for name in ("on_train_start", "train_step", "on_train_end"):
        after(trainer, name, lambda: ended.append(time.perf_counter()))
    trainer.run_training()
    shutil.rmtree(trainer.output_folder)
    _, *iterations, end = ended
    return Timing((iterations[-1] - iterations[UNCOUNTED - 1]) / (PROBED - UNCOUNTED), end - iterations[-1])


def after(trainer: nnUNetTrainer, name: str, tell: Callable[[], None]) -> None:
    """Call `tell` each time after a method of the trainer."""
    method = getattr(trainer, name)

    def told(*args: Any) -> Any:
        result = method(*args)
        tell()
        return result

    setattr(trainer, name, told)


def fix_schedule(arguments: argparse.Namespace, path: Path) -> Schedule:
    """The schedule that was kept, or a new one for this machine."""
    asked = {name: getattr(arguments, name) for name in ("core_minutes", "threads", "batch_size")}
    asked["patch_size"] = tuple(arguments.patch_size) if arguments.patch_size else None
    if kept := read_schedule(path):
        check_same(kept, **asked)
        return kept
    timing = probe(arguments)
    epochs, iterations = epochs_for(60 * arguments.core_minutes / arguments.threads, timing)
    plan = make_trainer(arguments, resume=False).configuration_manager
    asked |= {"batch_size": plan.batch_size, "patch_size": tuple(plan.patch_size)}
    schedule = Schedule(
        arguments.configuration, TRAINED_TRAINER, **asked, epochs=epochs, iterations=iterations, timing=timing
    )
    write_schedule(schedule, path)
    return schedule


def train(arguments: argparse.Namespace) -> None:
    """Train to the end of the schedule, from where it was cut."""
    folder = Path(make_trainer(arguments, resume=False).output_folder)
    schedule = fix_schedule(arguments, folder.parent / "schedule.json")
    print(schedule, f"{schedule.seconds / 60:.0f} minutes", flush=True)
    if (folder / "checkpoint_final.pth").exists():
        print(f"trained: {folder}")
        return
    latest = folder / "checkpoint_latest.pth"
    trainer = make_trainer(arguments, resume=latest.exists())
    trainer.num_epochs, trainer.num_iterations_per_epoch = schedule.epochs, schedule.iterations
    if latest.exists():
        trainer.load_checkpoint(str(latest))
    after(trainer, "on_epoch_end", lambda: keep_epoch(trainer, folder.parent / "epochs.jsonl"))
    trainer.run_training()


def keep_epoch(trainer: nnUNetTrainer, path: Path) -> None:
    """Add what an epoch took and gave."""
    value = {name: trainer.logger.get_value(name, step=-1) for name in ("train_losses", "mean_fg_dice", "lrs")}
    start, end = (trainer.logger.get_value(f"epoch_{name}_timestamps", step=-1) for name in ("start", "end"))
    row = {"epoch": trainer.current_epoch - 1, "seconds": time.time() - start, "computing_s": end - start}
    with path.open("a") as file:
        file.write(json.dumps(row | {name: float(each) for name, each in value.items()}) + "\n")


def end_with_parent() -> None:
    """In a process that loads batches: end when the training is killed, not wait for ever."""
    ctypes.CDLL(None).prctl(DIE_WITH_PARENT, signal.SIGKILL)


if ARGUMENTS is not None:
    os.register_at_fork(after_in_child=end_with_parent)
    torch.set_num_threads(ARGUMENTS.threads)
    train(ARGUMENTS)
