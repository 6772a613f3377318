"""What runs a model file: the small interface that all engines share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from parotid_seg.contract import Contract
from parotid_seg.errors import ModelError
from parotid_seg.scan.chunks import Inputs
from parotid_seg.scan.input_spec import INPUT_SPECS
from parotid_seg.scan.volume import Mask

INPUTS = tuple(spec.name for spec in INPUT_SPECS)
"""The inputs every model has."""

Output = Mask | NDArray[np.float32]
"""Labels (S, H, W) uint8, or probabilities (S, K, H, W) of K classes."""

OUTPUTS = ("labels", "probabilities")
"""What can be asked of a model; only one exported with --probabilities has the second."""

USUAL_BATCH = 16
"""Slices at once where neither the user nor the engine says otherwise."""


@dataclass(frozen=True)
class ExecutionInfo:
    """What really runs the model, for run.json and summary.csv.

    Attributes:
        backend: engine and its version.
        device: where it runs.
        precision: type it computes in.
    """

    backend: str
    device: str
    precision: str

    def __str__(self) -> str:
        return f"{self.backend} on {self.device}, {self.precision}"


class Times(NamedTuple):
    """Seconds of a chunk's way into the device's memory, through the model, and back into the host's.

    On the CPU what is copied is what has to be padded and cut.
    """

    to_device: float
    compute: float
    from_device: float


class Pending(Protocol):
    """A chunk that was handed in."""

    def result(self) -> Output:
        """Wait for the output; the array is the caller's own.

        Raises:
            DeviceMemoryError: if the chunk does not fit into the GPU's memory; a smaller one may.
        """
        ...


class Backend(Protocol):
    """A loaded model. It is made once, used by one thread, and segments any number of chunks.

    Attributes:
        contract: what the model file promises.
        model_sha256: hash of the model file.
        ran: what really runs it.
        batch_size: samples a chunk that it is fastest with, as far as it is known.
        largest_batch: samples a chunk that it can take; None if any number.
        ahead: how many chunks to hand in before waiting for the first, so that copies and computing overlap.
    """

    contract: Contract
    model_sha256: str
    ran: ExecutionInfo
    batch_size: int
    largest_batch: int | None
    queue_depth: int

    def fits(self, inputs: Inputs) -> bool:
        """Whether a chunk is within the shapes that it takes."""
        ...

    def start(self, inputs: Inputs) -> Pending:
        """Hand in a chunk. The inputs must not change before its result is there.

        Raises:
            DeviceMemoryError: as `Pending.result`.
        """
        ...

    def timed(self, inputs: Inputs) -> tuple[Output, Times]:
        """Take a chunk by itself from beginning to end, and tell the times; for profiling.

        Raises:
            DeviceMemoryError: as `Pending.result`.
        """
        ...

    def close(self) -> None:
        """Give device memory back; nothing can be handed in afterwards."""
        ...


@dataclass(frozen=True)
class Done:
    """A chunk whose output is already there."""

    output: Output

    def result(self) -> Output:
        """The output."""
        return self.output


def labels_of(backend: Backend, inputs: Inputs) -> Mask:
    """One chunk to labels (S, H, W), by a backend that was asked for them."""
    return cast(Mask, backend.start(inputs).result())


def check_names(inputs: Sequence[str], outputs: Sequence[str], output: str, *, where: str) -> None:
    """Raise ModelError unless a loaded model has our inputs and this output."""
    if sorted(inputs) != sorted(INPUTS):
        raise ModelError(f"{where}: found inputs {', '.join(sorted(inputs))}, expected {', '.join(sorted(INPUTS))}")
    if output not in outputs:
        raise ModelError(f"{where}: found outputs {', '.join(outputs)}, expected {output}")
