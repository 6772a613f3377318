"""Finds CT and MR series among any files by their headers, and lists the other files with the reason."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from parotid_seg.dicom.mr.acquisition import acquisition_of
from parotid_seg.dicom.mr.sequences import UNCLEAR, name_of
from parotid_seg.dicom.phi_safe import phi_safe
from parotid_seg.dicom.read.facts import read_facts
from parotid_seg.dicom.read.file import DicomFile, kind_in_meta, read_dicom, series_in_header
from parotid_seg.dicom.read.frame import Frame, Owner, frames_of, is_short, owner_of, series_number
from parotid_seg.dicom.read.groups import MODALITIES, name_of_class, words_for
from parotid_seg.dicom.read.series import Series, series_key, series_title
from parotid_seg.dicom.read.stack import Stack, stacks_of
from parotid_seg.dicom.read.values import NotAnImage, Unusable, of_several, text_of, uid_of
from parotid_seg.errors import ScanError
from parotid_seg.flags import Flag, FlagCode
from parotid_seg.scan.geometry import check_spacing
from parotid_seg.scan.nifti import MIN_DEPTH_MM, check_extent
from parotid_seg.scan.search import DICOM_ENDINGS, STRAY, Skipped, folder_of_files, printable
from parotid_seg.scan.volume import Orientation, spacing_of


@dataclass(frozen=True)
class Takes:
    """The kinds of series that a model uses; others are skipped by kind, without a check of their geometry.

    Attributes:
        modalities: "CT", "MR" or both.
        sequences: MR sequences as named by `sequences.sequence_of`; None for any.
        words: the kinds as text for messages.
    """

    modalities: frozenset[str] = frozenset(("CT", "MR"))
    sequences: frozenset[str] | None = None
    words: str = "CT, MR"


@dataclass(frozen=True)
class Found:
    """The result of a search.

    Attributes:
        series: CT and MR series that can be read, ordered by folder and number.
        left_out: all other files, with reasons.
    """

    series: tuple[Series, ...]
    left_out: tuple[Skipped, ...]


@dataclass(frozen=True, eq=False)
class _Volume:
    """A volume that can be read; later checks may still reject it."""

    owner: Owner
    series: Series
    derived: bool

    @property
    def paths(self) -> list[Path]:
        return [each.path for each in self.series.slices]


@dataclass
class _Files:
    """Files that are not used for the same reason, and how many items of a kind they form."""

    kind: str
    paths: list[Path] = field(default_factory=list)
    items: set[object] = field(default_factory=set)


@dataclass
class _Gathered:
    """The content of the headers, collected file by file.

    Attributes:
        takes: the kinds of series to use.
        frames, unusable: images by series, and its unusable files: path, reason, SOPInstanceUID if known.
        unreadable: files that may be usable images, and the UID of their series as far as it can be read.
        other_modality: files by modality and UID of their series, and the series' number.
        derived: series of derived images that form no volume, and why.
        strays: files that are not DICOM, and why not.
    """

    takes: Takes
    frames: dict[Owner, list[Frame]] = field(default_factory=lambda: defaultdict(list))
    unusable: dict[Owner, list[tuple[Path, Unusable, str]]] = field(default_factory=lambda: defaultdict(list))
    unreadable: dict[Path, str] = field(default_factory=dict)
    other_modality: dict[tuple[str, str], list[tuple[Path, int | None]]] = field(
        default_factory=lambda: defaultdict(list)
    )
    derived: list[tuple[Owner, str, list[Path]]] = field(default_factory=list)
    strays: dict[Path, str] = field(default_factory=dict)
    reasons: dict[tuple[str, bool, Path | None], _Files] = field(default_factory=dict)

    def skip(self, reason: str, *paths: Path, refused: bool = False, kind: str = "file", item: object = None) -> None:
        """Skip files; those with the same reason become one entry, refused ones one entry per folder.

        Args:
            reason, paths, refused, kind: see `Skipped`.
            item: the unit that the files form together, such as a series; None if each file is a unit.
        """
        for path in paths:
            files = self.reasons.setdefault((reason, refused, path.parent if refused and item is None else None),
                                            _Files(kind))  # fmt: skip
            files.paths.append(path)
            files.items.add(path if item is None else item)

    def unreadable_beside(self, paths: Sequence[Path]) -> Path | None:
        """The first unreadable file of an unknown series in the folders of some files."""
        folders = {path.parent for path in paths}
        return next((path for path, uid in self.unreadable.items() if not uid and path.parent in folders), None)

    def left_out(self) -> tuple[Skipped, ...]:
        skipped = []
        for (reason, refused, _), group in self.reasons.items():
            files = tuple(dict.fromkeys(group.paths))
            place = files[0] if len(files) == 1 else folder_of_files(files)
            skipped.append(Skipped(place, reason, len(files), refused, group.kind, len(group.items), files))
        return tuple(sorted(skipped, key=lambda each: not each.refused))


def find_series(files: Iterable[Path], takes: Takes = Takes()) -> Found:
    """Find CT and MR series among files of any kind and name, in any number of folders.

    Only headers are read. Images of one series are separated by patient, study, frame of reference, size, spacing and
    orientation, and ordered by position. Series with a missing slice, or with one that does not fit, are refused.
    Images derived from others, such as reformats, are used if the study has no complete original series of the
    modality.

    Args:
        files: of any kind.
        takes: kinds of series to use; others are skipped by kind.
    """
    gathered = _Gathered(takes)
    for path in dict.fromkeys(files):
        _gather(path, gathered)
    _skip_strays(gathered)
    for (modality, uid), images in gathered.other_modality.items():
        title = series_title(modality, images[0][1], series_key(uid))
        reason, kind = f"{title}: the model takes {takes.words}", f"{modality} series"
        gathered.skip(reason, *(path for path, _ in images), kind=kind, item=title)
    volumes = []
    for owner in dict.fromkeys((*gathered.frames, *gathered.unusable)):
        volumes += _volumes_of(owner, gathered)
    volumes = [each for each in _with_distinct_keys(volumes) if _is_head_scan(each, gathered)]
    volumes = _without_derived(volumes, gathered)
    shared = _shared(gathered)
    series = [_with_remarks(each, gathered, shared) for each in volumes]
    series.sort(key=lambda each: (str(each.folder), each.number or 0, _natural(each.key)))
    return Found(tuple(series), gathered.left_out())


def _natural(text: str) -> list[str | int]:
    """A text for sorting, in which 2 comes before 10."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", text)]


def _skip_strays(gathered: _Gathered) -> None:
    """Skip files that are not DICOM; those named as DICOM images, as a copy that broke off leaves them, are refused."""
    images = {_pattern(frame.slice.path) for frames in gathered.frames.values() for frame in frames}
    for path, reason in gathered.strays.items():
        if path.suffix.lower() in DICOM_ENDINGS or _pattern(path) in images:
            gathered.unreadable[path] = ""
            gathered.skip(f"{reason}, but named as a DICOM image", path, refused=True)
        else:
            gathered.skip(reason, path, kind=STRAY)


def _pattern(path: Path) -> tuple[Path, str]:
    """A file's folder, and its name without its numbers."""
    return path.parent, re.sub("[0-9]+", "0", path.name)


def _gather(path: Path, gathered: _Gathered) -> None:
    """Add one file's images to their series, or skip the file."""
    try:
        other, kind = _other_than_images(path, gathered)
    except ScanError as error:
        sop_class = kind_in_meta(path)
        modality = MODALITIES.get(sop_class, "")
        if not sop_class or modality in gathered.takes.modalities:
            gathered.unreadable[path] = series_in_header(path)
            gathered.skip(error.reason, path, refused=True)
        elif modality:
            words = (
                f"an image of {modality} that cannot be read ({error.reason}); the model takes {gathered.takes.words}"
            )
            gathered.skip(words, path, kind=f"{modality} image")
        else:
            gathered.skip(f"{words_for(sop_class)}; {error.reason}", path, kind=name_of_class(sop_class))
    else:
        if kind == STRAY:
            gathered.strays[path] = other
        elif other:
            gathered.skip(other, path, kind=kind)


def _other_than_images(path: Path, gathered: _Gathered) -> tuple[str, str]:
    """Gather the images of a CT or MR object; for other files return what they are, in words and as a kind."""
    with phi_safe(path, "DICOM file"):
        if not path.is_file():
            return "no file", STRAY
        file = read_dicom(path)
        if file is None:
            return "not DICOM" if path.stat().st_size else "empty", STRAY
        kind = text_of(file.header, "SOPClassUID")
        if not kind:
            raise Unusable("no SOPClassUID")
        if kind not in MODALITIES:
            return words_for(kind), name_of_class(kind)
        _gather_images(file, gathered)
    return "", ""


def _gather_images(file: DicomFile, gathered: _Gathered) -> None:
    modality = MODALITIES[text_of(file.header, "SOPClassUID")]
    if modality not in gathered.takes.modalities:
        try:
            series = uid_of(file.header, "SeriesInstanceUID")
        except Unusable:
            series = ""
        gathered.other_modality[modality, series].append((file.path, series_number(file.header)))
        return
    owner = owner_of(file)
    try:
        frames, others = frames_of(file)
    except Unusable as error:
        gathered.unusable[owner].append((file.path, error, str(file.header.get("SOPInstanceUID") or "")))
    else:
        if frames:
            gathered.frames[owner] += frames
        for kind in sorted(others):
            gathered.skip(f"{kind} images", file.path, kind=f"{kind} series", item=owner)


def _volumes_of(owner: Owner, gathered: _Gathered) -> list[_Volume]:
    """The volumes of one series; none if an image of it cannot be used."""
    frames, unusable = gathered.frames.get(owner, []), gathered.unusable.get(owner, [])
    readable_uids = {frame.slice.sop_instance_uid for frame in frames}
    if damaged_copies := [path for path, _, uid in unusable if uid in readable_uids]:
        gathered.skip("damaged copies of images that are used", *damaged_copies, kind="damaged copy")
        unusable = [each for each in unusable if each[2] not in readable_uids]
    paths = list(dict.fromkeys([*(frame.slice.path for frame in frames), *(path for path, _, _ in unusable)]))
    title = series_title(owner.modality, frames[0].number if frames else None, series_key(owner.series_uid))
    try:
        if unusable:
            raise of_several([(path, error) for path, error, _ in unusable], len(paths))
        lost = next((path for path, uid in gathered.unreadable.items() if uid == owner.series_uid), None)
        if lost is not None:
            raise Unusable(f"{lost.name}, one of its files, cannot be read")
        stacks, copies = stacks_of(frames)
    except Unusable as error:
        _skip_series(owner, title, frames, paths, error, gathered)
        return []
    if copies:
        images = (frame.slice.path for frame in copies)
        gathered.skip("copies of images that are used", *images, kind="copied image")
    return [_volume_of(owner, stack) for stack in stacks]


def _skip_series(
    owner: Owner, title: str, frames: Sequence[Frame], paths: Sequence[Path], error: Unusable, gathered: _Gathered
) -> None:
    """Skip a series that forms no volume; it is refused unless it would not be used anyway."""
    kind = f"{owner.modality} series"
    if isinstance(error, NotAnImage):
        single = len(paths) == 1
        reason, kind = (error.reason, "single image") if single else (f"{title}: {error.reason}", kind)
        gathered.skip(reason, *paths, kind=kind, item=title)
    elif sequence := _sequence_of_no_use(owner, frames, gathered.takes):
        gathered.skip(f"{title}: {sequence}, the model takes {gathered.takes.words}", *paths, kind=kind, item=title)
    elif is_short(frames, paths):
        reason = f"{title}: {len(frames)} images over less than {MIN_DEPTH_MM:.0f} mm"
        gathered.skip(reason, *paths, kind=kind, item=title)
    elif frames and all(frame.derived for frame in frames):
        gathered.derived.append((owner, f"{title}: {error.reason}", list(paths)))
    else:
        beside = gathered.unreadable_beside(paths)
        why = f"; {beside.name} beside it cannot be read" if beside else ""
        gathered.skip(f"{title}: {error.reason}{why}", *paths, refused=True, kind=kind, item=title)


def _sequence_of_no_use(owner: Owner, frames: Sequence[Frame], takes: Takes) -> str:
    """The sequence of an MR series that the model does not use; empty if it may be used."""
    if owner.modality != "MR" or takes.sequences is None or not frames:
        return ""
    try:
        sequence = name_of(acquisition_of(frames[0].slice))
    except ScanError:
        return ""
    return "" if sequence == UNCLEAR or sequence in takes.sequences else sequence


def _volume_of(owner: Owner, stack: Stack) -> _Volume:
    slices, first = tuple(frame.slice for frame in stack.frames), stack.frames[0]
    series = Series(
        slices=slices,
        rows=first.size[0],
        columns=first.size[1],
        affine=stack.affine,
        modality=owner.modality,
        facts=read_facts(slices[0].path, owner.modality, first.number),
        series_uid=owner.series_uid,
        study_uid=owner.study_uid,
        frame_of_reference_uid=first.frame_of_reference_uid,
        number=first.number,
        folder=folder_of_files([each.path for each in slices]),
        part=stack.part,
        patient=owner.patient,
    )
    return _Volume(owner, series, all(frame.derived for frame in stack.frames))


def _with_distinct_keys(volumes: Sequence[_Volume]) -> list[_Volume]:
    """Volumes with different keys, also where several belong to one series."""
    by_uid = defaultdict(list)
    for volume in volumes:
        by_uid[volume.series.series_uid].append(volume)
    distinct = []
    for alike in by_uid.values():
        used_parts: set[str] = set()
        for number, volume in enumerate(alike, start=1):
            part = volume.series.part
            if len(alike) > 1 and (not part or part in used_parts):
                part = f"{part}-{number}".strip("-")
            used_parts.add(part)
            distinct.append(replace(volume, series=replace(volume.series, part=part if len(alike) > 1 else "")))
    return distinct


def _shared(gathered: _Gathered) -> set[str]:
    """UIDs of series whose images name several patients or studies: perhaps one volume, changed in part."""
    owners = {(each.patient, each.study_uid, each.series_uid) for each in (*gathered.frames, *gathered.unusable)}
    return {uid for uid, count in Counter(uid for _, _, uid in owners).items() if count > 1}


def _with_remarks(volume: _Volume, gathered: _Gathered, shared: Container[str]) -> Series:
    """A complete series, flagged if slices may be missing at its ends.

    They may be a file in its folder that cannot be read, or images of its UID that name another patient or study.
    """
    beside = gathered.unreadable_beside(volume.paths)
    flags = () if beside is None else (Flag(FlagCode.DAMAGED_FILE_BESIDE, detail=printable(beside.name)),)
    if volume.series.series_uid in shared:
        flags = (Flag(FlagCode.SERIES_SPLIT), *flags)
    return replace(volume.series, flags=flags)


def _is_head_scan(volume: _Volume, gathered: _Gathered) -> bool:
    """Whether the geometry can be that of a head scan, by the rules for NIfTI files."""
    series, kind = volume.series, f"{volume.owner.modality} series"
    spacing = spacing_of(series.affine)
    axes = Orientation.from_affine(series.affine).axes
    shape = (len(series.slices), series.rows, series.columns)
    try:
        check_spacing(series.folder, spacing)
    except ScanError as error:
        gathered.skip(f"{series.title}: {error.reason}", *volume.paths, refused=True, kind=kind, item=series.key)
        return False
    try:
        check_extent(series.folder, tuple(shape[axis] for axis in axes), tuple(spacing[list(axes)]))
    except ScanError as error:
        gathered.skip(f"{series.title}: {error.reason}", *volume.paths, kind=kind, item=series.key)
        return False
    return True


def _without_derived(volumes: Sequence[_Volume], gathered: _Gathered) -> list[_Volume]:
    """Original volumes, and derived ones of studies that have none."""
    original = {_study(each.owner) for each in volumes if not each.derived}
    reason = "images derived from others of a study that has original ones"
    remaining = []
    for volume in volumes:
        if volume.derived and _study(volume.owner) in original:
            gathered.skip(reason, *volume.paths, kind="derived series", item=volume.series.key)
        else:
            remaining.append(volume)
    for owner, why, paths in gathered.derived:
        if _study(owner) in original:
            gathered.skip(reason, *paths, kind="derived series", item=owner)
        else:
            gathered.skip(why, *paths, refused=True, kind=f"{owner.modality} series", item=owner)
    return remaining


def _study(owner: Owner) -> tuple[str, str, str]:
    return owner.patient, owner.study_uid, owner.modality
