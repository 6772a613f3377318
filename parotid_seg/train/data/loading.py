"""Reads all patients of a stage, each process its share first, and says when one has changed since a checkpoint.

By hashes of the scans' voxels it checks that no test or validation patient is or was trained on.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from parotid_seg.errors import InputError, ScanError
from parotid_seg.records import convert
from parotid_seg.scan.intensity import Window
from parotid_seg.scan.seen import Seen
from parotid_seg.train.config import TrainConfig
from parotid_seg.train.data.checks import check_labels, warnings
from parotid_seg.train.data.data_set import DataSet, named
from parotid_seg.train.data.patients import Patient, decoded, load_patients
from parotid_seg.train.parallel import Processes
from parotid_seg.wording import Say, by_axes, counted

Step = Callable[[str, int, int, str], None]
"""Called before each step with the phase, the steps done, their number, and the step's name."""


def announced(data: DataSet, config: TrainConfig) -> list[str]:
    """Lines on the length of a stage, its patients, and those that are held out or locked."""
    schedule = config.schedule
    steps = f"{schedule.steps:,} step{'' if schedule.steps == 1 else 's'}"
    length = f"{counted(schedule.epochs, 'epoch')} of {schedule.images_per_epoch:,} slices"
    length += f" ({steps} of {schedule.batch_size} slices in all)"
    trained = f"stage {config.stages[-1]}: {length}; trains on {len(data.train)} patients"
    held_out = f", validates on {len(data.validation)}: {', '.join(data.validation)}" if data.validation else ""
    locked = f"locked for a test, never used here: {len(data.test)}: {', '.join(data.test)}"
    return [trained + held_out, *([locked] if data.test else [])]


def load_all(
    data: DataSet, config: TrainConfig, cache: Path, processes: Processes, report: Say, step: Step
) -> tuple[list[Patient], list[Patient], dict[str, str]]:
    """Decode the scans and label maps of a data set.

    Args:
        data, config, cache: see `load_patients`.
        processes: each decodes its share; then it finds the rest in the cache, unless caches are separate.
        report: called with one line for each remark.
        step: called before each scan.

    Returns:
        Training and validation patients in the order of the data set, and hashes of the test patients' scans by name.

    Raises:
        ScanError, InputError: if one cannot be used, or a label map is empty.
    """
    cases = (*data.train, *data.validation)
    maps = " and label maps" if data.label_folder else ""
    report(f"reading scans{maps} of {len(cases)} patients")
    for part in (cases[processes.rank :: processes.count], cases):
        patients = load_patients(data, part, cache, config.window_hu, _counted(step, "reading scans", len(part)))
        processes.barrier()
    for warning in warnings(patients):
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
    for note in (*notes, *check_labels(data, train, validation, config)):
        report(f"note: {note}")
    return train, validation, locked


def _counted(step: Step, phase: str, count: int) -> Callable[[str], None]:
    numbers = iter(range(count))
    return lambda case: step(phase, next(numbers), count, case)


@dataclass(frozen=True)
class Trained:
    """The patients that a checkpoint was trained and validated on, without their names.

    Attributes:
        train, validation: of each patient the scan, by `_scan_of`, and `labels_sha256`.
    """

    train: tuple[tuple[str, str], ...]
    validation: tuple[tuple[str, str], ...]

    @classmethod
    def of(cls, train: Sequence[Patient], validation: Sequence[Patient]) -> Trained:
        """Of loaded patients."""
        pairs = (tuple((_scan_of(each), each.labels_sha256) for each in group) for group in (train, validation))
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


def _scan_of(patient: Patient) -> str:
    """A scan's hash and spacing."""
    return f"{patient.sha256} {by_axes(patient.volume.spacing_mm)}"


def _pairs_of(patient: Patient) -> list[tuple[str, str]]:
    """Hashes of a scan and of its labels, as a checkpoint has them; older ones have no spacing of the scan."""
    return [(scan, patient.labels_sha256) for scan in (_scan_of(patient), patient.sha256)]


def in_recorded_order(trained: Trained, train: Sequence[Patient]) -> list[Patient]:
    """The training patients of a resumed run in the order in which it began, by which slices are drawn.

    Args:
        trained: what its `last.pt` records.
        train: after `check_unchanged`.
    """
    places = {pair: place for place, pair in enumerate(trained.train)}
    return sorted(train, key=lambda patient: min(places.get(pair, len(places)) for pair in _pairs_of(patient)))


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
        known, left = {scan for scan, _ in before}, Counter(before)
        for patient in patients:
            pairs = _pairs_of(patient)
            same = next((pair for pair in pairs if left[pair]), None)
            left.subtract([same] if same else [])
            if known.isdisjoint(scan for scan, _ in pairs):
                scans.append(patient.name)
            elif same is None:
                maps.append(patient.name)
    if not scans and not maps:
        return
    changed = [f"the label maps of {named(maps)}"] * bool(maps)
    changed += [f"the scans of {named(scans)} (or their list in splits.json)"] * bool(scans)
    raise InputError(
        f"--resume: {' and '.join(changed)} changed after {last} was written; a corrected contour needs a new "
        "training: start it with another --out"
    )


def hashes_of(
    data: DataSet,
    cases: Sequence[str],
    what: str,
    cache: Path,
    window_hu: Window,
    progress: Callable[[str], None] = lambda _: None,
) -> tuple[dict[str, str], list[str]]:
    """Hashes of the scans of patients on whom nothing is trained (see `Patient.sha256`).

    Args:
        data, cache, window_hu: see `load_patients`.
        cases: the patients.
        what: they are: "test" or "validation".
        progress: called with each one's name.

    Returns:
        The hashes by name, and notes on scans that cannot be compared.
    """
    hashes, notes = {}, []
    folders = "imagesTr or imagesTs" if what == "test" else "imagesTr"
    for case in cases:
        progress(case)
        if not data.image_path(case).exists():
            notes.append(f"{what} patient {case}: no scan in {folders}, so not compared with others")
            continue
        try:
            hashes[case] = decoded(data, case, cache, window_hu)[1].sha256
        except ScanError as error:
            notes.append(f"{what} patient {case}: not compared with other scans, since it cannot be read: {error}")
    return hashes, notes


def check_held_out(folder: Path, train: Sequence[Patient], held_out: Mapping[str, str]) -> None:
    """Check that no validation patient's scan is trained on.

    Args:
        folder: of the data set, for messages.
        train: training patients of the run.
        held_out: hashes of the validation patients' scans by name.

    Raises:
        InputError: if one is.
    """
    of_hash = {sha256: name for name, sha256 in held_out.items()}
    if doubles := [f"{patient.name} and {of_hash[patient.sha256]}" for patient in train if patient.sha256 in of_hash]:
        raise InputError(
            f"found scans of the same voxels in training and validation: {named(doubles)}; expected each scan once",
            path=folder,
        )


def seen_in(seen: Seen, validation: Sequence[Patient]) -> dict[str, int]:
    """As fields of a checkpoint's `training`: how many validation patients the initial weights were trained on, if
    any."""
    count = sum(seen.has(patient.sha256) for patient in validation)
    return {"validation_patients_seen": count} if count else {}


def check_leaks(
    source: str, seen: Seen, train: Sequence[Patient], validation: Sequence[Patient], locked: Mapping[str, str]
) -> list[str]:
    """Check that no test patient is or was trained on.

    Args:
        source: of the initial weights, for messages.
        seen: what they were trained on.
        train, validation: patients of the run.
        locked: hashes of the test patients' scans by name.

    Returns:
        Remarks, one line each.

    Raises:
        InputError: if a test patient's scan is also one of `train` or `validation`, or the source was trained on it.
    """
    for patients, what in ((train, "training"), (validation, "validation")):
        used = {patient.sha256: patient.name for patient in patients}
        if doubles := [f"{name} and {used[sha256]}" for name, sha256 in locked.items() if sha256 in used]:
            raise InputError(f"splits.json: found scans of the same voxels in test and {what}: {named(doubles)}")
    if leaks := [name for name, sha256 in locked.items() if seen.has(sha256)]:
        raise InputError(
            f"--init {source}: was trained on the test patients {named(leaks)}, who would seem better than others; "
            "take them from the list 'test' of splits.json, or start from another model"
        )
    notes = []
    if known := [patient.name for patient in validation if seen.has(patient.sha256)]:
        notes.append(f"--init {source}: was trained on {named(known)}, so their validation_dsc is too high")
    if not seen.complete:
        notes.append(
            f"--init {source}: does not record which scans it was trained on; whether test or validation patients are "
            "among them is not checked"
        )
    return notes
