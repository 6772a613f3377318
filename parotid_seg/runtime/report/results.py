"""results.json: all cases of an output folder as one record, for programs; `report.html` shows the same record.

The types here define the file: it is written and strictly read with them, and the schema in `docs` is generated from
them (`records.schema_text`).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, get_args

from parotid_seg.contract import Contract
from parotid_seg.dicom.read.series import SeriesFacts
from parotid_seg.flags import Flag, FlagCode
from parotid_seg.records import Record, read_record
from parotid_seg.runtime.engines.base import ExecutionInfo
from parotid_seg.runtime.pipeline.journal import Entry, Gray, Millilitres, Seconds, Share
from parotid_seg.runtime.report.flag_text import sentence, severity_of
from parotid_seg.runtime.report.identities import PatientIdentity
from parotid_seg.scan.labels import LARGEST_RATIO, ratio_of_sides

SCHEMA_VERSION = 1
GRAVE = 8
"""Severity from which a flag may mean that the mask is not the structure, or that it is missing; floors do not show
that."""

Verdict = Literal["failed", "check", "unknown", "done"]
"""One word on a case, worst first."""


class FlagRecord(Record, frozen=True, kw_only=True):
    """A point that needs review.

    Attributes:
        code: see `flags.FlagCode`; codes never change.
        structure: the label concerned; empty if it concerns the scan.
        value: a number in the unit stated in `FlagCode`; null if there is none.
        detail: a name or number that the text contains.
        severity: from 16 (the mask is probably wrong) to 1 (for information).
        text: the flag in English; the wording may change between versions.
    """

    code: FlagCode
    structure: str
    value: float | None
    detail: str
    severity: int
    text: str


class StructureRecord(Record, frozen=True, kw_only=True):
    """A structure of a mask.

    Attributes:
        name: the label.
        volume_ml: volume in millilitres; 0 if it was not found.
        agreement: DSC between the two predictions of --tta; null without it.
        mean_gy: mean dose in Gy over its voxels within the dose grid; null without --dose, or if there are none.
        expected_dsc: expected DSC with a contour drawn by a person; null for a structure that was not found, and for a
            model that is not calibrated.
        floor_dsc: DSC that 90 % of such structures reach; null with expected_dsc.
    """

    name: str
    volume_ml: Millilitres
    agreement: Share | None
    mean_gy: Gray | None
    expected_dsc: Share | None
    floor_dsc: Share | None


class DoseRecord(Record, frozen=True, kw_only=True):
    """The planned dose of a case.

    Attributes:
        source: path of its file.
        sha256: the file's hash.
    """

    source: str
    sha256: str


class ScanRecord(Record, frozen=True, kw_only=True):
    """The segmented scan.

    Attributes:
        source: path of the image file, or of the folder with the DICOM series' files.
        series: a DICOM series' modality, number and key, such as "CT series 3 (1f0c2a9b)"; empty for a file.
        shape: slices, rows and columns; null if unknown, as for a scan that failed.
        spacing_mm: distance between slices, rows and columns in mm; null if unknown.
        decoders: packages, with their versions, that decoded compressed pixels.
        facts: what the DICOM series' header says of the acquisition; null for a file.
    """

    source: str
    series: str
    shape: tuple[int, int, int] | None
    spacing_mm: tuple[float, float, float] | None
    decoders: tuple[str, ...]
    facts: SeriesFacts | None = None


class EngineRecord(Record, frozen=True, kw_only=True):
    """The engine that computed a mask.

    Attributes:
        backend, device, precision: what really ran.
        model_sha256: hash of the model file.
    """

    backend: str
    device: str
    precision: str
    model_sha256: str


class FailureRecord(Record, frozen=True, kw_only=True):
    """Why there is no mask.

    Attributes:
        reason: in English.
        path: the file or folder that caused the failure; empty if there is none.
    """

    reason: str
    path: str


class CaseRecord(Record, frozen=True, kw_only=True):
    """A case.

    Attributes:
        case: its name in the output folder; empty for a refused DICOM series, a damaged file or a missing argument.
        status: "done" or "failed".
        failure: null unless it failed.
        scan: the segmented scan.
        structures: in the order of their label values; empty if it failed.
        ratio: volume of the larger parotid gland over that of the smaller; null unless there are one left and one
            right.
        flags: of the case, including one if its sides differ too much.
        seconds: time of each stage.
        engine: null if it failed.
        files: hashes (SHA-256) by name of the mask in all formats at the time of writing; the mask first.
        patient: only with --identify.
        dose: only with --dose.
    """

    case: str
    status: Literal["done", "failed"]
    failure: FailureRecord | None
    scan: ScanRecord
    structures: tuple[StructureRecord, ...]
    ratio: float | None
    flags: tuple[FlagRecord, ...]
    seconds: dict[str, Seconds]
    engine: EngineRecord | None
    files: dict[str, str]
    patient: PatientIdentity | None
    dose: DoseRecord | None

    @property
    def name(self) -> str:
        """Its name: the case, or the last part of an unusable input's path."""
        return self.case or _last_part(self.scan.source)

    @property
    def verdict(self) -> Verdict:
        """One word: "failed", "check" if there are flags, "unknown" if a structure found has no expected DSC, else
        "done"."""
        if self.status == "failed":
            return "failed"
        if self.flags:
            return "check"
        return "unknown" if any(each.volume_ml and each.floor_dsc is None for each in self.structures) else "done"

    @property
    def reason(self) -> str:
        """Why it failed, with the file's name, but without its folders, whose names may identify the patient."""
        if not self.failure:
            return ""
        return f"{_last_part(self.failure.path)}: {self.failure.reason}" if self.failure.path else self.failure.reason

    @property
    def agreement(self) -> float | None:
        """The lowest agreement of all structures."""
        return min((each.agreement for each in self.structures if each.agreement is not None), default=None)

    @property
    def floor_dsc(self) -> float | None:
        """The lowest floor of all structures; None if none has one."""
        return min((each.floor_dsc for each in self.structures if each.floor_dsc is not None), default=None)

    @property
    def volumes_ml(self) -> dict[str, float]:
        """Volumes by structure."""
        return {each.name: each.volume_ml for each in self.structures}

    @property
    def mean_gy(self) -> dict[str, float | None]:
        """Mean doses by structure."""
        return {each.name: each.mean_gy for each in self.structures}

    @property
    def found(self) -> list[str]:
        """Structures that are in the mask."""
        return [each.name for each in self.structures if each.volume_ml]

    @property
    def rank(self) -> tuple[object, ...]:
        """Worst first: by verdict, then grave flags, low floors, the severity of all flags, low agreement, unequal
        sides; then by name. A case without a floor comes before those with one."""
        severities = [flag.severity for flag in self.flags]
        agreement = 1.0 if self.agreement is None else self.agreement
        return (
            get_args(Verdict).index(self.verdict),
            -sum(each for each in severities if each >= GRAVE),
            -1.0 if self.floor_dsc is None else self.floor_dsc,
            -sum(severities),
            agreement,
            -(self.ratio or 1.0),
            self.name,
        )


class ModelRecord(Record, frozen=True, kw_only=True):
    """A model.

    Attributes:
        sha256: hash of its file.
        contract: its contract, including its labels by value.
        name: of its file, without the folder, or on a server.
    """

    sha256: str
    contract: Contract
    name: str


class RunRecord(Record, frozen=True, kw_only=True):
    """The last run; run.json has the same content.

    Attributes:
        begun, ended: times (ISO 8601, UTC).
        options: those of `infer`, and the scans of the command line.
        model: the model that ran.
        ran: backend, device and precision.
        cluster, worker: with --cluster the cluster and the resources of each worker; else null.
        cases: number of cases that were done, skipped (done before) and failed.
        not_reached: cases that were not run, because the run was stopped.
        not_used: number of other items found, by kind.
        versions: of packages.
        machine: system, Python's version and cores.
    """

    begun: str
    ended: str
    options: dict[str, Any]
    model: ModelRecord
    ran: ExecutionInfo
    cluster: dict[str, Any] | None = None
    worker: dict[str, Any] | None = None
    cases: dict[str, int]
    not_reached: int
    not_used: dict[str, int]
    versions: dict[str, str]
    machine: dict[str, Any]


class Results(Record, frozen=True, kw_only=True):
    """results.json.

    Attributes:
        schema_version: of this file's fields.
        run: the last run.
        cases: all cases of the output folder, including earlier runs; worst first, see `CaseRecord.rank`.
    """

    schema_version: Literal[1]
    run: RunRecord
    cases: tuple[CaseRecord, ...]


def results_of(
    entries: Iterable[Entry],
    run: RunRecord,
    patients: Mapping[str, PatientIdentity] = MappingProxyType({}),
    not_found: Collection[str] = (),
) -> Results:
    """The record of an output folder.

    Args:
        entries: of all cases.
        run: see `RunRecord`.
        patients: by case, for those to be shown.
        not_found: cases of earlier runs whose scans the last run did not find.
    """
    cases = [_case(entry, patients.get(entry.case), entry.case in not_found) for entry in entries]
    return Results(schema_version=1, run=run, cases=tuple(sorted(cases, key=lambda case: case.rank)))


def read_results(path: Path) -> Results:
    """Read a results.json.

    Raises:
        RecordError: if it cannot be read, or does not match `Results`.
    """
    return read_record(path, Results, version=SCHEMA_VERSION, most_bytes=2**30)


def _case(entry: Entry, patient: PatientIdentity | None, not_found: bool) -> CaseRecord:
    failed = entry.status == "failed"
    ratio = ratio_of_sides(entry.volumes_ml)
    flags = entry.flags
    said = {FlagCode.SIDES_DIFFER, FlagCode.STRUCTURE_MISSING}.intersection(flag.code for flag in flags)
    if ratio and ratio > LARGEST_RATIO and not said:
        flags = (*flags, Flag(FlagCode.SIDES_DIFFER, value=ratio))  # earlier versions did not record it
    if not_found:
        flags = (*flags, Flag(FlagCode.SCAN_NOT_FOUND))
    path = entry.place if entry.path == entry.source else entry.path
    ran = {"backend": entry.backend, "device": entry.device, "precision": entry.precision}
    return CaseRecord(
        case=entry.case,
        status="failed" if failed else "done",
        failure=FailureRecord(reason=entry.reason, path=path) if failed else None,
        scan=ScanRecord(
            source=entry.place,
            series=entry.series,
            shape=entry.shape,
            spacing_mm=entry.spacing_mm,
            decoders=entry.decoders,
            facts=entry.facts,
        ),
        structures=tuple(
            StructureRecord(
                name=name,
                volume_ml=size,
                agreement=entry.agreement.get(name),
                mean_gy=entry.mean_gy.get(name),
                expected_dsc=entry.expected_dsc.get(name),
                floor_dsc=entry.floor_dsc.get(name),
            )
            for name, size in entry.volumes_ml.items()
        ),
        ratio=ratio,
        flags=tuple(_flag(flag) for flag in flags),
        seconds=entry.seconds,
        engine=None if failed else EngineRecord(**ran, model_sha256=entry.model),
        files=entry.files,
        patient=patient,
        dose=DoseRecord(source=entry.dose, sha256=entry.dose_sha256) if entry.dose else None,
    )


def _flag(flag: Flag) -> FlagRecord:
    return FlagRecord(
        code=flag.code,
        structure=flag.structure,
        value=flag.value,
        detail=flag.detail,
        severity=severity_of(flag.code),
        text=sentence(flag),
    )


def _last_part(path: str) -> str:
    """The last part of a path; the whole path if it has no name, such as "."."""
    return Path(path).name or path
