"""Verifies engines: where there is a GPU, an engine's masks are compared with the trained model's."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from parotid_seg.errors import InputError
from parotid_seg.export.parity import Parity, ScanParity
from parotid_seg.export.proof import summary_of, worst_of
from parotid_seg.runtime.engines.base import ExecutionInfo, labels_of
from parotid_seg.runtime.engines.engine_file import check_engine, read_sidecar
from parotid_seg.runtime.engines.gpu import find_gpu
from parotid_seg.runtime.engines.tensorrt.cuda_context import import_pycuda
from parotid_seg.runtime.engines.tensorrt.library import import_library, known_capabilities
from parotid_seg.runtime.engines.tensorrt.tensorrt_engine import TensorRtBackend
from parotid_seg.runtime.tolerance import GATES


@dataclass(frozen=True)
class EngineProof:
    """The verification of an engine.

    Attributes:
        precision: type it computes in.
        rows: comparisons of masks.
        ran: engine, device and precision that ran it; None if it was not run.
        not_run: why it was not run.
    """

    precision: str
    rows: tuple[ScanParity, ...] = ()
    ran: ExecutionInfo | None = None
    not_run: str = ""

    @property
    def failure(self) -> str:
        """Why the engine must not be used; empty if it may."""
        if not self.rows or worst_of(self.rows).passed:
            return ""
        return f"the engine differs from the trained model: {worst_of(self.rows)}"

    def lines(self) -> list[str]:
        """Lines for the terminal."""
        if self.ran is None:
            return [f"engine: not run here, its masks are not compared: {self.not_run}"]
        return [
            f"{self.ran.backend} on {self.ran.device}: agreement with the trained model: {row}" for row in self.rows
        ]

    def record(self) -> dict[str, Any]:
        """Record for the parity file."""
        return {"failure": self.failure, "gate": asdict(GATES[self.precision]), **asdict(self)}

    def summary(self) -> dict[str, Any]:
        """Summary for the sidecar."""
        if self.ran is None:
            return {"not_run": self.not_run}
        return {"with": self.ran.backend, "on": self.ran.device, **summary_of(self.rows)}


def prove_engine(engine: Path, parity: Parity) -> EngineProof:
    """Run an engine as a user would and compare its masks, if this machine can run it.

    Args:
        engine: the file, with its sidecar.
        parity: the trained model's masks.
    """
    sidecar, reason = read_sidecar(engine), ""
    trt = import_library(sidecar.library)
    reasons = check_engine(engine, sidecar, trt.__version__, find_gpu(), known_capabilities(trt))
    try:
        import_pycuda(sidecar.library)
    except InputError as error:
        reason = str(error)
    if reasons or reason:
        return EngineProof(sidecar.precision, not_run="; ".join(reasons) or reason)
    backend = TensorRtBackend(engine)
    try:
        rows = parity.check(partial(labels_of, backend), GATES[sidecar.precision])
        return EngineProof(sidecar.precision, tuple(rows), backend.ran)
    finally:
        backend.close()
