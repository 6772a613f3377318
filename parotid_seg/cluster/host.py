"""The program on a cluster's hosts: an actor with the model and its worker processes."""

from __future__ import annotations

import pickle
import platform
import shutil
import tempfile
import traceback
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from parotid_seg.cluster.driver_messages import ModelForHosts, RunRequest
from parotid_seg.cluster.urls import error_text, file_system_of, url_of
from parotid_seg.errors import ModelError, OutputError, ParotidSegError, ScanError
from parotid_seg.runtime.engines.base import Backend, ExecutionInfo
from parotid_seg.runtime.engines.load import load_backend
from parotid_seg.runtime.pipeline.discovery import Case
from parotid_seg.runtime.pipeline.ownership import pictures_of
from parotid_seg.runtime.pipeline.protocol.messages import CaseRequest, CaseResult, OutputFailure, failed
from parotid_seg.runtime.pipeline.scheduler import Limits, Pipeline
from parotid_seg.runtime.pipeline.worker_pool import Worker, WorkerPool
from parotid_seg.runtime.pipeline.writers import Outputs, is_ours
from parotid_seg.runtime.segmentation.batching import Batcher
from parotid_seg.system import available_cores
from parotid_seg.version import VERSION


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
            system, path = file_system_of(url)
            system.get_file(path, str(folder / source.name))
        except FileNotFoundError as error:
            raise ScanError("no such file", path=source) from error
        except Exception as error:  # each storage client has its own error types
            raise ScanError(f"cannot be read ({error_text(error)})", path=source) from error
        return folder / source.name

    def _get_result(self, name: str) -> None:
        system, root = file_system_of(self._url)
        try:
            system.get_file(f"{root}/{name}", str(self.out / name))
        except FileNotFoundError:
            (self.out / name).unlink(missing_ok=True)
        except Exception as error:  # each storage client has its own error types
            raise OutputError(f"{self._url}/{name}: cannot be read ({error_text(error)})") from error

    def deliver(self, job: CaseRequest, finished: CaseResult, copied: CaseRequest | None = None) -> CaseResult:
        """Upload a case's files, the mask last, and remove the copies, and pictures that an earlier run drew.

        Args:
            job: the case with the paths that the command knows.
            finished: its result.
            copied: the case with the paths of the copies.

        Returns:
            The result, with the paths that the command knows.

        Raises:
            OutputError: if a file cannot be uploaded or removed.
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
            for name in filter(None, (*pictures_of(entry.case), *entry.further, entry.mask)):
                if finished.status == "done" and (self.out / name).exists():
                    self._upload(name)
                elif finished.status != "skipped" and job.known and name in pictures_of(entry.case):
                    self._remove(name)  # of an earlier mask
                (self.out / name).unlink(missing_ok=True)
        return replace(finished, entry=entry)

    def _remove(self, name: str) -> None:
        system, root = file_system_of(self._url)
        try:
            system.rm_file(f"{root}/{name}")
        except FileNotFoundError:
            return
        except Exception as error:  # each storage client has its own error types
            raise OutputError(f"{self._url}/{name}: cannot be removed ({error_text(error)})") from error

    def _upload(self, name: str) -> None:
        system, root = file_system_of(self._url)
        try:
            system.put_file(str(self.out / name), f"{root}/{name}")
        except Exception as error:  # each storage client has its own error types
            raise OutputError(f"{self._url}/{name}: cannot be written ({error_text(error)})") from error


@dataclass(frozen=True)
class ActorConfig:
    """What an actor needs for its run.

    Attributes:
        model: see `ModelForHosts`.
        request: of the run, without its jobs.
        cpus: cores reserved for it.
        ran: engine, device and precision that the model must run with, so that all masks are computed alike.
    """

    model: ModelForHosts
    request: RunRequest
    cpus: int
    ran: ExecutionInfo


class Host:
    """An actor of Ray Data. Its constructor does no work, and its errors are returned as answers, because Ray would
    retry an exception again and again.

    Args:
        order: reference to a pickled `ActorConfig`.
        version: of the package that pickled it.
    """

    def __init__(self, order: Any, version: str) -> None:
        self._order, self._version = order, version
        self._cases: _Cases | None = None

    def __call__(self, row: dict[str, bytes]) -> list[dict[str, bytes]]:
        """Run the cases of a row.

        Args:
            row: `jobs`, pickled.

        Returns:
            A row for each case, `answer`, a pickled `CaseResult`; or one `OutputFailure`.
        """
        return [{"answer": pickle.dumps(answer)} for answer in self._results(row["jobs"])]

    def _results(self, row: bytes) -> Iterator[CaseResult | OutputFailure]:
        remaining: dict[str, CaseRequest] = {}
        try:
            if self._version != VERSION:
                raise OutputError(f"found parotid-seg {VERSION}, expected {self._version} as where the command runs")
            if self._cases is None:
                import ray

                self._cases = _Cases(pickle.loads(ray.get(self._order)))
            jobs: list[CaseRequest] = pickle.loads(row)
            remaining = {job.case.name: job for job in jobs}
            for finished in self._cases.do(jobs):
                del remaining[finished.entry.case]
                yield finished
        except ParotidSegError as error:
            yield OutputFailure(f"host {platform.node()}: {error}")
        except Exception as error:  # a bug; the other scans go on
            traceback.print_exc()
            if self._cases:
                self._cases.end()
                self._cases = None
            for job in remaining.values():
                place = f"host {platform.node()}, see its Ray log for details"
                yield CaseResult("failed", failed(job.case, f"unexpected {type(error).__name__} on {place}"))


class _Cases:
    """The model, and the processes that read and write.

    Raises:
        OutputError: if the results' folder is not the one that the command uses.
        ModelError: if the model does not run with the same engine, device and precision as on the other hosts.
    """

    def __init__(self, order: ActorConfig) -> None:
        work, request, model = order.request.work, order.request, order.model
        if not (request.out or (work.out / request.token).is_file()):
            raise OutputError(f"not the folder that the command sees there; {SHARED}", path=work.out)
        backend = load_on_host(model, order.cpus)
        self._ran = backend.ran
        if (self._ran.precision, self._ran.device[:3]) != (order.ran.precision, order.ran.device[:3]):
            raise ModelError(f"{model.name} runs with {self._ran}, expected {order.ran} as elsewhere")
        self._stage = Stage(work.out, request.out, work.options.outputs)
        batches = Batcher[Worker](backend, model.batch_size or backend.batch_size, tta=model.tta)
        usual = Limits.of_machine(order.cpus, self._ran.device)
        limits = replace(usual, scan_bytes=usual.scan_bytes * min(1.0, order.cpus / available_cores()))
        self._worker_pool = WorkerPool()
        self._pipeline = Pipeline(replace(work, out=self._stage.out), batches, limits, self._worker_pool)

    def do(self, jobs: Sequence[CaseRequest]) -> Iterator[CaseResult]:
        """Run cases."""
        for job in jobs:
            source = job.case.scan[0]
            if isinstance(source, Path) and not url_of(source) and not source.parent.is_dir():
                raise OutputError(f"no such folder, which the command sees; {SHARED}", path=source.parent)
        fetched = self._stage.fetch(jobs)
        yield from (each for each in fetched if isinstance(each, CaseResult))
        requests = {job.case.name: job for job in jobs}
        copies = {each.case.name: each for each in fetched if isinstance(each, CaseRequest)}
        for finished in self._pipeline.run(copies.values()):
            name = finished.entry.case
            yield replace(self._stage.deliver(requests[name], finished, copies[name]), ran=self._ran)

    def end(self) -> None:
        """End the processes."""
        self._worker_pool.close()


SHARED = "scans and --out must be in storage that all hosts share, at the same path"


def load_on_host(model: ModelForHosts, cpus: int) -> Backend:
    """Load a model from the bytes of its files.

    Raises:
        ParotidSegError: as `load_backend`.
    """
    with tempfile.TemporaryDirectory(prefix="parotid-seg-") as folder:
        for name, content in model.files.items():
            Path(folder, name).write_bytes(content)
        return load_backend(
            Path(folder, model.name),
            model.backend,
            model.device,
            threads=cpus,
            output=model.output,
            allow_unverified=model.allow_unverified,
        )
