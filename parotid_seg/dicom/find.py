"""CT and MR series among any files, by what their headers say; and whatever is not one, with the reason."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from pydicom.uid import UID_dictionary

from parotid_seg.dicom.discreet import discreet
from parotid_seg.dicom.file import DicomFile, kind_in_meta, read_dicom
from parotid_seg.dicom.frame import Frame, Owner, frames_of, owner_of
from parotid_seg.dicom.groups import MODALITIES
from parotid_seg.dicom.series import Series, series_key, series_title
from parotid_seg.dicom.stack import Stack, stacks_of
from parotid_seg.dicom.values import NoScan, Unusable, text_of
from parotid_seg.errors import ScanError
from parotid_seg.scan.geometry import check_spacing
from parotid_seg.scan.nifti import check_extent
from parotid_seg.scan.volume import Orientation


@dataclass(frozen=True)
class LeftOut:
    """Files that are not used, for one reason.

    Attributes:
        path: the file, or the deepest folder that holds all of them.
        reason: in one line, without text from the files.
        count: files.
        refused: whether they are, or may be, a scan that ought to be used: one that is damaged or incomplete.
        stray: whether they are no DICOM at all: empty, gone, or of another format.
    """

    path: Path
    reason: str
    count: int = 1
    refused: bool = False
    stray: bool = False

    def __str__(self) -> str:
        return str(self.as_error())

    def as_error(self, expected: str = "") -> ScanError:
        """The error to raise where such files are not to be passed over.

        Args:
            expected: what there should have been instead, for the message.
        """
        reason = self.reason + (f" ({self.count} files)" if self.count > 1 else "")
        return ScanError(_printable(f"{reason}; {expected}" if expected else reason), path=_printable(str(self.path)))


@dataclass(frozen=True)
class Found:
    """What some files hold.

    Attributes:
        series: CT and MR series that can be read, ordered by folder and number.
        left_out: all else.
    """

    series: tuple[Series, ...]
    left_out: tuple[LeftOut, ...]


@dataclass(frozen=True, eq=False)
class _Volume:
    """A series that can be read, unless something speaks against it."""

    owner: Owner
    series: Series
    derived: bool

    @property
    def paths(self) -> list[Path]:
        return [each.path for each in self.series.slices]


@dataclass
class _Gathered:
    """What the headers say, one file after the other."""

    frames: dict[Owner, list[Frame]] = field(default_factory=lambda: defaultdict(list))
    unusable: dict[Owner, list[tuple[Path, Unusable]]] = field(default_factory=lambda: defaultdict(list))
    unreadable: list[Path] = field(default_factory=list)
    reasons: dict[tuple[str, bool, bool], list[Path]] = field(default_factory=lambda: defaultdict(list))

    def leave(self, reason: str, *paths: Path, refused: bool = False, stray: bool = False) -> None:
        """Leave out files; those of one reason become one line."""
        self.reasons[reason, refused, stray] += paths

    def left_out(self) -> tuple[LeftOut, ...]:
        made = []
        for (reason, refused, stray), paths in self.reasons.items():
            files = list(dict.fromkeys(paths))
            made.append(LeftOut(files[0] if len(files) == 1 else _folder_of(files), reason, len(files), refused, stray))
        return tuple(sorted(made, key=lambda each: not each.refused))


def _printable(text: str) -> str:
    """Text on one line: names of files may hold anything."""
    return "".join(each if each.isprintable() else "_" for each in text)


def find_series(files: Iterable[Path]) -> Found:
    """Find CT and MR series among files of any kind and name, in any number of folders.

    Only headers are read. Images of one series are told apart by patient, study, frame of reference, size, spacing and
    orientation, and ordered by position. Series are refused that lack a slice or have one that does not fit. Images
    derived from others, such as reformats, are used if the study has no complete original series of the modality.
    """
    gathered = _Gathered()
    for path in dict.fromkeys(files):
        _gather(path, gathered)
    volumes = []
    for owner in dict.fromkeys((*gathered.frames, *gathered.unusable)):
        volumes += _volumes_of(owner, gathered)
    volumes = _without_damaged_folders(_told_apart(volumes), gathered)
    volumes = _without_derived([each for each in volumes if _is_head_scan(each, gathered)], gathered)
    found = sorted((each.series for each in volumes), key=lambda each: (str(each.folder), each.number or 0, each.key))
    return Found(tuple(found), gathered.left_out())


def _gather(path: Path, gathered: _Gathered) -> None:
    """Put one file's images where they belong, or leave it out."""
    try:
        _gather_file(path, gathered)
    except ScanError as error:
        kind = kind_in_meta(path)
        suspect = not kind or kind in MODALITIES
        if suspect:
            gathered.unreadable.append(path)
        words = error.reason
        gathered.leave(words if suspect else f"{_words_for(kind)}; {words}", path, refused=suspect)


def _gather_file(path: Path, gathered: _Gathered) -> None:
    """Gather the images of a CT or MR object; leave out any other file."""
    with discreet(path, "DICOM file"):
        if not path.is_file():
            return gathered.leave("no file", path, stray=True)
        file = read_dicom(path)
        if file is None:
            return gathered.leave("not DICOM" if path.stat().st_size else "empty", path, stray=True)
        kind = text_of(file.header, "SOPClassUID")
        if not kind:
            raise Unusable("no SOPClassUID")
        if kind not in MODALITIES:
            return gathered.leave(_words_for(kind), path)
        return _gather_images(file, gathered)


def _gather_images(file: DicomFile, gathered: _Gathered) -> None:
    owner = owner_of(file.header)
    try:
        frames, others = frames_of(file)
    except Unusable as error:
        gathered.unusable[owner].append((file.path, error))
    else:
        if frames:
            gathered.frames[owner] += frames
        for kind in sorted(others):
            gathered.leave(f"{kind} images", file.path)


def _words_for(sop_class: str) -> str:
    name = UID_dictionary[sop_class][0].removesuffix(" Storage") if sop_class in UID_dictionary else "an unknown kind"
    return f"DICOM, but neither CT nor MR: {name}"


def _volumes_of(owner: Owner, gathered: _Gathered) -> list[_Volume]:
    """The volumes of one series; none if an image of it cannot be used."""
    frames, unusable = gathered.frames.get(owner, []), gathered.unusable.get(owner, [])
    paths = list(dict.fromkeys([*(frame.slice.path for frame in frames), *(path for path, _ in unusable)]))
    title = series_title(owner.modality, frames[0].number if frames else None, series_key(owner.series_uid))
    try:
        if unusable:
            raise _of_several(unusable, len(paths))
        stacks, copies = stacks_of(frames)
    except Unusable as error:
        single = len(paths) == 1 and isinstance(error, NoScan)
        gathered.leave(
            error.reason if single else f"{title}: {error.reason}", *paths, refused=not isinstance(error, NoScan)
        )
        return []
    if copies:
        gathered.leave("copies of images that are used", *(frame.slice.path for frame in copies))
    return [_volume_of(owner, stack) for stack in stacks]


def _of_several(unusable: Sequence[tuple[Path, Unusable]], files: int) -> Unusable:
    """Why a series cannot be read of whose files some, or all, cannot."""
    path, first = min(unusable, key=lambda each: each[0])
    if files == 1:
        return first
    kind = NoScan if len(unusable) == files and all(isinstance(each, NoScan) for _, each in unusable) else Unusable
    return kind(f"{len(unusable)} of {files} files cannot be used, such as {path.name}: {first}")


def _volume_of(owner: Owner, stack: Stack) -> _Volume:
    slices, first = tuple(frame.slice for frame in stack.frames), stack.frames[0]
    series = Series(
        slices=slices,
        rows=first.size[0],
        columns=first.size[1],
        affine=stack.affine,
        modality=owner.modality,
        description=first.description,
        series_uid=owner.series_uid,
        study_uid=owner.study_uid,
        frame_of_reference_uid=first.frame_of_reference_uid,
        number=first.number,
        folder=_folder_of([each.path for each in slices]),
        part=stack.part,
    )
    return _Volume(owner, series, all(frame.derived for frame in stack.frames))


def _folder_of(paths: Sequence[Path]) -> Path:
    """The deepest folder that holds all of some files."""
    try:
        return Path(os.path.commonpath([path.parent for path in paths]))
    except ValueError:  # some are absolute, some not
        return Path(os.path.commonpath([path.parent.absolute() for path in paths]))


def _told_apart(volumes: Sequence[_Volume]) -> list[_Volume]:
    """Volumes whose keys differ, though some have the UID of their series in common."""
    by_uid = defaultdict(list)
    for volume in volumes:
        by_uid[volume.series.series_uid].append(volume)
    told = []
    for alike in by_uid.values():
        taken: set[str] = set()
        for number, volume in enumerate(alike, start=1):
            part = volume.series.part
            if len(alike) > 1 and (not part or part in taken):
                part = f"{part}-{number}".strip("-")
            taken.add(part)
            told.append(replace(volume, series=replace(volume.series, part=part if len(alike) > 1 else "")))
    return told


def _without_damaged_folders(volumes: Sequence[_Volume], gathered: _Gathered) -> list[_Volume]:
    """Volumes beside which there is no file that may be another slice, but cannot be read."""
    damaged = {path.parent: path.name for path in reversed(gathered.unreadable)}
    kept = []
    for volume in volumes:
        beside = next((damaged[path.parent] for path in volume.paths if path.parent in damaged), None)
        if beside is None:
            kept.append(volume)
        else:
            reason = f"{volume.series.title}: {beside} beside it cannot be read and may be one of its slices"
            gathered.leave(reason, *volume.paths, refused=True)
    return kept


def _is_head_scan(volume: _Volume, gathered: _Gathered) -> bool:
    """Whether the geometry can be a head scan's, as of a NIfTI file."""
    series = volume.series
    spacing = np.linalg.norm(series.affine[:3, :3], axis=0)
    axes = Orientation.from_affine(series.affine).axes
    shape = (len(series.slices), series.rows, series.columns)
    try:
        check_spacing(series.folder, spacing)
    except ScanError as error:
        gathered.leave(f"{series.title}: {error.reason}", *volume.paths, refused=True)
        return False
    try:
        check_extent(series.folder, tuple(shape[axis] for axis in axes), tuple(spacing[list(axes)]))
    except ScanError as error:
        gathered.leave(f"{series.title}: {error.reason}", *volume.paths)
        return False
    return True


def _without_derived(volumes: Sequence[_Volume], gathered: _Gathered) -> list[_Volume]:
    """Original volumes, and derived ones of studies that have none."""
    original = {_study(each) for each in volumes if not each.derived}
    kept = []
    for volume in volumes:
        if volume.derived and _study(volume) in original:
            gathered.leave("images derived from others of a study that has original ones", *volume.paths)
        else:
            kept.append(volume)
    return kept


def _study(volume: _Volume) -> tuple[str, str, str]:
    return volume.owner.patient, volume.owner.study_uid, volume.owner.modality
