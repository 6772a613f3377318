"""What runs a model file: the small interface that all engines share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from parotid_seg.contract import Contract
from parotid_seg.scan.volume import Mask

Inputs = Mapping[str, NDArray[np.float16] | NDArray[np.float32]]
"""One chunk of a scan by the names of the model's inputs; see `scan.grid.Chunk`."""


@dataclass(frozen=True)
class Ran:
    """What really runs the model, for run.json and summary.csv.

    Attributes:
        backend: engine and its version.
        device: where it runs.
        precision: type it computes in.
    """

    backend: str
    device: str
    precision: str


class Backend(Protocol):
    """A loaded model. It is made once and segments any number of chunks.

    Attributes:
        contract: what the model file promises.
        model_sha256: hash of the model file.
        ran: what really runs it.
        loads: how often this process has loaded a model with this backend.
    """

    loads: ClassVar[int]
    contract: Contract
    model_sha256: str
    ran: Ran

    def run(self, inputs: Inputs) -> Mask:
        """One chunk to labels (S, H, W)."""
        ...
