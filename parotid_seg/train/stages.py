"""Runs training stage by stage: each starts from the previous one, and finished stages are not repeated."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

from parotid_seg.errors import InputError
from parotid_seg.files import make_folder, make_folder_in, remove_orphans
from parotid_seg.train.checkpoint import what_best_is
from parotid_seg.train.config import INITIAL, TrainConfig
from parotid_seg.train.contrast import ContrastTrainer
from parotid_seg.train.data.data_set import DataSet, open_data_sets
from parotid_seg.train.data.loading import check_unchanged, in_recorded_order
from parotid_seg.train.loop import Trainer
from parotid_seg.train.parallel import join, keep_freed_memory
from parotid_seg.train.settings import check_init, length_note
from parotid_seg.train.supervised import SegmentTrainer
from parotid_seg.train.time_limit import TimeIsOverError, TimeLimit
from parotid_seg.wording import Progress, Say

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
    started: float | None = None,
    cache: Path | None = None,
    report: Say = lambda _: None,
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
        started: time of `time.monotonic` from which it counts. Default: now.
        cache: folder for decoded scans, which runs may share. Default: RUN/cache.

    Returns:
        Whether every stage is complete.

    Raises:
        InputError: if the folder holds a run already and `resume` is off, or none and it is on; if a stage in it was
            trained with other settings; and for unusable data or initial weights, before anything is trained.
        OutputError: if the folder cannot be written to, or a stage's folder or the cache in it is a link.
    """
    limit = TimeLimit(max_minutes) if started is None else TimeLimit(max_minutes, started)
    folders = {stage: run if stage == config.stages[-1] else run / stage for stage in config.stages}
    data_sets = open_data_sets(data, config, labelled)
    config = config.with_patients({stage: len(each.train) for stage, each in data_sets.items()})
    processes = join(device)
    say = report if processes.first else lambda _: None
    for note in _notes(config, data_sets):
        say(f"note: {note}")
    started_stages = processes.broadcast_from_rank0(lambda: _started_stages(run, folders, resume, config.init, cache))
    same = [dataclasses.replace(each, folder=Path(), name="") for each in data_sets.values()]  # folders may differ
    processes.assert_equal("settings or patients", (config, same))
    keep_freed_memory()
    trainers = {}
    for stage, folder in folders.items():
        own = config.for_stage(stage), data_sets[stage], folder
        trainers[stage] = TRAINERS[stage](*own, processes, report, cache or run / "cache", progress, limit)
        if stage in started_stages:
            trainers[stage].resume()
    return _fit_in_time(trainers, started_stages, config.init, limit, say)


def _fit_in_time(
    trainers: Mapping[str, Trainer], started_stages: Sequence[str], source: str, limit: TimeLimit, say: Say
) -> bool:
    """`_fit_all`, and a line on what is left where it ends: a stop before the first step, or the next command."""
    try:
        complete = _fit_all(trainers, started_stages, source, limit, say)
    except TimeIsOverError as over:
        say(str(over))
        return False
    if line := list(trainers.values())[-1].next_command():
        say(line)
    return complete


def _fit_all(
    trainers: Mapping[str, Trainer], started_stages: Sequence[str], source: str, limit: TimeLimit, say: Say
) -> bool:
    """Train the stages that are not finished, each from the best weights of the one before.

    Args:
        trainers: of all stages, in their order.
        started_stages: those that have a checkpoint.
        source: initial weights of the first stage.
        limit: when to stop.
        say: called with one line for each stage.

    Returns:
        Whether every stage is complete.
    """
    unfinished = {stage: trainer for stage, trainer in trainers.items() if not trainer.finished}
    last_stage = list(trainers)[-1]
    for stage, trainer in trainers.items():
        if stage in unfinished or stage == last_stage:  # also of a finished run: its data may have changed
            trainer.load()
    for stage, trainer in trainers.items():
        begun = stage in started_stages
        if stage in unfinished:
            trainer.check_leaks(str(trainer.run / "last.pt") if begun else source)
        if not begun:
            trainer.start(source)
        elif trainer.train:
            check_unchanged(trainer.run / "last.pt", trainer.trained, trainer.train, trainer.validation)
            trainer.train = in_recorded_order(trainer.trained, trainer.train)
        say(f"stage {stage}: {trainer.epochs_done} of {trainer.schedule.epochs} epochs done")
        if stage in unfinished and not trainer.fit():
            return False
        if stage in unfinished and stage != last_stage and trainer.processes.any(limit.over()):
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


def _started_stages(
    run: Path, folders: dict[str, Path], resume: bool, source: str, cache: Path | None = None
) -> list[str]:
    """The stages in the run's folder, which is made if missing, after a check of the folder and of --init."""
    started_stages = [stage for stage, folder in folders.items() if (folder / "last.pt").exists()]
    if list(folders)[-1] in started_stages and not resume:
        raise InputError("holds a run already; --resume continues it, or choose another --out", path=run)
    for stage, folder in folders.items():
        best = folder / "best.pt"
        if stage not in started_stages and best.exists() and (what := what_best_is(best)) != INITIAL:
            way_on = f"choose another --out (--init {best} goes on from it), or remove that file"
            raise InputError(
                f"holds a run already: best.pt ({what}), but no last.pt to resume from; {way_on}", path=run
            )
    if resume and not started_stages:
        there = f"best.pt is {INITIAL}" if (run / "best.pt").exists() else "it holds no checkpoint"
        raise InputError(f"--resume: no epoch was finished in {run}: {there}; start without --resume")
    if next(iter(folders)) not in started_stages:
        check_init(source)
    make_folder(run)
    for name in (*list(folders)[:-1], *([] if cache else ["cache"])):
        make_folder(make_folder_in(run, name))
    for folder in folders.values():
        remove_orphans(folder)
    return started_stages
