"""Scans and results behind URLs (s3://, gs:// and whatever else fsspec knows), and the copies that are worked on.

A path on the command line has lost one slash of two: s3:/bucket/scan.nii.gz. As such it names a scan wherever a path
does; `url_of` tells what it stands for.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from parotid_seg.errors import InputError, OutputError, ScanError
from parotid_seg.files import exists, scratch_folder
from parotid_seg.runtime.cases import Case, find_scans, scans_in_files
from parotid_seg.runtime.journal import NAME as JOURNAL
from parotid_seg.runtime.messages import PICTURES, Finished, Job, failed, views_of
from parotid_seg.runtime.outputs import Outputs
from parotid_seg.runtime.sources import Scan, place_of
from parotid_seg.scan.nifti import is_nifti

URL = re.compile(r"([a-z][a-z0-9+.-]+):/+(.*)", re.DOTALL)
"""Two letters at least: C:/ is a drive."""
RUNNING = "running.json"
"""Object that tells others of a run at work: there are no locks behind URLs."""
SAVED_S = 30.0
"""The journal is uploaded so often; cases that ended after the last time are done again after a crash."""
FORGOTTEN_S = 300.0
"""A run that has not told of itself for so long is over."""


def url_of(path: Path) -> str:
    """The URL that a path was written as; empty if it is a path."""
    found = URL.fullmatch(str(path))
    if found is None or exists(path):
        return ""
    return f"{found[1]}://{'/' if found[1] in ('file', 'local') else ''}{found[2]}"


def _opened(url: str) -> tuple[Any, str]:
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
    say: Callable[[str], None] = lambda _: None,
    out: str = "",
) -> tuple[list[Scan], list[ScanError]]:
    """As `cases.find_scans`, for URLs, too: of those NIfTI files only.

    Args:
        arguments, channels, ignore, say: see there.
        out: URL of the results; nothing below it is a scan.
    """
    found, errors = find_scans([path for path in arguments if not url_of(path)], channels, ignore, say=say)
    scans = {place_of(scan[0]): scan for scan in found}
    for url in filter(None, map(url_of, arguments)):
        try:
            files = [file for file in _files_below(url) if not (out and file.is_relative_to(Path(out)))]
        except ScanError as error:
            errors.append(error)
            continue
        found, wrong = scans_in_files(filter(is_nifti, files), channels)
        others = sum(not is_nifti(file) for file in files)
        if not found and not wrong:
            errors.append(
                ScanError(f"{url}: no scan there, expected NIfTI files (.nii, .nii.gz); {others} other files")
            )
        elif others:
            say(f"left out: {url}: {others} files that are no NIfTI; DICOM is read from mounted storage only")
        scans |= {place_of(scan[0]): scan for scan in found}
        errors += wrong
    return list(scans.values()), errors


def _files_below(url: str) -> list[Path]:
    """A file, or of all in a folder at any depth, hidden ones left out.

    Raises:
        ScanError: if there is nothing, or it cannot be listed.
    """
    system, root = _opened(url)
    try:
        names = system.find(root)
    except Exception as error:  # each service's client has errors of its own
        raise ScanError(f"{url}: cannot be listed ({_told(error)})") from error
    if not names:
        raise ScanError(f"{url}: no such file or folder")
    shown = [name for name in sorted(names) if not re.search(r"/\.", name.removeprefix(root))]
    return [Path(system.unstrip_protocol(name)) for name in shown]


def _told(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]


@contextmanager
def mirrored(url: str) -> Iterator[Mirror]:
    """A folder here for the journal and the summary of results behind a URL, uploaded at the end.

    Raises:
        OutputError: if another run is at work there, or it cannot be read or written.
    """
    with scratch_folder() as folder:
        mirror = Mirror(url, folder)
        try:
            yield mirror
        finally:
            mirror.leave()


class Mirror:
    """See `mirrored`."""

    def __init__(self, url: str, folder: Path) -> None:
        self.url, self.folder = url.rstrip("/"), folder
        self._system, self._root = _opened(self.url)
        self._id = f"{platform.node()} {os.getpid()} {time.time():.0f}"
        self._saved = 0.0
        with self._reaching():
            self._enter()

    def _enter(self) -> None:
        with self._missing_is_fine():
            running = json.loads(self._system.cat_file(f"{self._root}/{RUNNING}"))
            if time.time() - float(running["seen"]) < FORGOTTEN_S:
                raise OutputError(
                    f"{self.url}: another run is working there ({running['run']}); wait for its end, or for "
                    f"{FORGOTTEN_S / 60:.0f} minutes if it was killed, or choose another --out"
                )
        with self._missing_is_fine():
            self._system.get_file(f"{self._root}/{JOURNAL}", str(self.folder / JOURNAL))
        self._tell_of_run()

    def save(self, *, now: bool = False) -> None:
        """Upload the journal, if that has not been done for a while."""
        if now or time.monotonic() - self._saved > SAVED_S:
            with self._reaching():
                if (self.folder / JOURNAL).exists():
                    self._put(self.folder / JOURNAL)
                self._tell_of_run()

    def leave(self) -> None:
        """Upload everything, and tell that the run is over."""
        with self._reaching():
            for path in sorted(self.folder.iterdir()):
                if path.is_file() and not path.name.startswith("."):
                    self._put(path)
            self._system.rm_file(f"{self._root}/{RUNNING}")

    def _put(self, path: Path) -> None:
        self._system.put_file(str(path), f"{self._root}/{path.name}")

    def _tell_of_run(self) -> None:
        self._system.pipe_file(f"{self._root}/{RUNNING}", json.dumps({"run": self._id, "seen": time.time()}).encode())
        self._saved = time.monotonic()

    @contextmanager
    def _missing_is_fine(self) -> Iterator[None]:
        try:
            yield
        except (FileNotFoundError, ValueError, KeyError):
            return

    @contextmanager
    def _reaching(self) -> Iterator[None]:
        try:
            yield
        except OutputError:
            raise
        except Exception as error:  # each service's client has errors of its own
            raise OutputError(f"{self.url}: cannot be read or written ({_told(error)})") from error


class Stage:
    """On a host: copies of what lies behind URLs, for as long as a case is done.

    Args:
        out: folder of the results.
        url: of the results; empty if they stay in the folder.
        outputs: what is made of a mask.

    Attributes:
        out: the folder to work in.
    """

    def __init__(self, out: Path, url: str, outputs: Outputs) -> None:
        self._scratch = tempfile.TemporaryDirectory(prefix="parotid-seg-")
        self._url, self._outputs = url.rstrip("/"), outputs
        self.out = Path(self._scratch.name) / "out" if url else out
        self.out.mkdir(exist_ok=True)

    def fetch(self, jobs: Sequence[Job]) -> list[Job | Finished]:
        """Copies of the jobs' scans, and of what the results hold of them; without its scan a case has ended."""
        with ThreadPoolExecutor(len(jobs)) as pool:
            return list(pool.map(self._fetched, jobs))

    def _fetched(self, job: Job) -> Job | Finished:
        case = job.case
        try:
            scan = tuple(self._copied(source) if isinstance(source, Path) else source for source in case.scan)
        except ScanError as error:
            return self.deliver(job, Finished("failed", failed(case, str(error))))
        if self._url:
            known = [job.known.mask, *job.known.further] if job.known else []
            for name in filter(None, {*known, *self._outputs.names(case.name)}):
                self._get_result(name)
        return replace(job, case=Case(case.name, scan))

    def _copied(self, source: Path) -> Path:
        url = url_of(source)
        if not url:
            return source
        folder = Path(tempfile.mkdtemp(dir=self._scratch.name))
        try:
            system, path = _opened(url)
            system.get_file(path, str(folder / source.name))
        except FileNotFoundError as error:
            raise ScanError(f"{url}: no such file") from error
        except Exception as error:  # each service's client has errors of its own
            raise ScanError(f"{url}: cannot be read ({_told(error)})") from error
        return folder / source.name

    def _get_result(self, name: str) -> None:
        system, root = _opened(self._url)
        try:
            system.get_file(f"{root}/{name}", str(self.out / name))
        except FileNotFoundError:
            (self.out / name).unlink(missing_ok=True)
        except Exception as error:  # each service's client has errors of its own
            raise OutputError(f"{self._url}/{name}: cannot be read ({_told(error)})") from error

    def deliver(self, job: Job, finished: Finished, copied: Job | None = None) -> Finished:
        """Upload a case's files, the mask last, and remove the copies.

        Args:
            job: the case as the command knows it.
            finished: how it ended.
            copied: the case as it was done here.

        Returns:
            How it ended, told of the scans as they are known to the command.

        Raises:
            OutputError: if a file cannot be uploaded.
        """
        entry = finished.entry
        for source, copy in zip(job.case.scan, copied.case.scan if copied else job.case.scan, strict=True):
            if isinstance(source, Path) and isinstance(copy, Path) and source != copy:
                entry = replace(entry, reason=entry.reason.replace(str(copy), url_of(source)))
                shutil.rmtree(copy.parent)
        first = job.case.scan[0]
        if isinstance(first, Path) and url_of(first):
            entry = replace(entry, source=url_of(first))
        if self._url:
            pictures = [f"{PICTURES}/{entry.case}.png", f"{PICTURES}/{views_of(entry.case)}"]
            for name in filter(None, (*pictures, *entry.further, entry.mask)):
                if finished.status == "done" and (self.out / name).exists():
                    self._upload(name)
                (self.out / name).unlink(missing_ok=True)
        return replace(finished, entry=entry)

    def _upload(self, name: str) -> None:
        system, root = _opened(self._url)
        try:
            system.put_file(str(self.out / name), f"{root}/{name}")
        except Exception as error:  # each service's client has errors of its own
            raise OutputError(f"{self._url}/{name}: cannot be written ({_told(error)})") from error
