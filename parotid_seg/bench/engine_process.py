"""The process of an engine, seen from the main process and asked one question at a time."""

from __future__ import annotations

import contextlib
import pickle
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from parotid_seg.bench.child import Round, Started
from parotid_seg.bench.stages import Stages
from parotid_seg.errors import ParotidSegError
from parotid_seg.runtime.engines.autotune import Candidate
from parotid_seg.runtime.pipeline.protocol.worker_stdio import cause, command_of, send

if TYPE_CHECKING:
    from collections.abc import Sequence

    from parotid_seg.bench.layers import Layers
    from parotid_seg.runtime.pipeline.sources import Scan
    from parotid_seg.scan.chunks import Inputs
    from parotid_seg.scan.volume import Mask


class EngineProcess:
    """One engine in a process of its own.

    Args:
        candidate: what it loads.
        chunk: the first it takes.

    Attributes:
        name: the candidate's.
        cold_s: seconds from starting a process to the first chunk's labels; files may be in the system's cache.
        started: how that went.

    Raises:
        ParotidSegError: if the engine cannot be loaded, or its process dies.
    """

    def __init__(self, candidate: Candidate, chunk: Inputs) -> None:
        self.name = candidate.name
        begun = time.perf_counter()
        self._process = subprocess.Popen(
            command_of("parotid_seg.bench.child"), stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        try:
            self._hear()
            python_s = time.perf_counter() - begun
            self.started: Started = self._ask("start", candidate.make, chunk)
        except BaseException:
            self.end()
            raise
        self.cold_s = python_s + self.started.load_s + self.started.first_s

    def hold(self, batch_size: int, real: Sequence[Inputs], noise: Sequence[Inputs]) -> None:
        """See `Child.hold`; as all questions, it raises ParotidSegError if the engine refuses or the process dies."""
        self._ask("hold", batch_size, list(real), list(noise))

    def memory_mib(self, batch_size: int, count: int) -> float:
        """See `Child.memory_mib`."""
        return cast(float, self._ask("memory_mib", batch_size, count))

    def round(self, batch_size: int, count: int) -> Round:
        """See `Child.round`."""
        return cast(Round, self._ask("round", batch_size, count))

    def labels(self, scan: Scan, batch_size: int) -> Mask:
        """See `Child.labels`."""
        return cast("Mask", self._ask("labels", scan, batch_size))

    def stages(self, scans: Sequence[Scan], batch_size: int) -> list[Stages]:
        """See `Child.stages`."""
        return cast(list[Stages], self._ask("stages", list(scans), batch_size))

    def infer(self, folder: Path, batch_size: int) -> float:
        """See `Child.infer`."""
        return cast(float, self._ask("infer", folder, batch_size))

    def layers(self, model: Path, chunk: Inputs) -> Layers:
        """See `Child.layers`."""
        return cast("Layers", self._ask("layers", model, chunk))

    def end(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()

    def _ask(self, question: str, *arguments: object) -> Any:
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # then the answer is missing, too
            send((question, arguments), self._process.stdin)
        answer = self._hear()
        if isinstance(answer, ParotidSegError):
            raise answer
        return answer

    def _hear(self) -> Any:
        assert self._process.stdout is not None
        try:
            return pickle.load(self._process.stdout)
        except (EOFError, OSError, pickle.UnpicklingError) as error:
            self._process.kill()
            raise ParotidSegError(f"{self.name}: {cause(self._process.wait())}") from error
