"""Messages between the main process and its workers, strictly in turns; `requests` and `answers` encode them.

The main process sends a `WorkerConfig` once and then a `CaseRequest` for each case. The worker answers with a
`CroppedScan` for each part of the scan that the model must compute, gets a `Prediction` or a `ScanError` for it, and
ends with `CaseResult`, `PutOff` or `OutputFailure`.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace
from pathlib import Path

from parotid_seg.contract import Contract
from parotid_seg.errors import ScanError
from parotid_seg.runtime.engines.base import ExecutionInfo
from parotid_seg.runtime.pipeline.discovery import Case
from parotid_seg.runtime.pipeline.infer_options import InferOptions
from parotid_seg.runtime.pipeline.journal import Entry
from parotid_seg.runtime.pipeline.sources import facts_of, place_of, series_of

PICTURES = "pictures"
"""Folder of overlays in the output folder."""


def views_of(case: str) -> str:
    """Name of the report's picture of a case, in that folder."""
    return f"{case}.webp"


@dataclass(frozen=True)
class WorkerConfig:
    """Configuration of all cases of a run.

    Attributes:
        out: output folder.
        contract: the model's.
        fingerprint: everything besides the scan that determines a mask: model, engine, options, and the version of the
            rules.
        options: the user's options.
        made_by: the first digits of the model's hash, for DICOM objects.
    """

    out: Path
    contract: Contract
    fingerprint: tuple[str, ...]
    options: InferOptions = field(default_factory=InferOptions)
    made_by: str = ""

    @property
    def settings(self) -> str:
        """Hash of everything besides the scan that determines a mask."""
        return hashlib.sha256(" ".join(self.fingerprint).encode()).hexdigest()


@dataclass(frozen=True)
class CaseRequest:
    """A case to run, and the journal's entry of it."""

    case: Case
    known: Entry | None


@dataclass(frozen=True)
class CaseResult:
    """The result of a case.

    Attributes:
        status, entry: see `case_runner.run_case`.
        ran: engine, device and precision, if the model ran on another machine.
        machine: whether it failed because a resource of this machine was exhausted, not because of the scan.
    """

    status: str
    entry: Entry
    ran: ExecutionInfo | None = None
    machine: bool = False


@dataclass(frozen=True)
class PutOff:
    """A resource of the machine is exhausted, so the case is run later; the reason is a `MachineError`'s."""

    reason: str


@dataclass(frozen=True)
class OutputFailure:
    """Results cannot be written, so no case can be run."""

    message: str


def entry_of(case: Case, key: str, status: str) -> Entry:
    """What the entry of a case says of its scan; key and status as in `Entry`."""
    source = case.scan[0]
    return Entry(case.name, str(place_of(source)), key, status, series=series_of(source), facts=facts_of(source))


def failed(case: Case, reason: str, key: str = "", *, path: Path | str | None = None) -> Entry:
    """The entry of a failed case.

    Args:
        case: the case.
        reason: why, without the path.
        key: see `Entry`.
        path: the file or folder that caused the failure; None for the scan's place.
    """
    return replace(entry_of(case, key, "failed"), reason=reason, path=str(path or place_of(case.scan[0])))


def refused_input(error: ScanError) -> Entry:
    """The entry of an input that is not a usable scan, and so not a case."""
    path = str(error.path or "")
    return Entry(case="", source=path, key="", status="failed", reason=error.reason, path=path)
