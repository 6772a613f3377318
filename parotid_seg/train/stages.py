"""Runs training stage by stage: each starts from the previous one, and finished stages are not repeated."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from parotid_seg.errors import InputError, OptionError
from parotid_seg.files import make_folder, remove_orphans
from parotid_seg.train.config import TrainConfig
from parotid_seg.train.contrast import ContrastTrainer
from parotid_seg.train.data.dataset import DataSet, open_data_sets
from parotid_seg.train.loop import Progress, Report, Trainer
from parotid_seg.train.parallel import join, keep_freed_memory
from parotid_seg.train.segment import SegmentTrainer
from parotid_seg.train.settings import length_note

TRAINERS: dict[str, type[Trainer]] = {
    "organs": SegmentTrainer,
    "contrast": ContrastTrainer,
    "dense": ContrastTrainer,
    "segment": SegmentTrainer,
}


def train(
    config: TrainConfig,
    data: Path,
    run: Path,
    *,
    labelled: int | None = None,
    device: str = "auto",
    resume: bool = False,
    max_minutes: float | None = None,
    cache: Path | None = None,
    report: Report = lambda _: None,
    progress: Progress = lambda *_: None,
) -> bool:
    """`parotid-seg train`: start a new run in an empty folder, or resume one.

    The last stage of `config.stages` writes its checkpoints to `run`, an earlier one to a subfolder with its name.

    Args:
        config: the resolved configuration.
        data: folder of the data set.
        run: folder for checkpoints, metrics and pictures.
        labelled: use this many patients for the stage "segment" (few-label study).
        device, report, progress: see `Trainer`.
        resume: continue the run in the folder. Checkpoints of earlier stages in it are used in any case.
        max_minutes: stop after this time; see `Trainer.fit`.
        cache: folder for decoded scans, which runs may share. Default: RUN/cache.

    Returns:
        Whether every stage is complete.

    Raises:
        InputError: if the folder holds a run already and `resume` is off, or none and it is on; if a stage in it was
            trained with other settings; and for unusable data or initial weights, before anything is trained.
        OutputError: if the folder cannot be written to.
    """
    if max_minutes is not None and not max_minutes >= 0:
        raise OptionError(f"--max-minutes: found {max_minutes:g}, expected 0 or more")
    started = time.monotonic()
    folders = {stage: run if stage == config.stages[-1] else run / stage for stage in config.stages}
    data_sets = open_data_sets(data, config, labelled)
    config = config.with_patients({stage: len(each.train) for stage, each in data_sets.items()})
    processes = join(device)
    say = report if processes.first else lambda _: None
    for note in _notes(config, data_sets):
        say(f"note: {note}")
    started_stages = processes.broadcast_from_rank0(lambda: _started_stages(run, folders, resume))
    same = [dataclasses.replace(each, folder=Path()) for each in data_sets.values()]  # machines' folders may differ
    processes.assert_equal("settings or patients", (config, same))
    keep_freed_memory()
    trainers = {}
    for stage, folder in folders.items():
        kind = TRAINERS[stage]
        trainers[stage] = kind(
            config.for_stage(stage), data_sets[stage], folder, processes, report, cache or run / "cache", progress
        )
        if stage in started_stages:
            trainers[stage].resume()
    deadline = None if max_minutes is None else started + 60 * max_minutes
    return _fit_all(trainers, started_stages, config.init, deadline, say)


def _fit_all(
    trainers: Mapping[str, Trainer], started_stages: Sequence[str], source: str, deadline: float | None, say: Report
) -> bool:
    """Train the stages that are not finished, each from the best weights of the one before.

    Args:
        trainers: of all stages, in their order.
        started_stages: those that have a checkpoint.
        source: initial weights of the first stage.
        deadline: time of `time.monotonic` at which to stop; None for no limit.
        say: called with one line for each stage.

    Returns:
        Whether every stage is complete.
    """
    unfinished = {stage: trainer for stage, trainer in trainers.items() if not trainer.finished}
    for trainer in unfinished.values():
        trainer.load()
    for stage, trainer in trainers.items():
        begun = stage in started_stages
        if stage in unfinished:
            trainer.check_leaks(str(trainer.run / "last.pt") if begun else source)
        if not begun:
            trainer.start(source)
        say(f"stage {stage}: {trainer.epochs_done} of {trainer.schedule.epochs} epochs done")
        minutes_left = None if deadline is None else (deadline - time.monotonic()) / 60
        if stage in unfinished and not trainer.fit(minutes_left):
            return False
        late = trainer.processes.any(deadline is not None and time.monotonic() >= deadline)
        if late and stage in unfinished and stage != list(trainers)[-1]:
            say(f"stopped after stage {stage}; --resume continues")
            return False
        source = str(trainer.run / "best.pt")
    return True


def _notes(config: TrainConfig, data_sets: Mapping[str, DataSet]) -> list[str]:
    """Remarks on the data sets of the stages and the length of the run, each once."""
    notes = [note for each in data_sets.values() for note in each.notes]
    if "segment" in data_sets:
        notes.append(length_note(config, len(data_sets["segment"].train)))
    return [*dict.fromkeys(filter(None, notes))]


def _started_stages(run: Path, folders: dict[str, Path], resume: bool) -> list[str]:
    """The stages in the run's folder, which is made if missing."""
    started_stages = [stage for stage, folder in folders.items() if (folder / "last.pt").exists()]
    if list(folders)[-1] in started_stages and not resume:
        raise InputError("holds a run already; --resume continues it, or choose another --out", path=run)
    if resume and not started_stages:
        raise InputError(f"--resume: {run} holds no checkpoint: no epoch was finished; start without it")
    for folder in folders.values():
        make_folder(folder)
        remove_orphans(folder)
    return started_stages
