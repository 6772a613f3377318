"""Which scans a command line means, and what their masks will be called."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from parotid_seg.errors import ScanError
from parotid_seg.scan.nifti import case_name, is_nifti


@dataclass(frozen=True)
class Case:
    """One scan to segment: its name, unique in the output folder, and its file (absolute)."""

    name: str
    path: Path


def find_scans(arguments: Sequence[Path], ignore: Iterable[Path] = ()) -> tuple[list[Path], list[ScanError]]:
    """Scans under the given files and folders, absolute, each once, in a fixed order.

    A file is taken as it is named; folders are searched at any depth for NIfTI files, hidden ones left out.

    Args:
        arguments: files and folders.
        ignore: files and folders that are results, not scans.

    Returns:
        The scans, and an error for each argument that is missing or holds none.
    """
    ignored = {path.resolve() for path in ignore}
    scans: dict[Path, None] = {}
    errors = []
    for argument in arguments:
        if argument.is_dir():
            found = [path for path in _walk(argument.resolve(), ignored) if path not in ignored]
            if not found:
                errors.append(
                    ScanError(f"{argument}: no scan in this folder, expected files ending in .nii or .nii.gz")
                )
            scans.update(dict.fromkeys(found))
        elif not argument.exists():
            errors.append(ScanError(f"{argument}: no such file or folder"))
        elif not is_nifti(argument):
            errors.append(ScanError(f"{argument}: not a NIfTI file, expected a name ending in .nii or .nii.gz"))
        else:
            scans[argument.resolve()] = None
    return list(scans), errors


def name_cases(scans: Sequence[Path], taken: Mapping[str, Path]) -> list[Case]:
    """Give every scan a name of its own.

    Scans of equal file names are told apart by the folders above them, and by a number if that is not enough.

    Args:
        scans: absolute paths.
        taken: names that the output folder already uses, and the scans they belong to.
    """
    names = {path: case_name(path) for path in scans}
    depth = 1
    while depth < 8 and (doubled := {name for name, count in Counter(names.values()).items() if count > 1}):
        for path, name in names.items():
            if name in doubled and len(path.parents) > depth:
                names[path] = "_".join((*path.parts[-1 - depth : -1], case_name(path)))
        depth += 1
    owners = dict(taken)
    known = {path: name for name, path in taken.items()}
    cases = []
    for path in scans:
        name = known.get(path, names[path])
        number = 2
        while owners.get(name, path) != path:
            name = f"{names[path]}-{number}"
            number += 1
        owners[name] = path
        cases.append(Case(name, path))
    return cases


def _walk(folder: Path, ignored: set[Path]) -> Iterable[Path]:
    for parent, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith(".") and Path(parent, name) not in ignored)
        for name in sorted(files):
            path = Path(parent, name)
            if is_nifti(path) and not name.startswith("."):
                yield path
