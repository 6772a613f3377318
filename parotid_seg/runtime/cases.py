"""Which scans a command line means, and what their masks will be called.

For a model of several channels, files of one folder named CASE_0000, CASE_0001 ... are one case, as in nnU-Net. What is
no NIfTI file may be DICOM; its series are told by what their headers say, not by names.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from parotid_seg.errors import ScanError
from parotid_seg.runtime.sources import Scan, Source, place_of
from parotid_seg.scan.nifti import ENDINGS, case_name, is_nifti
from parotid_seg.scan.series import Series

if TYPE_CHECKING:
    from parotid_seg.scan.dicom import LeftOut

STRAY = ("not DICOM", "empty", "no file")
"""Reasons for which files in a folder are of no interest."""
LONGEST_NAME = 230
"""Bytes; file systems take 255."""


@dataclass(frozen=True)
class Case:
    """One scan to segment, and its name, unique in the output folder."""

    name: str
    scan: Scan


def find_scans(
    arguments: Sequence[Path],
    channels: Sequence[str],
    ignore: Iterable[Path] = (),
    *,
    say: Callable[[str], None] = lambda _: None,
) -> tuple[list[Scan], list[ScanError]]:
    """Scans under the given files and folders, each once, in a fixed order.

    Folders are searched at any depth for NIfTI files and DICOM series, hidden files left out. For a model of one
    channel each NIfTI file and each series is a scan. For one of several any channel's file stands for its case, and
    one that the model does not take is an error.

    Args:
        arguments: files and folders.
        channels: the model's channel names.
        ignore: files and folders that are results, not scans.
        say: told of DICOM objects that are no scans, a line for each kind.

    Returns:
        The scans, and an error for each argument that is missing or holds none, for each file of no use, and for each
        series that cannot be a scan.
    """
    ignored = {path.resolve() for path in ignore}
    scans: dict[Path, Scan] = {}
    errors = []
    for argument in arguments:
        if not argument.exists():
            errors.append(ScanError(f"{argument}: no such file or folder"))
            continue
        place = argument.resolve()
        files = [path for path in _walk(place, ignored) if path not in ignored] if argument.is_dir() else [place]
        found, wrong, left_out = _scans_in(files, channels)
        errors += wrong or ([] if found else [_nothing_in(argument, left_out)])
        for line in left_out if argument.is_dir() else ():
            say(f"left out: {line}")
        scans |= {place_of(scan[0]): scan for scan in found}
    return list(scans.values()), errors


def _scans_in(files: Sequence[Path], channels: Sequence[str]) -> tuple[list[Scan], list[ScanError], list[LeftOut]]:
    """Scans of some files, errors for those that should be and are none, and DICOM objects that are something else."""
    scans: list[Scan] = []
    errors = []
    left_out: list[LeftOut] = []
    for path in filter(is_nifti, files):
        try:
            scans.append(_scan_of(path, channels))
        except ScanError as error:
            errors.append(error)
    if others := [path for path in files if not is_nifti(path)]:
        from parotid_seg.scan.dicom import find_series

        found = find_series(others)
        scans += [(series,) for series in found.series]
        errors += [ScanError(str(each)) for each in found.left_out if each.refused]
        left_out = [each for each in found.left_out if not each.refused and each.reason not in STRAY]
    return scans, errors, left_out


def _nothing_in(argument: Path, left_out: Sequence[LeftOut]) -> ScanError:
    if argument.is_dir():
        return ScanError(f"{argument}: no scan in this folder, expected NIfTI files (.nii, .nii.gz) or DICOM series")
    found = left_out[0].reason if left_out else "neither NIfTI nor DICOM"
    return ScanError(f"{argument}: {found}; expected a NIfTI file (.nii, .nii.gz) or the images of a DICOM series")


def _scan_of(path: Path, channels: Sequence[str]) -> Scan:
    """The scan that a file is, or is a channel of.

    Raises:
        ScanError: if it is none that a model of these channels takes.
    """
    if len(channels) == 1:
        return (path,)
    found = re.fullmatch(r"(.+)_(\d{4})(\.nii(?:\.gz)?)", path.name, re.IGNORECASE)
    takes = f"the model takes {len(channels)} channels ({', '.join(channels)})"
    if found is None:
        raise ScanError(f"{path}: {takes}, expected files CASE_0000 to CASE_{len(channels) - 1:04d}")
    stem, number, ending = found[1], int(found[2]), found[3]
    if number >= len(channels):
        raise ScanError(f"{path}: one more sequence of case {stem}, but {takes}; it was left out")
    return tuple(_channel_file(path.parent, f"{stem}_{index:04d}", ending) for index in range(len(channels)))


def _channel_file(folder: Path, stem: str, ending: str) -> Path:
    """A channel's file, of the ending given if it is there, else of any other."""
    expected = folder / f"{stem}{ending}"
    others = (folder / f"{stem}{other}" for other in ENDINGS)
    return next((path for path in (expected, *others) if path.exists()), expected)


def name_cases(scans: Sequence[Scan], taken: Mapping[str, Path]) -> list[Case]:
    """Give every scan a name of its own.

    A NIfTI file gives its name; a series that of its folder, with its number if the folder has several. Scans of equal
    names are told apart by the folders above them, and by a number if that is not enough.

    Args:
        scans: with absolute paths; the first channel counts.
        taken: names that the output folder already uses, and the places of the scans they belong to.
    """
    by_place = {place_of(scan[0]): scan for scan in scans}
    in_folder = Counter(scan[0].folder for scan in by_place.values() if isinstance(scan[0], Series))
    own = {place: _own_name(scan[0], in_folder) for place, scan in by_place.items()}
    names = {place: _short(name) for place, name in own.items()}
    above = {place: _parents(scan[0]) for place, scan in by_place.items()}
    depth = 1
    while depth < 8 and (doubled := {name for name, count in Counter(names.values()).items() if count > 1}):
        for place, name in names.items():
            if name in doubled and len(above[place]) >= depth:
                names[place] = _short("_".join((*above[place][-depth:], own[place])))
        depth += 1
    owners = dict(taken)
    known = {place: name for name, place in taken.items()}
    cases = []
    for place, scan in by_place.items():
        name = known.get(place, names[place])
        number = 2
        while owners.get(name, place) != place:
            name = f"{names[place]}-{number}"
            number += 1
        owners[name] = place
        cases.append(Case(name, scan))
    return cases


def _own_name(source: Source, in_folder: Mapping[Path, int]) -> str:
    """A name without folders above."""
    if not isinstance(source, Series):
        return case_name(source)
    if in_folder[source.folder] == 1:
        return source.folder.name
    return f"{source.folder.name}_{source.key if source.number is None else source.number}"


def _parents(source: Source) -> tuple[str, ...]:
    """Names of the folders above."""
    return (source.folder if isinstance(source, Series) else source).parts[1:-1]


def _short(name: str) -> str:
    """A name that leaves room for an ending and a number in a file's name; a cut one ends in a hash of the whole."""
    content = os.fsencode(name)
    if len(content) <= LONGEST_NAME:
        return name
    mark = f"-{hashlib.sha256(content).hexdigest()[:8]}"
    return content[: LONGEST_NAME - len(mark)].decode(errors="ignore") + mark


def _walk(folder: Path, ignored: set[Path]) -> Iterable[Path]:
    for parent, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith(".") and Path(parent, name) not in ignored)
        for name in sorted(files):
            path = Path(parent, name)
            if not name.startswith(".") and path.is_file():
                yield path
