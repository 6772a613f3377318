"""Executors run the cases of a run: on this machine, or elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Protocol

from parotid_seg.contract import Contract
from parotid_seg.runtime.engines.base import Backend, ExecutionInfo
from parotid_seg.runtime.pipeline.infer_options import InferOptions
from parotid_seg.runtime.pipeline.protocol.messages import CaseRequest, CaseResult, WorkerConfig
from parotid_seg.runtime.pipeline.scheduler import Limits, Pipeline
from parotid_seg.runtime.pipeline.worker_pool import Worker, WorkerPool
from parotid_seg.runtime.pipeline.worker_process import WorkerStarter
from parotid_seg.runtime.segmentation.batching import Batcher
from parotid_seg.wording import Say, counted


class Executor(Protocol):
    """Runs the cases of a run with a loaded model.

    Attributes:
        contract, model_sha256, ran: of the model, see `Backend`.
        about: additional fields for run.json.
    """

    contract: Contract
    model_sha256: str
    ran: ExecutionInfo
    about: Mapping[str, Any]

    def __str__(self) -> str:
        """Readable description of the executor."""
        ...

    def do(self, work: WorkerConfig, jobs: Sequence[CaseRequest]) -> Iterator[CaseResult]:
        """Run each case once; they finish in any order.

        Raises:
            ParotidSegError: if results cannot be written, or the run cannot continue.
        """
        ...

    def close(self) -> None:
        """End all processes."""
        ...


class LocalExecutor:
    """Worker processes around a model that this process runs.

    Args:
        load: loads the model; the first worker starts meanwhile.
        options: batch size, most workers and test-time augmentation.
        say: called with one line if the batch has to become smaller.
        starter: starts the workers' processes, if there is one already.
    """

    about: Mapping[str, Any] = MappingProxyType({})

    def __init__(
        self,
        load: Callable[[], Backend],
        options: InferOptions,
        say: Say,
        starter: WorkerStarter | None = None,
    ) -> None:
        self._tta = options.tta
        self._worker_pool = WorkerPool(starter)
        try:
            backend = load()
        except BaseException:
            self._worker_pool.close()
            raise
        self.contract, self.model_sha256, self.ran = backend.contract, backend.model_sha256, backend.ran
        self._limits = Limits.of_machine(options.workers, self.ran.device)
        self._batches = Batcher[Worker](backend, options.batch_size or backend.batch_size, tta=options.tta, say=say)

    def __str__(self) -> str:
        mirrored = " and their mirror images" if self._tta else ""
        workers = counted(self._limits.workers, "worker")
        return f"{self.ran}, batches of {self._batches.batch_size} slices{mirrored}; up to {workers}"

    def do(self, work: WorkerConfig, jobs: Sequence[CaseRequest]) -> Iterator[CaseResult]:
        """See `Pipeline.run`."""
        return Pipeline(work, self._batches, self._limits, self._worker_pool).run(jobs)

    def close(self) -> None:
        """End the workers."""
        self._worker_pool.close()
