"""The small interface that all engines share."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from parotid_seg.contract import INPUT_SPECS, Contract
from parotid_seg.errors import ModelError
from parotid_seg.scan.chunks import Inputs
from parotid_seg.scan.volume import Mask

INPUTS = tuple(spec.name for spec in INPUT_SPECS)
"""The inputs of every model."""

Output = Mask | NDArray[np.float32]
"""Labels (S, H, W) uint8, or probabilities (S, K, H, W) of K classes."""

OUTPUTS = ("labels", "probabilities")
"""Names of a model's outputs; only models exported with --probabilities have the second."""

USUAL_BATCH = 16
"""Slices at once if neither the user nor the engine sets another number."""


@dataclass(frozen=True)
class ExecutionInfo:
    """The engine that really runs the model, for run.json and summary.csv.

    Attributes:
        backend: engine and its version.
        device: CPU or GPU.
        precision: type it computes in.
    """

    backend: str
    device: str
    precision: str

    def __str__(self) -> str:
        return f"{self.backend} on {self.device}, {self.precision}"


class Times(NamedTuple):
    """Seconds of a chunk's copy to the device, of the model, and of the copy back to the host.

    On the CPU only padding and cropping copy data.
    """

    to_device: float
    compute: float
    from_device: float


class Pending(Protocol):
    """A chunk that was submitted."""

    def result(self) -> Output:
        """Wait for the output; the array belongs to the caller.

        Raises:
            DeviceMemoryError: if the chunk does not fit into the GPU's memory; a smaller one may.
        """
        ...


class Backend:
    """A loaded model. It is loaded once, used by one thread, and segments any number of chunks.

    Attributes:
        contract: the model's.
        model_sha256: hash of the model file.
        ran: engine, device and precision that really run it.
        batch_size: samples of a full chunk: those with which it is fastest, until the caller takes another number. An
            engine may pad smaller chunks to as many.
        largest_batch: most samples per chunk; None for any number.
        queue_depth: how many chunks to submit before waiting for the first, so that copies and computing overlap.
    """

    contract: Contract
    model_sha256: str
    ran: ExecutionInfo
    batch_size: int = USUAL_BATCH
    largest_batch: int | None = None
    queue_depth: int = 1

    def start(self, inputs: Inputs) -> Pending:
        """Submit a chunk. The inputs must not change before its result is available.

        Raises:
            DeviceMemoryError: as `Pending.result`.
        """
        raise NotImplementedError

    def fits(self, inputs: Inputs) -> bool:
        """Whether a chunk is within the shapes that it accepts; of most engines any chunk is."""
        return True

    def specialise(self, inputs: Inputs) -> None:
        """Prepare chunks of these shapes to be timed, if the engine would first compute them in a slower way.

        Raises:
            DeviceMemoryError: as `Pending.result`.
        """

    def timed(self, inputs: Inputs) -> tuple[Output, Times]:
        """Run a chunk by itself from beginning to end, and measure the times; for profiling.

        All time counts as computing if the engine's copies cannot be told from it.

        Raises:
            DeviceMemoryError: as `Pending.result`.
        """
        begun = time.perf_counter()
        output = self.start(inputs).result()
        return output, Times(0.0, time.perf_counter() - begun, 0.0)

    def close(self) -> None:
        """Free device memory; no chunk can be submitted afterwards."""


@dataclass(frozen=True)
class Done:
    """A chunk whose output is already available."""

    output: Output

    def result(self) -> Output:
        """The output."""
        return self.output


class PendingChunk:
    """A chunk that was submitted.

    Args:
        wait: waits for its end and settles it.
    """

    def __init__(self, wait: Callable[[], None]) -> None:
        self._wait: Callable[[], None] | None = wait
        self._settled: Output | Exception | None = None

    def settle(self, outcome: Output | Exception) -> None:
        """Store the output, or the error in its place; afterwards the chunk no longer refers to its buffers."""
        self._settled, self._wait = outcome, None

    def result(self) -> Output:
        """Wait for the output; the array belongs to the caller.

        Raises:
            DeviceMemoryError, DeviceError, ModelError: the error in its place.
        """
        if self._wait is not None:
            self._wait()
        if isinstance(self._settled, Exception):
            raise self._settled
        assert self._settled is not None
        return self._settled


def labels_of(backend: Backend, inputs: Inputs) -> Mask:
    """Labels (S, H, W) of one chunk, by a backend that was loaded for this output."""
    return cast(Mask, backend.start(inputs).result())


def check_names(inputs: Sequence[str], outputs: Sequence[str], output: str, *, where: str) -> None:
    """Raise ModelError unless a loaded model has the inputs of every model and this output."""
    if sorted(inputs) != sorted(INPUTS):
        raise ModelError(f"{where}: found inputs {', '.join(sorted(inputs))}, expected {', '.join(sorted(INPUTS))}")
    if output not in outputs:
        raise ModelError(f"{where}: found outputs {', '.join(outputs)}, expected {output}")
