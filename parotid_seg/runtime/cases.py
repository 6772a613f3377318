"""Which scans a command line means, and what their masks will be called.

For a model of several channels, files of one folder named CASE_0000, CASE_0001 ... are one case, as in nnU-Net. What is
no NIfTI file may be DICOM; its series are told by what their headers say, not by names, and one case are those of a
study, wherever they lie.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from parotid_seg.dicom.series import Series, series_key
from parotid_seg.errors import ScanError
from parotid_seg.files import exists
from parotid_seg.runtime.sources import Scan, place_of
from parotid_seg.scan.nifti import ENDINGS, case_name, is_nifti

if TYPE_CHECKING:
    from parotid_seg.dicom.read import LeftOut

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
    channel each NIfTI file and each series of its modality and sequence is a scan. For one of several any channel's
    file stands for its case, and one that the model does not take is an error; of series see `studies.scans_of`.

    Args:
        arguments: files and folders.
        channels: the model's channel names.
        ignore: files and folders that are results, not scans.
        say: told of DICOM objects that are no scans, a line for each kind.

    Returns:
        The scans, and an error for each argument that is missing or holds none, for each file of no use, and for each
        series and study that cannot be a scan.
    """
    ignored = {path.resolve() for path in ignore}
    scans: dict[Path, Scan] = {}
    series: dict[Path, Series] = {}
    errors = []
    alone: list[Path] = []
    for argument in arguments:
        if not exists(argument):
            errors.append(ScanError("no such file or folder", path=argument))
        elif argument.is_dir():
            files = [path for path in _walk(argument.resolve(), ignored) if path not in ignored]
            in_files, wrong = scans_in_files(filter(is_nifti, files), channels)
            in_series, refused, others = _in_dicom([path for path in files if not is_nifti(path)], channels)
            left_out = [each for each in others if not each.stray]
            nothing = not (in_files or in_series or wrong or refused)
            errors += [*wrong, *refused, *([_nothing_in(argument, left_out)] if nothing else ())]
            for line in left_out:
                say(f"left out: {line}")
            scans |= {place_of(scan[0]): scan for scan in in_files}
            series |= {place_of(each): each for each in in_series}
        elif is_nifti(argument):
            in_files, wrong = scans_in_files([argument.resolve()], channels)
            errors += wrong
            scans |= {place_of(scan[0]): scan for scan in in_files}
        else:
            alone.append(argument.resolve())
    in_series, refused, others = _in_dicom(alone, channels)  # together, because a series is many files
    errors += [*refused, *map(_of_no_use, others)]
    series |= {place_of(each): each for each in in_series}
    if series:
        from parotid_seg.dicom.studies import scans_of

        of_series, wrong, left_out = scans_of(series.values(), channels)
        scans |= {place_of(scan[0]): scan for scan in of_series}
        errors += wrong
        for line in left_out:
            say(f"left out: {line}")
    return list(scans.values()), errors


def scans_in_files(files: Iterable[Path], channels: Sequence[str]) -> tuple[list[Scan], list[ScanError]]:
    """Scans of some NIfTI files, and errors for those that are none."""
    scans: list[Scan] = []
    errors = []
    for path in files:
        try:
            scans.append(_scan_of(path, channels))
        except ScanError as error:
            errors.append(error)
    return scans, errors


def _in_dicom(files: Sequence[Path], channels: Sequence[str]) -> tuple[list[Series], list[ScanError], list[LeftOut]]:
    """Series of the model's modality, errors for those that cannot be read, and what else there is."""
    if not files:
        return [], [], []
    from parotid_seg.dicom.read import find_series
    from parotid_seg.dicom.studies import of_modality

    found = find_series(files)
    series, others = of_modality(found.series, channels)
    errors = [each.as_error() for each in found.left_out if each.refused]
    return series, errors, [*others, *(each for each in found.left_out if not each.refused)]


def _nothing_in(folder: Path, left_out: Sequence[LeftOut]) -> ScanError:
    why = f"; left out: {left_out[0].reason}" if left_out else ""
    return ScanError(f"no scan in this folder, expected NIfTI files (.nii, .nii.gz) or DICOM series{why}", path=folder)


def _of_no_use(found: LeftOut) -> ScanError:
    """Files that were named one by one, but are no scan."""
    reason = "neither NIfTI nor DICOM" if found.stray else found.reason
    expected = "expected a NIfTI file (.nii, .nii.gz) or the images of a DICOM series"
    return replace(found, reason=reason).as_error(expected)


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
        raise ScanError(f"{takes}, expected files CASE_0000 to CASE_{len(channels) - 1:04d}", path=path)
    stem, number, ending = found[1], int(found[2]), found[3]
    if number >= len(channels):
        raise ScanError(f"one more sequence of case {stem}, but {takes}; it was left out", path=path)
    return tuple(_channel_file(path.parent, f"{stem}_{index:04d}", ending) for index in range(len(channels)))


def _channel_file(folder: Path, stem: str, ending: str) -> Path:
    """A channel's file, of the ending given if it is there, else of any other."""
    expected = folder / f"{stem}{ending}"
    others = (folder / f"{stem}{other}" for other in ENDINGS)
    return next((path for path in (expected, *others) if path.exists()), expected)


def name_cases(scans: Sequence[Scan], taken: Mapping[str, Path]) -> list[Case]:
    """Give every scan a name of its own.

    A NIfTI file gives its name. DICOM series give that of the folder which holds them; if it holds several scans, with
    the series' number, or of several series with a short name of their study. Scans of equal names are told apart by
    the folders above them, and by a number if that is not enough.

    Args:
        scans: with absolute paths; the first channel counts.
        taken: names that the output folder already uses, and the places of the scans they belong to.
    """
    by_place = {place_of(scan[0]): scan for scan in scans}
    named = {place: _place_named(scan) for place, scan in by_place.items()}
    uses = Counter(named.values())
    own = {place: _own_name(scan, named[place], uses[named[place]] == 1) for place, scan in by_place.items()}
    names = {place: _short(name) for place, name in own.items()}
    above = {place: path.parts[1:-1] for place, path in named.items()}
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


def _place_named(scan: Scan) -> Path:
    """What a scan is called after: its first file, or the deepest folder that holds all of its series."""
    if isinstance(scan[0], Path):
        return scan[0]
    from parotid_seg.dicom.studies import folder_of

    return folder_of([each for each in scan if isinstance(each, Series)])


def _own_name(scan: Scan, named: Path, alone: bool) -> str:
    """A name without folders above.

    Args:
        scan: the scan.
        named: see `_place_named`.
        alone: whether no other scan has this place.
    """
    source = scan[0]
    if not isinstance(source, Series):
        return case_name(source)
    if alone:
        return named.name
    told = series_key(source.study_uid) if len(scan) > 1 else source.number
    return f"{named.name}_{source.key if told is None else told}"


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
