"""Files behind URLs: s3://, gs:// and every other scheme that fsspec knows.

`Path` merges the two slashes of a URL: s3:/bucket/scan.nii.gz. In this form a URL is used like any path; `url_of`
restores it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from parotid_seg.errors import InputError, ScanError
from parotid_seg.files import exists
from parotid_seg.runtime.pipeline.discovery import find_scans, scans_in_files
from parotid_seg.runtime.pipeline.sources import Scan, place_of
from parotid_seg.scan.nifti import is_nifti
from parotid_seg.scan.other_formats import unread_by_name
from parotid_seg.scan.search import Skipped

URL = re.compile(r"([a-z][a-z0-9+.-]+):/+(.*)", re.DOTALL)
"""At least two letters before the colon: C:/ is a drive."""


def url_of(path: Path) -> str:
    """The URL that a path was written as; empty if it is a path."""
    match = URL.fullmatch(str(path))
    if match is None or exists(path):
        return ""
    return f"{match[1]}://{'/' if match[1] in ('file', 'local') else ''}{match[2]}"


def file_system_of(url: str) -> tuple[Any, str]:
    """A URL's file system, and its path there.

    Raises:
        InputError: if fsspec does not know it, or a package for it is missing.
    """
    try:
        import fsspec

        local = url.startswith(("file:", "local:"))
        system, path = fsspec.core.url_to_fs(url, **({"auto_mkdir": True} if local else {}))
    except (ImportError, ValueError) as error:
        raise InputError(f"{url}: cannot be opened ({error})") from error
    return system, path


def find_anywhere(
    arguments: Sequence[Path],
    channels: Sequence[str],
    ignore: Iterable[Path] = (),
    *,
    skip: Callable[[Skipped], None] = lambda _: None,
    out: str = "",
) -> tuple[list[Scan], list[ScanError]]:
    """As `discovery.find_scans`, and for URLs, below which it finds NIfTI files only.

    Args:
        arguments, channels, ignore, skip: as for `discovery.find_scans`.
        out: URL of the results; nothing below it is a scan.
    """
    found_scans, errors = find_scans([path for path in arguments if not url_of(path)], channels, ignore, skip=skip)
    scans = {place_of(scan[0]): scan for scan in found_scans}
    for url in filter(None, map(url_of, arguments)):
        try:
            files = [file for file in _files_below(url) if not (out and file.is_relative_to(Path(out)))]
        except ScanError as error:
            errors.append(error)
            continue
        found_scans, wrong = scans_in_files(filter(is_nifti, files), channels)
        others = [file for file in files if not is_nifti(file)]
        errors += [ScanError(reason, path=file) for file in others if (reason := unread_by_name(file))]
        others = [file for file in others if not unread_by_name(file)]
        if not found_scans and not wrong:
            errors.append(
                ScanError(f"{url}: no scan there, expected NIfTI files (.nii, .nii.gz); {len(others)} other files")
            )
        elif others:
            reason = "no NIfTI; DICOM is read from mounted storage only"
            skip(Skipped(Path(url), reason, len(others), kind="other file", items=len(others)))
        scans |= {place_of(scan[0]): scan for scan in found_scans}
        errors += wrong
    return list(scans.values()), errors


def _files_below(url: str) -> list[Path]:
    """A file, or all files in a folder at any depth except hidden ones.

    Raises:
        ScanError: if there is nothing, or it cannot be listed.
    """
    system, root = file_system_of(url)
    try:
        names = system.find(root)
    except Exception as error:  # each storage client has its own error types
        raise ScanError(f"{url}: cannot be listed ({error_text(error)})") from error
    if not names:
        raise ScanError(f"{url}: no such file or folder")
    shown = [name for name in sorted(names) if not re.search(r"/\.", name.removeprefix(root))]
    return [Path(system.unstrip_protocol(name)) for name in shown]


def error_text(error: Exception) -> str:
    """The message of a storage client's error, in one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]
