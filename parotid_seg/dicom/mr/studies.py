"""Chooses the MR series of a study that become the channels of one scan.

Nothing is guessed: a study is refused if a sequence is missing, if several series could be one channel, or if they do
not share a frame of reference.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from parotid_seg.dicom.mr.sequences import ANY, sequence_named, sequence_of
from parotid_seg.dicom.read.find import Takes
from parotid_seg.dicom.read.series import Series, series_key
from parotid_seg.errors import ScanError
from parotid_seg.scan.codes import plain
from parotid_seg.scan.intensity import is_ct
from parotid_seg.scan.search import Skipped

PLANES = ("sagittal", "coronal", "axial")
"""Planes by the patient's axis (x, y, z) that is nearest to the slices' normal."""
PREFERRED = ("axial", "coronal", "sagittal")
COVERS_MORE = 1.25
"""A series is chosen over others of its plane if its slices extend at least so many times as far."""

Sequences = Mapping[Series, str]
"""The sequence of each series."""
Scan = tuple[Series, ...]
"""The series of a scan's channels, in the model's order."""


def kinds_taken(channels: Sequence[str]) -> Takes:
    """The kinds of series that a model takes, by its channels' names."""
    modalities = frozenset("CT" if is_ct(channel) else "MR" for channel in channels)
    sequences = {sequence_named(channel) for channel in channels}
    mr_sequences = None if sequences & {None, ANY} else frozenset(filter(None, sequences))
    return Takes(modalities, mr_sequences, ", ".join(map(plain, channels)))


def scans_of(series: Iterable[Series], channels: Sequence[str]) -> tuple[list[Scan], list[ScanError], list[Skipped]]:
    """Group series into scans for a model.

    For a model with several channels a study is one scan: a series for each channel, in the channels' order. For a
    model with one channel every series of its sequence is a scan. Series of different patients are of different
    studies, whatever their StudyInstanceUIDs.

    Args:
        series: of the modalities that the model takes.
        channels: the model's channel names.

    Returns:
        The scans; an error for each study that cannot be used; and the unused series of the other studies.
    """
    scans: list[Scan] = []
    errors: list[ScanError] = []
    left_out: list[Skipped] = []
    sequences = [sequence_named(channel) for channel in channels]
    studies = defaultdict(list)
    for each in series:
        studies[each.patient, each.study_uid or str(each.folder)].append(each)
    for all_of_study in studies.values():
        study, copies = _without_copies(all_of_study) if len(channels) > 1 else (all_of_study, [])
        left_out += [_left_out(each, "copies of images that are used") for each in copies]
        try:
            study_scans, unused = _scans_of_study(study, channels, sequences)
        except ScanError as error:
            errors.append(error)
        else:
            scans += study_scans
            left_out += unused
    return scans, errors, left_out


def folder_of(series: Sequence[Series]) -> Path:
    """The deepest folder that holds all of some series."""
    return Path(os.path.commonpath([each.folder for each in series]))


def _without_copies(study: Sequence[Series]) -> tuple[list[Series], list[Series]]:
    """Series without repetitions, and the series that repeat the images of an earlier one."""
    originals: dict[tuple[tuple[str, int | None], ...], Series] = {}
    copies = []
    for each in study:
        images = tuple((one.sop_instance_uid, one.frame) for one in each.slices)
        if originals.setdefault(images, each) is not each:
            copies.append(each)
    return list(originals.values()), copies


def _scans_of_study(
    study: Sequence[Series], channels: Sequence[str], expected: Sequence[str | None]
) -> tuple[list[Scan], list[Skipped]]:
    """The scans of a study, and its unused series.

    Raises:
        ScanError: if there are none.
    """
    if expected in (["CT"], [ANY]):
        return [(each,) for each in study], []
    folder, title = folder_of(study), _title_of(study[0].study_uid)
    for channel, sequence in zip(channels, expected, strict=True):
        if sequence is None or (sequence == ANY and len(channels) > 1):
            raise ScanError(
                f"{title}: the model's channel {plain(channel)} names no MR sequence that DICOM headers tell, expected "
                "one such as T1, T1C, T2, T2 FS or STIR; NIfTI files can be used",
                path=folder,
            )
    sequences = {each: sequence_of(each) for each in study}
    candidates = [[each for each in study if sequences[each] == sequence] for sequence in expected]
    missing = [channel for channel, some in zip(channels, candidates, strict=True) if not some]
    if missing:
        raise ScanError(
            f"{title}: no {' and no '.join(missing)} series, expected {', '.join(channels)}; "
            f"found {_listed(sequences)}",
            path=folder,
        )
    if len(channels) == 1:
        used = dict.fromkeys(candidates[0])
        scans: list[Scan] = [(each,) for each in candidates[0]]
    else:
        try:
            _check_frame_of_reference(candidates, sequences)
            scan = tuple(_chosen(candidates, channels))
        except ScanError as error:
            raise ScanError(f"{title}: {error.reason}", path=folder) from None
        scans, used = [scan], dict.fromkeys(scan)
    used_by_sequence = {sequences[each]: each for each in used}
    return scans, [
        _left_out(each, _why_not(each, sequences[each], channels, used_by_sequence))
        for each in study
        if each not in used
    ]


def _title_of(study_uid: str) -> str:
    """A study's title in messages, such as "study 1f0c2a9b"."""
    return f"study {series_key(study_uid)}" if study_uid else "study without a UID"


def _listed(sequences: Sequences) -> str:
    """Series with their sequences, by number."""
    in_order = sorted(sequences.items(), key=lambda item: (item[0].number or 0, item[0].title))
    return ", ".join(f"{sequence}: {each.title}" for each, sequence in in_order)


def _check_frame_of_reference(candidates: Sequence[Sequence[Series]], sequences: Sequences) -> None:
    """Raise ScanError unless all series have the same frame of reference, because others share no coordinates."""
    frames: dict[str, dict[Series, str]] = defaultdict(dict)
    for each in (each for some in candidates for each in some):
        frames[each.frame_of_reference_uid][each] = sequences[each]
    if "" in frames:
        raise ScanError(f"no frame of reference in {_listed(frames[''])}; expected one for all channels")
    if len(frames) > 1:
        listed = "; ".join(map(_listed, frames.values()))
        raise ScanError(f"found {len(frames)} frames of reference ({listed}), expected one for all channels")


def _chosen(candidates: Sequence[Sequence[Series]], channels: Sequence[str]) -> list[Series]:
    """A series for each channel.

    Of several series, those in the plane that most channels have are preferred (axial before coronal before sagittal);
    of these the one that extends farthest along its slices' normal, by the factor `COVERS_MORE`.

    Raises:
        ScanError: if several remain.
    """
    planes = [{_plane_of(each) for each in some} for some in candidates]
    common = max(PREFERRED, key=lambda plane: sum(plane in each for each in planes))
    chosen = []
    for channel, some in zip(channels, candidates, strict=True):
        in_plane = [each for each in some if _plane_of(each) == common] or list(some)
        first, *others = sorted(in_plane, key=_reach_mm, reverse=True)
        rivals = [each for each in others if _reach_mm(each) * COVERS_MORE > _reach_mm(first)]
        if rivals:
            titles = " and ".join(each.title for each in in_plane if each is first or each in rivals)
            raise ScanError(f"{len(rivals) + 1} series could be {channel}, expected one: {titles}")
        chosen.append(first)
    return chosen


def _plane_of(series: Series) -> str:
    normal = np.cross(series.affine[:3, 2], series.affine[:3, 1])
    return PLANES[int(np.abs(normal).argmax())]


def _reach_mm(series: Series) -> float:
    """Extent of the slices along their normal, in mm."""
    normal = np.cross(series.affine[:3, 2], series.affine[:3, 1])
    step = abs(float(series.affine[:3, 0] @ normal)) / float(np.linalg.norm(normal))
    return step * len(series.slices)


def _why_not(series: Series, sequence: str, channels: Sequence[str], used_by_sequence: Mapping[str, Series]) -> str:
    """Why a series is not used.

    Args:
        series: the series.
        sequence: its sequence.
        channels: the model's channel names.
        used_by_sequence: the used series, by sequence.
    """
    if sequence not in used_by_sequence:
        return f"{sequence}, the model takes {', '.join(channels)}"
    used = used_by_sequence[sequence]
    return f"{sequence}, {_extent(series)}; taken was {used.title}, {_extent(used)}"


def _extent(series: Series) -> str:
    return f"{_plane_of(series)}, over {_reach_mm(series):.0f} mm"


def _left_out(series: Series, reason: str) -> Skipped:
    files = tuple(dict.fromkeys(each.path for each in series.slices))
    kind = f"{series.modality} series"
    return Skipped(series.folder, f"{series.title}: {reason}", len(files), kind=kind, files=files)
