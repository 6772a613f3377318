"""The program of an engine's process: loads one engine and answers questions about it.

Each engine has its own process, so that memory and start-up time are the engine's alone and a crash ends only it.
"""

from __future__ import annotations

import contextlib
import pickle
import sys
import tempfile
import time
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from parotid_seg.errors import ParotidSegError
from parotid_seg.runtime.pipeline.protocol.worker_stdio import ends, send

if TYPE_CHECKING:
    from parotid_seg.bench.layers import Layers
    from parotid_seg.bench.scan_stages import Stages
    from parotid_seg.runtime.engines.base import Backend, ExecutionInfo, Pending
    from parotid_seg.runtime.pipeline.run import Outcome
    from parotid_seg.runtime.pipeline.sources import Scan
    from parotid_seg.scan.chunks import Inputs
    from parotid_seg.scan.volume import Mask


MIB = 1 << 20
RESET_PEAK = "5"
"""What /proc/self/clear_refs takes to forget the peak; see proc(5)."""


@dataclass(frozen=True)
class Started:
    """How an engine's process started.

    Attributes:
        load_s: seconds to import its libraries and load the model.
        first_s: seconds of the first chunk after that.
        ran: what runs the model.
        largest_batch, queue_depth: see `Backend`.
    """

    load_s: float
    first_s: float
    ran: ExecutionInfo
    largest_batch: int | None
    queue_depth: int


@dataclass(frozen=True)
class Round:
    """Times of some chunks, one by one.

    Attributes:
        real_ms, noise_ms: of chunks of scans, and of noise.
        ahead_ms: milliseconds per chunk with several under way; empty where the backend takes one at a time.
    """

    real_ms: tuple[float, ...]
    noise_ms: tuple[float, ...]
    ahead_ms: tuple[float, ...]


class Child:
    """Answers the questions of `EngineProcess`. Every public method is a question; `start` comes first."""

    def __init__(self) -> None:
        self._backend: Backend
        self._chunks: dict[int, tuple[deque[Inputs], deque[Inputs]]] = {}

    def start(self, make: Callable[[], Backend], chunk: Inputs) -> Started:
        """Load the model and run a chunk."""
        begun = time.perf_counter()
        self._backend = backend = make()
        loaded = time.perf_counter()
        backend.start(chunk).result()
        ready = time.perf_counter()
        return Started(loaded - begun, ready - loaded, backend.ran, backend.largest_batch, backend.queue_depth)

    def start_again(self, make: Callable[[], Backend], chunk: Inputs) -> float:
        """Seconds to load the model once more in this process, with its first chunk. Its memory may stay in use."""
        begun = time.perf_counter()
        second = make()
        second.start(chunk).result()
        seconds = time.perf_counter() - begun
        second.close()
        return seconds

    def hold(self, batch_size: int, real: Sequence[Inputs], noise: Sequence[Inputs]) -> None:
        """Keep the chunks of a batch size, and prepare the engine for their shapes."""
        self._backend.batch_size = batch_size
        for chunk in {tuple(array.shape for array in chunk.values()): chunk for chunk in real}.values():
            self._backend.specialise(chunk)
        self._chunks[batch_size] = deque(real), deque(noise)

    def memory_mib(self, batch_size: int, count: int) -> float:
        """The process's largest resident set while it takes some chunks."""
        forget_peak()
        self.round(batch_size, count)
        return peak_mib()

    def round(self, batch_size: int, count: int) -> Round:
        """Run so many chunks, one by one, followed by a few of noise."""
        real, noise = self._chunks[batch_size]
        self._backend.batch_size = batch_size
        times = tuple(self._ms(real) for _ in range(count))
        of_noise = tuple(self._ms(noise) for _ in range(-(-count // 4)))
        ahead_ms = (self._ahead_ms(list(real)),) if self._backend.queue_depth > 1 else ()
        return Round(times, of_noise, ahead_ms)

    def labels(self, scan: Scan, batch_size: int) -> Mask:
        """The mask of a scan as the engine gives it."""
        from parotid_seg.bench.mask_parity import labels_of_scan

        return labels_of_scan(self._backend, scan, batch_size)

    def stages(self, scans: Sequence[Scan], batch_size: int) -> list[Stages]:
        """Each scan from file to mask, one after the other in this process."""
        from parotid_seg.bench.scan_stages import staged

        with tempfile.TemporaryDirectory() as folder:
            return [staged(self._backend, scan, batch_size, Path(folder)) for scan in scans]

    def infer(self, folder: Path, batch_size: int) -> float:
        """Seconds of `parotid-seg infer` on a folder of scans, its model loaded beforehand."""
        from parotid_seg.runtime.pipeline.infer_options import InferOptions
        from parotid_seg.runtime.pipeline.run import infer

        options = InferOptions(batch_size=batch_size)
        outcomes: list[Outcome] = []
        with tempfile.TemporaryDirectory() as out:
            begun = time.perf_counter()
            infer([folder], Path(out), lambda: self._backend, options, progress=outcomes.append)
            seconds = time.perf_counter() - begun
        failed = [outcome.entry for outcome in outcomes if outcome.status == "failed"]
        if failed:
            name, reason = Path(failed[0].source).name, failed[0].reason
            raise ParotidSegError(f"{len(failed)} of {len(outcomes)} scans failed, the first: {name}: {reason}")
        return seconds

    def layers(self, model: Path, chunk: Inputs) -> Layers:
        """Where the time goes within the model."""
        from parotid_seg.bench.layers import profile_layers

        return profile_layers(model, self._backend, chunk)

    def _ms(self, chunks: deque[Inputs]) -> float:
        """Milliseconds of the next chunk."""
        chunks.rotate(1)
        begun = time.perf_counter()
        self._backend.start(chunks[0]).result()
        return 1000 * (time.perf_counter() - begun)

    def _ahead_ms(self, chunks: Sequence[Inputs]) -> float:
        """Milliseconds per chunk, with as many in flight as the backend's queue depth allows."""
        pending: deque[Pending] = deque()
        begun = time.perf_counter()
        for chunk in chunks:
            pending.append(self._backend.start(chunk))
            if len(pending) >= self._backend.queue_depth:
                pending.popleft().result()
        while pending:
            pending.popleft().result()
        return 1000 * (time.perf_counter() - begun) / len(chunks)


def peak_mib() -> float:
    """The largest resident set of this process in MiB since `forget_peak`; since its start where that is
    unsupported."""
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) / 1024
    import resource  # on Unix only

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / MIB if sys.platform == "darwin" else peak / 1024


def forget_peak() -> None:
    """Reset the peak to the current use, where the system supports it (Linux)."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text(RESET_PEAK)


def main() -> None:
    """Answer questions until the standard input ends."""
    requests, answers = ends()
    child = Child()
    with contextlib.suppress(EOFError, BrokenPipeError):
        send(None, answers)  # Python is up
        while True:
            answer: object
            try:
                question, arguments, named = pickle.load(requests)
                answer = question(child, *arguments, **named)
            except EOFError:
                raise
            except ParotidSegError as error:
                answer = error
            except Exception as error:  # a library's, or a bug: it ends this engine only
                traceback.print_exc()
                answer = ParotidSegError(f"unexpected {type(error).__name__}: {' '.join(str(error).split())}")
            send(answer, answers)
