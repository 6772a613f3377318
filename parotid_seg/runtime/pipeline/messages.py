"""What the main process and its workers say to each other, strictly by turns; `requests` and `answers` are how.

The main process sends a `WorkerConfig` once and then a `CaseRequest` for each case. The worker answers with a
`CroppedScan` for each part of the scan that the model is to compute, gets a `Prediction` or a `ScanError` for it, and
ends with `CaseResult`, `PutOff` or `OutputFailure`.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path

from parotid_seg.contract import Contract
from parotid_seg.runtime.engines.base import ExecutionInfo
from parotid_seg.runtime.pipeline.discovery import Case
from parotid_seg.runtime.pipeline.journal import Entry
from parotid_seg.runtime.pipeline.options import InferOptions
from parotid_seg.runtime.pipeline.sources import place_of, series_of

PICTURES = "pictures"
"""Folder of overlays in the output folder."""


def views_of(case: str) -> str:
    """Name of the report's picture of a case, in that folder."""
    return f"{case}.webp"


@dataclass(frozen=True)
class WorkerConfig:
    """What all cases of a run have in common.

    Attributes:
        out: output folder.
        contract: the model's.
        fingerprint: what decides a mask beside the scan: the model, what computes it, options, and the version of the
            rules.
        options: what the user asked for.
        made_by: what a DICOM object says of its algorithm.
    """

    out: Path
    contract: Contract
    fingerprint: tuple[str, ...]
    options: InferOptions = field(default_factory=InferOptions)
    made_by: str = ""

    @property
    def settings(self) -> str:
        """Hash over what decides a mask beside the scan."""
        return hashlib.sha256(" ".join(self.fingerprint).encode()).hexdigest()


@dataclass(frozen=True)
class CaseRequest:
    """A case to do, and what the journal has of it."""

    case: Case
    known: Entry | None


@dataclass(frozen=True)
class CaseResult:
    """How a case ended.

    Attributes:
        status, entry: see `case_runner.run_case`.
        ran: what ran the model, where that was another machine.
        machine: whether it failed because this machine had run out of something, and nothing is wrong with the scan.
    """

    status: str
    entry: Entry
    ran: ExecutionInfo | None = None
    machine: bool = False


@dataclass(frozen=True)
class PutOff:
    """The machine has run out of something, so the case is to be done later; the reason is a `MachineError`'s."""

    reason: str


@dataclass(frozen=True)
class OutputFailure:
    """Results cannot be written, so no case can be done."""

    message: str


def failed(case: Case, reason: str, key: str = "", *, path: Path | str | None = None) -> Entry:
    """The entry of a case that was set aside.

    Args:
        case: the case.
        reason: why, without the path.
        key: see `Entry`.
        path: the file or folder that the reason is about; None for the scan's place.
    """
    place = place_of(case.scan[0])
    return Entry(
        case.name, str(place), key, "failed", reason=reason, path=str(path or place), series=series_of(case.scan[0])
    )
