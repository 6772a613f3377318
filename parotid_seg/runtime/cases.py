"""Which scans a command line means, and what their masks will be called.

For a model of several channels, files of one folder named CASE_0000, CASE_0001 ... are one case, as in nnU-Net.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from parotid_seg.errors import ScanError
from parotid_seg.scan.nifti import ENDINGS, case_name, is_nifti

LONGEST_NAME = 230
"""Bytes; file systems take 255."""

Scan = tuple[Path, ...]
"""The files of a scan's channels, in the model's order; absolute, and not all of them need be there."""


@dataclass(frozen=True)
class Case:
    """One scan to segment, and its name, unique in the output folder."""

    name: str
    scan: Scan


def find_scans(
    arguments: Sequence[Path], channels: Sequence[str], ignore: Iterable[Path] = ()
) -> tuple[list[Scan], list[ScanError]]:
    """Scans under the given files and folders, each once, in a fixed order.

    Folders are searched at any depth for NIfTI files, hidden ones left out. For a model of one channel each file is a
    scan. For one of several any channel's file stands for its case, and one that the model does not take is an error.

    Args:
        arguments: files and folders.
        channels: the model's channel names.
        ignore: files and folders that are results, not scans.

    Returns:
        The scans, and an error for each argument that is missing or holds none, and for each file of no use.
    """
    ignored = {path.resolve() for path in ignore}
    scans: dict[Scan, None] = {}
    errors = []
    for argument in arguments:
        if argument.is_dir():
            found = [path for path in _walk(argument.resolve(), ignored) if path not in ignored]
            if not found:
                errors.append(
                    ScanError(f"{argument}: no scan in this folder, expected files ending in .nii or .nii.gz")
                )
            for path in found:
                try:
                    scans[_scan_of(path, channels)] = None
                except ScanError as error:
                    errors.append(error)
        elif not argument.exists():
            errors.append(ScanError(f"{argument}: no such file or folder"))
        elif not (is_nifti(argument) and argument.is_file()):
            errors.append(ScanError(f"{argument}: not a NIfTI file, expected a name ending in .nii or .nii.gz"))
        else:
            try:
                path = argument.resolve()
                scans[_scan_of(path, channels)] = None
            except ScanError as error:
                errors.append(error)
    return list(scans), errors


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

    Scans of equal file names are told apart by the folders above them, and by a number if that is not enough.

    Args:
        scans: files with absolute paths; the first one counts.
        taken: names that the output folder already uses, and the first files of the scans they belong to.
    """
    by_first = {scan[0]: scan for scan in scans}
    names = {path: _short(case_name(path)) for path in by_first}
    depth = 1
    while depth < 8 and (doubled := {name for name, count in Counter(names.values()).items() if count > 1}):
        for path, name in names.items():
            if name in doubled and len(path.parents) > depth:
                names[path] = _short("_".join((*path.parts[-1 - depth : -1], case_name(path))))
        depth += 1
    owners = dict(taken)
    known = {path: name for name, path in taken.items()}
    cases = []
    for path, scan in by_first.items():
        name = known.get(path, names[path])
        number = 2
        while owners.get(name, path) != path:
            name = f"{names[path]}-{number}"
            number += 1
        owners[name] = path
        cases.append(Case(name, scan))
    return cases


def _short(name: str) -> str:
    """A name that leaves room for an ending and a number in a file's name; a cut one ends in a hash of the whole."""
    content = name.encode()
    if len(content) <= LONGEST_NAME:
        return name
    mark = f"-{hashlib.sha256(content).hexdigest()[:8]}"
    return content[: LONGEST_NAME - len(mark)].decode(errors="ignore") + mark


def _walk(folder: Path, ignored: set[Path]) -> Iterable[Path]:
    for parent, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith(".") and Path(parent, name) not in ignored)
        for name in sorted(files):
            path = Path(parent, name)
            if is_nifti(path) and not name.startswith(".") and path.is_file():
                yield path
