"""Checks of loaded patients before training: warnings of their scans, errors and remarks of their label maps."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from parotid_seg.contract import Grid
from parotid_seg.errors import InputError
from parotid_seg.flags import DOUBTFUL_PLACE, Flag
from parotid_seg.scan.grid import MOST_OUTSIDE, share_outside
from parotid_seg.scan.labels import LEFT, RIGHT, is_parotid, is_usual_volume, mirrored_labels, side_of
from parotid_seg.scan.sides import WIDEST_MM, width_mm
from parotid_seg.train.config import TrainConfig
from parotid_seg.train.data.data_set import DataSet, named
from parotid_seg.train.data.patients import HU_DOUBTS, Patient

ASIDE_MM = 20.0
"""A structure whose middle lies so far (mm) beside the patient's has a side. Parotid glands lie 44 mm or more away."""
FEWEST_TO_JUDGE = 3
"""If it does in each of at least so many patients, its label should have a name with a side."""


def warnings(patients: Sequence[Patient]) -> list[str]:
    """A line each on scans that may not be in HU, whose header is doubtful, or whose slices do not fit each other."""
    of = f"of {len(patients)} scans"
    lines = []
    if found := _flagged(patients, lambda flag: flag.code in HU_DOUBTS):
        lines.append(f"{len(found)} {of} may not be in HU: {_with_codes(found)}; `parotid-seg inspect FILE` says why")
    if found := _flagged(patients, lambda flag: flag.code in DOUBTFUL_PLACE):
        lines.append(
            f"the header of {len(found)} {of} is unclear about sides or sizes: {_with_codes(found)}; `parotid-seg "
            "inspect FILE` says why"
        )
    if found := _flagged(patients, lambda flag: flag.code not in HU_DOUBTS | DOUBTFUL_PLACE):
        told = (f"{name} ({', '.join(f'{each.code}: {each.detail}' for each in flags)})" for name, flags in found)
        lines.append(
            f"slices of {len(found)} {of} do not fit their neighbours: {named(told)}; are they damaged, repeated, or "
            "in another order?"
        )
    return [f"warning: {line}" for line in lines]


def _flagged(patients: Sequence[Patient], of_kind: Callable[[Flag], bool]) -> list[tuple[str, list[Flag]]]:
    """Names and flags of the patients who have flags of a kind."""
    found = [(each.name, [flag for flag in each.volume.flags if of_kind(flag)]) for each in patients]
    return [(name, flags) for name, flags in found if flags]


def _with_codes(found: Sequence[tuple[str, list[Flag]]]) -> str:
    return named(f"{name} ({', '.join(flag.code for flag in flags)})" for name, flags in found)


def check_labels(
    data: DataSet, train: Sequence[Patient], validation: Sequence[Patient], config: TrainConfig
) -> list[str]:
    """Check that label maps contain structures for training and validation. Of a patient who has none but soft labels,
    the map of the largest shares is checked.

    Args:
        data: the data set.
        train, validation: its patients.
        config: the run's.

    Returns:
        Remarks, one line each.

    Raises:
        InputError: if label maps are empty, show left and right structures on the other side, or have both parotid
            glands in one label, with their patients. Single maps of other organs may be empty.
    """
    if not data.label_folder:
        return []
    folder = data.folder / data.label_folder
    empty = [each.name for each in (*train, *validation) if each.contoured and not any(each.shown_in)]
    if empty and not data.partly_contoured:
        raise InputError(
            f"found no voxel of any label in the label maps of {named(empty)}, expected some in each; patients "
            "without any belong in no list of splits.json",
            path=folder,
        )
    if swapped := [each.name for each in (*train, *validation) if _is_swapped(each, data.labels)]:
        raise InputError(
            f"left and right are swapped in {len(swapped)} of {len(train) + len(validation)} label maps: "
            f"{named(swapped)}; expected the patient's left and right, as scan and label map state them",
            path=folder,
        )
    if joined := [each.name for each in (*train, *validation) if _has_both_sides(each, data.labels)]:
        raise InputError(
            f"a parotid gland is wider than {WIDEST_MM:.0f} mm from side to side in {len(joined)} of "
            f"{len(train) + len(validation)} label maps: {named(joined)}; expected one gland in each label",
            path=folder,
        )
    for patients, what in ((train, "training"), (validation, "validation")):
        if not any(any(patient.shown_in) for patient in patients):
            raise InputError(f"found no voxel of any organ in the {what} patients' label maps", path=folder)
    mirrored, patients = config.augment.mirror_probability > 0, (*train, *validation)
    return [
        *_remarks_on_labels(data, train, mirrored),
        *_remarks_on_patients(data, patients),
        *_remarks_on_places(data, patients, config.grid),
    ]


def _remarks_on_labels(data: DataSet, train: Sequence[Patient], mirrored: bool) -> Iterator[str]:
    """On labels that no training patient shows, or that have a side which their name does not say."""
    for value, name in enumerate(data.labels[1:], start=1):
        offsets_mm = [_left_of_middle_mm(patient, value) for patient in train if patient.shown_in[value]]
        if not offsets_mm:
            yield f"no training patient's label map shows {name}"
        elif mirrored and not side_of(name) and len(offsets_mm) >= FEWEST_TO_JUDGE:
            for side, sign in ((LEFT, 1), (RIGHT, -1)):
                if min(sign * off for off in offsets_mm) > ASIDE_MM:
                    yield (
                        f"{name} lies on the patient's {side} in all {len(offsets_mm)} training patients, but its name "
                        "says no side that is known: scans seen in the mirror show it on the other side as well"
                    )


def _remarks_on_patients(data: DataSet, patients: Sequence[Patient]) -> Iterator[str]:
    """On label maps that lack a structure, on parotid glands of unusual volume, and on scans that occur twice."""
    for value, name in enumerate(data.labels[1:], start=1):
        shown = [each for each in patients if each.shown_in[value]]
        lacking = [each.name for each in patients if not each.shown_in[value]]
        if shown and lacking and not data.partly_contoured:
            yield f"label maps without {name}, which is learnt as background there: {named(lacking)}"
        volumes = ((each.name, int(_profile(each, value).sum()) * each.volume.voxel_ml) for each in shown)
        if unusual := [f"{who} ({ml:.1f} ml)" for who, ml in volumes if not is_usual_volume(name, ml)]:
            yield f"{name}: unlikely volumes: {named(unusual)}"
    of_scan: dict[str, list[str]] = {}
    for each in patients:
        of_scan.setdefault(each.sha256, []).append(each.name)
    if repeated := [" and ".join(names) for names in of_scan.values() if len(names) > 1]:
        yield f"scans of the same voxels under several names: {named(repeated)}; one patient counts for several"


def _remarks_on_places(data: DataSet, patients: Sequence[Patient], grid: Grid) -> Iterator[str]:
    """On structures that lie in part outside the grid, which is around the middle of the body."""
    beyond = []
    for each in patients:
        for value, name in enumerate(data.labels[1:], start=1):
            if slices := each.shown_in[value]:
                area = np.count_nonzero(each.labels[list(slices)] == value, axis=0)
                share = share_outside(area, each.volume.spacing_mm[1:], each.centre_mm, grid)
                beyond += [f"{each.name} ({name} {share:.0%})"] if share > MOST_OUTSIDE else []
    if beyond:
        yield (
            f"structures that lie in part outside the {grid.size * grid.spacing_mm:.0f} mm wide grid around the body's "
            f"middle, and cannot be learnt or found there: {named(beyond)}; crop these scans to the head"
        )


def _is_swapped(patient: Patient, names: Sequence[str]) -> bool:
    """Whether a left structure lies to the right of its counterpart, or a left parotid gland alone far on the right.

    Of other organs a left part may lie there.
    """
    partners = mirrored_labels(names)
    left_mm = {
        value: _left_of_middle_mm(patient, value)
        for value, name in enumerate(names)
        if patient.shown_in[value] and side_of(name)
    }
    for value, offset_mm in left_mm.items():
        partner = partners[value]
        alone = partner == value or partner not in left_mm
        if alone and not is_parotid(names[value]):
            continue
        aside_mm = offset_mm - (0.0 if alone else left_mm[partner])
        if (aside_mm if side_of(names[value]) == RIGHT else -aside_mm) > (ASIDE_MM if alone else 0.0):
            return True
    return False


def _has_both_sides(patient: Patient, names: Sequence[str]) -> bool:
    """Whether a label of one parotid gland has the other one as well."""
    return any(
        width_mm(_profile(patient, value), patient.volume.spacing_mm[2]) > WIDEST_MM
        for value, name in enumerate(names)
        if patient.shown_in[value] and is_parotid(name) and side_of(name)
    )


def _left_of_middle_mm(patient: Patient, value: int) -> float:
    """Distance of a structure from the body's middle to the patient's left; columns run to the patient's left."""
    counts = _profile(patient, value)
    column = float(counts @ np.arange(len(counts)) / counts.sum())
    return column * patient.volume.spacing_mm[2] - patient.centre_mm[1]


def _profile(patient: Patient, value: int) -> NDArray[np.integer]:
    """The voxels of a structure in each column."""
    return np.asarray(np.count_nonzero(patient.labels[list(patient.shown_in[value])] == value, axis=(0, 1)), np.int64)
