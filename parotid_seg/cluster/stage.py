"""On a host: local copies of files behind URLs while a case runs."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from parotid_seg.cluster.urls import error_text, opened, url_of
from parotid_seg.errors import OutputError, ScanError
from parotid_seg.runtime.pipeline.discovery import Case
from parotid_seg.runtime.pipeline.protocol.messages import PICTURES, CaseRequest, CaseResult, failed, views_of
from parotid_seg.runtime.pipeline.writers import Outputs, is_ours


class Stage:
    """On a host: local copies of files behind URLs while a case runs.

    Args:
        out: folder of the results.
        url: of the results; empty if they stay in the folder.
        outputs: the files to write of a mask.

    Attributes:
        out: the working folder.
    """

    def __init__(self, out: Path, url: str, outputs: Outputs) -> None:
        self._scratch = tempfile.TemporaryDirectory(prefix="parotid-seg-")
        self._url, self._outputs = url.rstrip("/"), outputs
        self.out = Path(self._scratch.name) / "out" if url else out
        self.out.mkdir(exist_ok=True)

    def fetch(self, jobs: Sequence[CaseRequest]) -> list[CaseRequest | CaseResult]:
        """Copy the scans of the jobs and their earlier results; a case whose scan cannot be copied ends."""
        with ThreadPoolExecutor(len(jobs)) as pool:
            return list(pool.map(self._fetched, jobs))

    def _fetched(self, job: CaseRequest) -> CaseRequest | CaseResult:
        case = job.case
        try:
            scan = tuple(self._copied(source) if isinstance(source, Path) else source for source in case.scan)
        except ScanError as error:
            url = url_of(error.path) if error.path else None
            return self.deliver(job, CaseResult("failed", failed(case, error.reason, path=url)))
        if self._url:
            recorded = {job.known.mask, *job.known.further} if job.known else set()
            for name in filter(None, {*recorded, *self._outputs.names(case.name)}):
                self._get_result(name)
                if self._is_foreign(name, name in recorded, job):
                    reason = f"{name} exists and was not written by parotid-seg; move it or choose another --out"
                    return self.deliver(job, CaseResult("failed", failed(case, reason)))
        return replace(job, case=Case(case.name, scan))

    def _is_foreign(self, name: str, recorded: bool, job: CaseRequest) -> bool:
        """Whether there is a file of that name behind the URL that must not be replaced: a scan, or another program's.

        There is no record of what a killed run has uploaded, so a file that names parotid-seg as its writer may be
        replaced.
        """
        read = {url_of(source) for source in job.case.scan if isinstance(source, Path)}
        there = self.out / name
        return f"{self._url}/{name}" in read or (there.exists() and not recorded and not is_ours(there))

    def _copied(self, source: Path) -> Path:
        url = url_of(source)
        if not url:
            return source
        folder = Path(tempfile.mkdtemp(dir=self._scratch.name))
        try:
            system, path = opened(url)
            system.get_file(path, str(folder / source.name))
        except FileNotFoundError as error:
            raise ScanError("no such file", path=source) from error
        except Exception as error:  # each storage client has its own error types
            raise ScanError(f"cannot be read ({error_text(error)})", path=source) from error
        return folder / source.name

    def _get_result(self, name: str) -> None:
        system, root = opened(self._url)
        try:
            system.get_file(f"{root}/{name}", str(self.out / name))
        except FileNotFoundError:
            (self.out / name).unlink(missing_ok=True)
        except Exception as error:  # each storage client has its own error types
            raise OutputError(f"{self._url}/{name}: cannot be read ({error_text(error)})") from error

    def deliver(self, job: CaseRequest, finished: CaseResult, copied: CaseRequest | None = None) -> CaseResult:
        """Upload a case's files, the mask last, and remove the copies.

        Args:
            job: the case with the paths that the command knows.
            finished: its result.
            copied: the case with the paths of the copies.

        Returns:
            The result, with the paths that the command knows.

        Raises:
            OutputError: if a file cannot be uploaded.
        """
        entry = finished.entry
        for source, copy in zip(job.case.scan, copied.case.scan if copied else job.case.scan, strict=True):
            if isinstance(source, Path) and isinstance(copy, Path) and source != copy:
                entry = replace(entry, path=url_of(source) if entry.path == str(copy) else entry.path)
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
        system, root = opened(self._url)
        try:
            system.put_file(str(self.out / name), f"{root}/{name}")
        except Exception as error:  # each storage client has its own error types
            raise OutputError(f"{self._url}/{name}: cannot be written ({error_text(error)})") from error
