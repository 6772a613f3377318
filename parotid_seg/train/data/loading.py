"""Reads all patients of a stage, each process its share first, and says when one has changed since a checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from parotid_seg.errors import InputError
from parotid_seg.records import convert
from parotid_seg.train.config import TrainConfig
from parotid_seg.train.data.data_set import DataSet, named
from parotid_seg.train.data.leaks import check_held_out, hashes_of
from parotid_seg.train.data.patients import Patient, check_labels, doubts_line, load_patients, misfits_line
from parotid_seg.train.parallel import Processes

Step = Callable[[str, int, int, str], None]
"""Called before each step with the phase, the steps done, their number, and the step's name."""


@dataclass(frozen=True)
class Loaded:
    """The patients of a stage.

    Attributes:
        train, validation: in the order of the data set.
        locked: hashes of the test patients' scans by name.
    """

    train: list[Patient]
    validation: list[Patient]
    locked: dict[str, str]


def announced(data: DataSet, config: TrainConfig) -> list[str]:
    """Lines on the length of a stage, its patients, and those that are held out or locked."""
    schedule = config.schedule
    length = f"{schedule.epochs} epochs of {schedule.images_per_epoch:,} slices"
    length += f" ({schedule.steps:,} steps of {schedule.batch_size} slices in all)"
    trained = f"stage {config.stages[-1]}: {length}; trains on {len(data.train)} patients"
    held_out = f", validates on {len(data.validation)}: {', '.join(data.validation)}" if data.validation else ""
    locked = f"locked for a test, never used here: {len(data.test)}: {', '.join(data.test)}"
    return [trained + held_out, *([locked] if data.test else [])]


def load_all(
    data: DataSet, config: TrainConfig, cache: Path, processes: Processes, report: Callable[[str], None], step: Step
) -> Loaded:
    """Decode the scans and label maps of a data set.

    Args:
        data, config, cache: see `load_patients`.
        processes: each decodes its share; then it finds the rest in the cache, unless caches are separate.
        report: called with one line for each remark.
        step: called before each scan.

    Raises:
        ScanError, InputError: if one cannot be used, or a label map is empty.
    """
    cases = (*data.train, *data.validation)
    maps = " and label maps" if data.label_folder else ""
    report(f"reading scans{maps} of {len(cases)} patients")
    for part in (cases[processes.rank :: processes.count], cases):
        patients = load_patients(data, part, cache, config.window_hu, _counted(step, "reading scans", len(part)))
        processes.barrier()
    for warning in filter(None, (doubts_line(patients), misfits_line(patients))):
        report(warning)
    train, validation = patients[: len(data.train)], patients[len(data.train) :]
    held_out = {patient.name: patient.sha256 for patient in validation}
    locked: dict[str, str] = {}
    notes: list[str] = []
    for what, others, hashes in (("validation", data.held_out, held_out), ("test", data.test, locked)):
        phase = f"reading the {what} patients' scans, to compare them with the others"
        progress = _counted(step, phase, len(others))
        found, remarks = processes.broadcast_from_rank0(
            partial(hashes_of, data, others, what, cache, config.window_hu, progress)
        )
        hashes.update(found)
        notes += remarks
    check_held_out(data.folder, train, held_out)
    for note in (*notes, *check_labels(data, train, validation, config.augment.mirror_probability > 0)):
        report(f"note: {note}")
    return Loaded(train, validation, locked)


def _counted(step: Step, phase: str, count: int) -> Callable[[str], None]:
    numbers = iter(range(count))
    return lambda case: step(phase, next(numbers), count, case)


@dataclass(frozen=True)
class Trained:
    """The patients that a checkpoint was trained and validated on, without their names.

    Attributes:
        train, validation: of each patient the hashes `sha256` and `labels_sha256`.
    """

    train: tuple[tuple[str, str], ...]
    validation: tuple[tuple[str, str], ...]

    @classmethod
    def of(cls, train: Sequence[Patient], validation: Sequence[Patient]) -> Trained:
        """Of loaded patients."""
        pairs = (tuple((each.sha256, each.labels_sha256) for each in group) for group in (train, validation))
        return cls(*pairs)

    def record(self) -> dict[str, Any]:
        """As a field of a checkpoint's `progress`."""
        return {"train": [[*each] for each in self.train], "validation": [[*each] for each in self.validation]}


@dataclass(frozen=True)
class ResumeState:
    """How far a resumed run is, and on which patients."""

    epochs_done: int
    step: int
    patients: Trained

    @classmethod
    def recorded(cls, progress: Mapping[str, Any]) -> ResumeState:
        """Of a checkpoint's `progress`.

        Raises:
            RecordError: if it is not there, or of other types.
        """
        return convert({name: progress.get(name) for name in ("epochs_done", "step", "patients")}, cls)


def check_unchanged(last: Path, trained: Trained, train: Sequence[Patient], validation: Sequence[Patient]) -> None:
    """Check that a run goes on with the scans and label maps that it began with.

    Args:
        last: its `last.pt`, for messages.
        trained: what that records.
        train, validation: the patients now.

    Raises:
        InputError: with the patients that changed, or if there are more or fewer validation patients.
    """
    if len(trained.validation) != len(validation):
        raise InputError(
            f"--resume: found {len(validation)} validation patients, {last} has {len(trained.validation)}: epochs "
            "that were validated on others cannot be compared; start a new training with another --out"
        )
    scans, maps = [], []
    for before, patients in ((trained.train, train), (trained.validation, validation)):
        of_scan = dict(before)
        scans += [patient.name for patient in patients if patient.sha256 not in of_scan]
        known = [patient for patient in patients if patient.sha256 in of_scan]
        maps += [patient.name for patient in known if of_scan[patient.sha256] != patient.labels_sha256]
    if not scans and not maps:
        return
    changed = [f"the label maps of {named(maps)}"] * bool(maps)
    changed += [f"the scans of {named(scans)} (or their list in splits.json)"] * bool(scans)
    raise InputError(
        f"--resume: {' and '.join(changed)} changed after {last} was written; a corrected contour needs a new "
        "training: start it with another --out"
    )
