"""Checks that no test or validation patient is or was trained on, by hashes of the scans' voxels."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from parotid_seg.errors import InputError, ScanError
from parotid_seg.scan.intensity import Window
from parotid_seg.scan.seen import Seen
from parotid_seg.train.data.data_set import DataSet, named
from parotid_seg.train.data.patients import Patient, decoded


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
