"""Who takes part in bench.py: the trained network in torch in several ways (torch_contenders.py), and our backends.

Each takes chunks as they lie in memory, FP16 intensities in, and gives labels in memory; copies are part of that, and
`queue_depth` chunks may be under way at once, as in the product. Each also tells how long computing takes without
copies.
"""

from __future__ import annotations

import contextlib
import sys
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from parotid_seg.bench.system_state import gpu_memory_mib
from parotid_seg.runtime.engines.base import OUTPUTS, Backend, Pending
from parotid_seg.runtime.engines.engine_file import read_sidecar
from parotid_seg.runtime.engines.load import gpu_index
from parotid_seg.runtime.engines.model_file import read_model
from parotid_seg.runtime.engines.registry import ENGINE_FILE, ENGINES, Request
from parotid_seg.scan.chunks import Inputs
from parotid_seg.scan.volume import Mask


class Contender(Protocol):
    """One that takes part.

    Attributes:
        about: what is reported about it.
        ours: whether it is a backend of ours.
        queue_depth: chunks under way at once.
        copied: bytes of the latest chunk to the device and back; None if they are those of its inputs and labels.
    """

    ours: bool
    queue_depth: int

    @property
    def about(self) -> dict[str, Any]:
        """See above."""
        ...

    @property
    def copied(self) -> tuple[int, int] | None:
        """See above."""
        ...

    def start(self, inputs: Inputs) -> Pending:
        """Hand in a chunk; its result waits for the labels."""
        ...

    def compute_ms(self, inputs: Sequence[Inputs], repeats: int) -> list[float]:
        """Milliseconds a chunk without copies, each input so many times."""
        ...


class BackendContender:
    """One of our backends.

    Args:
        backend: what runs.
        provider: options of onnxruntime's CUDA provider that are not the product's.
    """

    ours = True

    def __init__(self, backend: Backend, provider: Mapping[str, str] | None = None) -> None:
        self.backend, self.queue_depth, self._provider = backend, backend.queue_depth, provider

    @property
    def about(self) -> dict[str, Any]:
        """What really runs; whether CUDA graphs do is known only after some chunks."""
        graphs = getattr(self.backend, "graphs", None)
        more = {"cuda_graphs": graphs, "provider_options": self._provider}
        return {**vars(self.backend.ran), **{name: value for name, value in more.items() if value}}

    @property
    def copied(self) -> tuple[int, int] | None:
        """As the backend counts them, if it does."""
        return getattr(self.backend, "copied", None)

    def start(self, inputs: Inputs) -> Pending:
        """Hand in a chunk."""
        return self.backend.start(inputs)

    def compute_ms(self, inputs: Sequence[Inputs], repeats: int) -> list[float]:
        """As the backend measures it, each chunk by itself."""
        return [1000 * self.backend.timed(chunk)[1].compute for _ in range(repeats) for chunk in inputs]


def through(contender: Contender, inputs: Sequence[Inputs]) -> list[Mask]:
    """All chunks, as many ahead as the contender likes."""
    found, pending = [], deque[Pending]()
    for chunk in inputs:
        pending.append(contender.start(chunk))
        if len(pending) >= contender.queue_depth:
            found.append(pending.popleft().result())
    return [*found, *(each.result() for each in pending)]  # type: ignore[list-item]  # they were asked for labels


def release_cached() -> None:
    """Give memory of the GPU that torch holds, but does not use, back to the driver."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()


def load_exactly(path: Path, engine: str, device: str) -> Backend:
    """A model file or engine on an engine, without a trial of batch sizes. It need not be verified.

    Raises:
        ParotidSegError: if it cannot be loaded.
    """
    contract = read_sidecar(path).contract if path.suffix == ENGINE_FILE else read_model(path).contract
    request = Request(path, contract, gpu_index(device), None, OUTPUTS[0], print)
    return ENGINES[engine].implementation().load(request)


class DeviceMemory:
    """How much of a GPU's memory each contender holds, by the driver's count of all memory in use.

    Args:
        gpu: its number; None on a CPU, where nothing is measured.

    Attributes:
        held_mib: MiB by name of the contender, weights, buffers and captured graphs included.
    """

    def __init__(self, gpu: int | None) -> None:
        self._gpu = gpu
        self.held_mib: dict[str, float] = {}

    @contextlib.contextmanager
    def of(self, name: str) -> Iterator[None]:
        """Add to a contender's memory by how much more is in use after the block than before."""
        before = self._in_use()
        yield
        after = self._in_use(release=False)
        if before is not None and after is not None:
            self.held_mib[name] = self.held_mib.get(name, 0.0) + after - before

    def _in_use(self, *, release: bool = True) -> float | None:
        if self._gpu is None:
            return None
        if release:
            release_cached()  # else a contender would reuse what another one has freed
        return gpu_memory_mib(self._gpu)
