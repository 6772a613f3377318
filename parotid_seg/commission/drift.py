"""Compares a commissioning with an earlier one: whose masks differ, how, and what else is different."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from parotid_seg.commission.conditions import LABELS, changes, in_words
from parotid_seg.commission.faults import Signs, faults_in, signs_of
from parotid_seg.commission.record import (
    NAME,
    ConditionChange,
    DriftRecord,
    Earlier,
    MaskChange,
    MaskRecord,
    read_commission,
)
from parotid_seg.errors import InputError, OutputError, ScanError
from parotid_seg.files import is_real_file, is_taken, make_folder_in
from parotid_seg.metrics import dice
from parotid_seg.runtime.label_match import LabelMatch, match_labels
from parotid_seg.runtime.pipeline.ownership import PAGE
from parotid_seg.scan.nifti import check_same_voxels, read_mask
from parotid_seg.wording import Say, some_of

EARLIER, MASKS, AGAINST, EXAMPLE = "earlier", "masks", "against", "example"
"""Folders of a commissioning: earlier ones of the same folder, masks of the patients, those of the other model, and
that of the example."""
EXAMPLE_NAME = "the packaged example"
MARK = b'<meta name="generator" content="parotid-seg commission">'
"""What every page of a commissioning has near its beginning."""
MOST_HEAD = 4096
"""Bytes of a page in which `MARK` is."""
MOST_NAMED = 8
"""Most conditions in the verdict; the record and the page have all."""


def begin_in(out: Path, say: Say) -> Earlier | None:
    """Set a complete commissioning of a folder aside; returns the one to compare with, that ended last.

    Raises:
        InputError: if an earlier one cannot be read.
        OutputError: if the folder has a page that no commissioning has written, or one of its folders is a link.
    """
    for name in (EARLIER, MASKS, AGAINST, EXAMPLE):
        if is_taken(out / name):
            make_folder_in(out, name)
    before = newest(out)
    if is_taken(out / NAME):
        last = read_commission(out)
        folder = set_aside(out, last.record.ended)
        say(f"the commissioning of {last.record.ended[:10]} is moved to {folder}")
        return replace(last, path=folder / NAME)
    if is_taken(out / PAGE) and not _is_ours(out / PAGE):
        raise OutputError("exists and was not written by commission; choose another --out", path=out / PAGE)
    return before


def _is_ours(page: Path) -> bool:
    try:
        with page.open("rb") as file:
            return MARK in file.read(MOST_HEAD)
    except OSError:
        return False


def set_aside(out: Path, ended: str) -> Path:
    """Move the results of a complete commissioning into a folder of its own below, so that a new one can be made.

    The record, which makes it complete, is moved last: a call that was interrupted is completed by the next one.

    Args:
        out: folder of the commissioning.
        ended: when it ended.

    Returns:
        The folder.

    Raises:
        OutputError: if a folder cannot be made.
    """
    above, date = make_folder_in(out, EARLIER), ended.replace(":", "").replace("+0000", "Z")
    numbered = itertools.chain([date], (f"{date}-{number}" for number in itertools.count(2)))
    folder = make_folder_in(above, next(name for name in numbered if not is_taken(above / name / NAME)))
    for name in (PAGE, MASKS, AGAINST, EXAMPLE, NAME):
        if (out / name).exists():
            (out / name).rename(folder / name)
    return folder


def newest(out: Path) -> Earlier | None:
    """The earlier commissioning of a folder that ended last; None if there is none. Other folders there are ignored.

    Raises:
        InputError: if a record cannot be read.
    """
    records = [read_commission(path) for path in (out / EARLIER).glob("*") if is_real_file(path / NAME)]
    return max(records, key=lambda each: each.record.ended, default=None)


def compare_with(
    earlier: Earlier,
    out: Path,
    now: Mapping[str, MaskRecord],
    example: MaskRecord | None,
    conditions_now: Mapping[str, str],
) -> DriftRecord:
    """Compare the masks of this run with earlier ones.

    Args:
        earlier: the earlier run.
        out: folder of this run.
        now: masks of this run, by patient.
        example: that of the packaged example; None if there is none.
        conditions_now: see `CommissionRecord`.

    Raises:
        ScanError: if a mask of this run cannot be read.
    """
    before = earlier.record.masks
    both = {name: (before[name], now[name]) for name in now if name in before}
    places = dict.fromkeys(both, MASKS)
    if example and earlier.record.example:
        both[EXAMPLE_NAME] = (earlier.record.example, example)
        places[EXAMPLE_NAME] = EXAMPLE
    conditions = changes(earlier.record.conditions, conditions_now)
    labels_differ = any(each.name == LABELS for each in conditions)
    signs: dict[str, Signs] = {}
    changed, notes = [], _drift_before(earlier)
    for name, (old, new) in both.items():
        equal = old.voxels_sha256 == new.voxels_sha256
        if equal and not labels_differ:
            continue
        dsc, sign, note = _compared(earlier.path.parent / places[name] / old.mask, out / places[name] / new.mask)
        if equal and dsc == 1:  # labels that are only spelled otherwise
            continue
        notes += [note] if note else []
        signs |= {name: sign} if sign else {}
        changed.append(_change(name, old, new, dsc))
    changed.sort(key=lambda each: -1.0 if each.dsc is None else each.dsc)
    different = {each.patient for each in changed}
    notes += _inputs_changed({name: pair for name, pair in both.items() if name not in different})
    return DriftRecord(
        earlier=str(earlier.path),
        date=earlier.record.ended,
        verdict=_verdict(earlier.record.ended, len(both), EXAMPLE_NAME in both, changed, conditions),
        compared=len(both),
        changed=changed,
        conditions=conditions,
        faults=faults_in(signs, "earlier masks", "cases"),
        added=[name for name in now if name not in before],
        gone=[name for name in before if name not in now],
        notes=list(dict.fromkeys(notes)),
    )


def _drift_before(earlier: Earlier) -> list[str]:
    """A remark if the earlier masks had themselves changed: equal masks then do not mean those of the beginning."""
    drift = earlier.record.drift
    if not drift or not drift.changed:
        return []
    return [
        f"{len(drift.changed)} of the {drift.compared} earlier masks themselves differed from those of "
        f"{drift.date[:10]}; --earlier compares with those: {drift.earlier}"
    ]


def _change(name: str, old: MaskRecord, new: MaskRecord, dsc: float | None) -> MaskChange:
    """The record of a mask that differs."""
    structures = dict.fromkeys([*new.volumes_ml, *old.volumes_ml])
    sizes = {each: new.volumes_ml.get(each, 0.0) - old.volumes_ml.get(each, 0.0) for each in structures}
    inputs = {
        "scan": old.scan_sha256 != new.scan_sha256,
        "reference": old.reference_sha256 != new.reference_sha256,
    }
    return MaskChange(
        patient=name,
        dsc=dsc,
        volumes_ml={each: round(size, 3) for each, size in sizes.items()},
        input_changed=[each for each, is_other in inputs.items() if is_other],
    )


def lowest_dsc(drift: DriftRecord) -> float | None:
    """The lowest DSC between the masks of both runs, 1 if all are equal; NaN if an earlier mask that differs is not
    there, None if no mask was compared."""
    if not drift.compared:
        return None
    if any(each.dsc is None for each in drift.changed):
        return math.nan
    return min((each.dsc for each in drift.changed if each.dsc is not None), default=1.0)


def _compared(old: Path, new: Path) -> tuple[float | None, Signs | None, str]:
    """Lowest DSC of a structure between two masks, and how they differ; or why that cannot be told.

    A structure of one of them only has a DSC of 0.
    """
    if not is_real_file(old):
        return None, None, f"earlier masks are not beside their record: no such folder or file as {old}"
    try:
        check_same_voxels(new, old)
        labels: LabelMatch = match_labels(new, old)
        stored, earlier = read_mask(new)[0], read_mask(old)[0]
    except (InputError, ScanError) as error:
        return None, None, f"cannot be compared with the earlier mask: {error}"
    mask, other, _ = labels.common(stored, earlier)
    lost = any(
        np.count_nonzero(before) > np.count_nonzero(after) for before, after in ((stored, mask), (earlier, other))
    )
    dsc = 0.0 if lost else min(dice(mask == value, other == value) for value in range(1, len(labels.names)))
    return dsc, signs_of(mask, other, labels.names), ""


def _inputs_changed(same: Mapping[str, tuple[MaskRecord, MaskRecord]]) -> Iterator[str]:
    """Remarks on equal masks whose files have changed."""
    for what, field in (("scan", "scan_sha256"), ("reference", "reference_sha256")):
        names = [name for name, (old, new) in same.items() if getattr(old, field) != getattr(new, field)]
        if names:
            yield f"the file of the {what} has changed, the mask has not: {some_of(names)}"


def _verdict(
    date: str, compared: int, with_example: bool, changed: Sequence[MaskChange], conditions: Sequence[ConditionChange]
) -> str:
    since = f"those of {date[:10]}"
    different = some_of(map(in_words, conditions), MOST_NAMED, separator="; ")
    if not changed and compared == with_example:
        alone = f"; the mask of {EXAMPLE_NAME} is equal" if with_example else ""
        return f"no drift can be told: no patient is in this run and in that of {date[:10]}{alone}"
    if not changed:
        without = f"; different without effect on a mask: {different}" if different else ""
        return f"no drift: all {compared} masks are equal to {since}{without}"
    text = f"drift: {len(changed)} of {compared} masks differ from {since}"
    each_dsc = (f"{each.patient}: DSC {each.dsc:.3f}" if each.dsc is not None else each.patient for each in changed)
    text += f" ({some_of(list(each_dsc))})"
    scans = [each.patient for each in changed if "scan" in each.input_changed]
    reasons = [f"the scans of {some_of(scans)}"] if scans else []
    reasons += [different] if different else []
    if not reasons:
        return f"{text}; nothing that is recorded is different: scans, model, options, engine, versions and machine"
    return f"{text}; different since then: {'; '.join(reasons)}"
