"""commission.json: the record of a commissioning, which report.html shows and a later run compares itself with."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Literal

from parotid_seg.errors import OptionError
from parotid_seg.files import exists
from parotid_seg.records import Record, is_plain_name, read_record
from parotid_seg.runtime.compare import ComparisonRecord
from parotid_seg.runtime.evaluation_record import EvaluationRecord

NAME = "commission.json"
SCHEMA_VERSION = 1
NOT_ACCEPTED = 4
"""Exit status of a commissioning that is complete, with a limit missed or a fault named."""
MOST_BYTES = 2**28

FaultKind = Literal["sides_exchanged", "shifted", "part_missing", "part_beyond", "structure_missing"]
Equal = Literal["file", "network", "masks"]


class LimitRecord(Record, frozen=True, kw_only=True):
    """A limit, and what was found.

    Attributes:
        key: in the file of --limits.
        structure: the structure whose mean is limited; empty if the limit is for all.
        limit: the number.
        at_least: whether the figure must be at least the limit, else at most.
        found: the figure; null if there is none or it is infinite.
        low, high: its 95 % bootstrap interval over patients; null where there is none, as of one patient.
        patients: number of patients with the figure.
        met: whether it meets the limit.
        note: a remark; empty if there is none.
    """

    key: str
    structure: str
    limit: float
    at_least: bool
    found: float | None
    low: float | None
    high: float | None
    patients: int
    met: bool
    note: str


class FaultRecord(Record, frozen=True, kw_only=True):
    """A fault that masks show by the way in which they differ from others.

    Attributes:
        kind: its code.
        text: in words.
        patients: those that show it.
        of: number of patients that were compared.
    """

    kind: FaultKind
    text: str
    patients: list[str]
    of: int


class MaskRecord(Record, frozen=True, kw_only=True):
    """A mask and what it was made from.

    Attributes:
        mask: name of its file in the folder of the masks.
        voxels_sha256: hash of its labels in canonical order, independent of the file's compression.
        scan_sha256, reference_sha256: hashes of the files; the latter is empty if there is no reference.
        volumes_ml: volume of each structure.
    """

    mask: str
    voxels_sha256: str
    scan_sha256: str
    reference_sha256: str
    volumes_ml: dict[str, float]

    def __post_init__(self) -> None:
        if not is_plain_name(self.mask):
            raise ValueError(f"found the file name {self.mask!r}, expected one in the folder, without a path")


class PatientsRecord(Record, frozen=True, kw_only=True):
    """Which patients were used.

    Attributes:
        data: the data folder.
        names: those with masks.
        why: which were chosen, and why.
        failed: reasons by patient, of those without a mask.
        notes: what is left out or doubtful.
    """

    data: str
    names: list[str]
    why: str
    failed: dict[str, str]
    notes: list[str]


class CommissionModelRecord(Record, frozen=True, kw_only=True):
    """A model.

    Attributes:
        name: its file, or "the packaged model".
        sha256: hash of the file.
        trained_on: tested patients whose scan, by its voxels, is one that it was trained on.
        scans_complete: whether the model records every scan that it was trained on; if not, other patients may be
            among them.
    """

    name: str
    sha256: str
    trained_on: tuple[str, ...] = ()
    scans_complete: bool = False


class AgainstRecord(Record, frozen=True, kw_only=True):
    """The comparison with another model, A, on the same patients.

    Attributes:
        model: the other one.
        advice: which to use, in words.
        comparison: see there; B is the commissioned model, so a difference is that model minus the other one.
        equal: in what both models are equal: "file", "network" (with its weights, in two files), or only the "masks" of
            these patients; null if masks differ.
    """

    model: CommissionModelRecord
    advice: str
    comparison: ComparisonRecord
    equal: Equal | None = None


class MaskChange(Record, frozen=True, kw_only=True):
    """A mask that differs from the earlier one.

    Attributes:
        patient: its name; the example scan's for that one.
        dsc: lowest DSC of a structure between both masks; null if the earlier mask is not there.
        volumes_ml: change of each structure's volume, in ml.
        input_changed: what it was made from, or is compared with, that has changed, too: "scan", "reference".
    """

    patient: str
    dsc: float | None
    volumes_ml: dict[str, float]
    input_changed: list[str]


class ConditionChange(Record, frozen=True, kw_only=True):
    """A condition that is different.

    Attributes:
        name: what it is.
        before, now: as text; empty if it was not, or is not there.
    """

    name: str
    before: str
    now: str


class DriftRecord(Record, frozen=True, kw_only=True):
    """The comparison with an earlier commissioning.

    Attributes:
        earlier: its file.
        date: its end.
        verdict: in words.
        compared: number of masks in both, the example's included.
        changed: those that differ.
        conditions: what is different, in the order in which it usually matters.
        faults: how the masks differ, if it can be told.
        added, gone: patients of this run and of the earlier one only.
        notes: remarks, one line each.
    """

    earlier: str
    date: str
    verdict: str
    compared: int
    changed: list[MaskChange]
    conditions: list[ConditionChange]
    faults: list[FaultRecord]
    added: list[str]
    gone: list[str]
    notes: list[str]


class ExpectedGland(Record, frozen=True, kw_only=True):
    """A structure with its expected DSC.

    Attributes:
        patient, structure: whose and which.
        expected, floor: the DSC that was expected, and the one that 90 % of such structures reach.
        achieved: DSC with the reference.
    """

    patient: str
    structure: str
    expected: float
    floor: float
    achieved: float


class ExpectedRecord(Record, frozen=True, kw_only=True):
    """Expected against achieved DSC.

    Attributes:
        glands: those with an expected DSC, the furthest below its floor first.
        above_floor: number of those that reach their floor.
        share, low, high: their share, with its exact 95 % binomial interval.
        mean_error, mean_absolute_error: of expected minus achieved DSC.
        correlation: Pearson's, of expected and achieved DSC; null for fewer than 3 glands, or equal ones.
    """

    glands: list[ExpectedGland]
    above_floor: int
    share: float
    low: float
    high: float
    mean_error: float
    mean_absolute_error: float
    correlation: float | None


class CommissionRecord(Record, frozen=True, kw_only=True):
    """commission.json.

    Attributes:
        schema_version: of this record's fields.
        begun, ended: times (ISO 8601, UTC).
        passed: whether all limits are met.
        model: the commissioned one.
        patients: see there.
        limits: each met or missed.
        faults: what the masks show when they are compared with the references.
        evaluation: all figures, see `evaluate`.
        expected: expected against achieved DSC; null if the model is not calibrated for it.
        worst: patients from the worst to the best, by the lowest DSC of a structure.
        conditions: what the masks depend on besides the scans, by name: model, window, options, engine, machine.
        masks: by patient.
        example: that of the packaged example scan; null if the model cannot take it, or it is not installed.
        against: null without --against.
        drift: null without an earlier commissioning.
    """

    schema_version: Literal[1]
    begun: str
    ended: str
    passed: bool
    model: CommissionModelRecord
    patients: PatientsRecord
    limits: list[LimitRecord]
    faults: list[FaultRecord]
    evaluation: EvaluationRecord
    expected: ExpectedRecord | None
    worst: list[str]
    conditions: dict[str, str]
    masks: dict[str, MaskRecord]
    example: MaskRecord | None
    against: AgainstRecord | None
    drift: DriftRecord | None

    def __post_init__(self) -> None:
        datetime.fromisoformat(self.ended)  # it becomes the name of a folder

    @property
    def exit_status(self) -> int:
        """0 if all limits are met and no fault is named, in comparison with the references or with earlier masks."""
        faults = [*self.faults, *(self.drift.faults if self.drift else ())]
        return 0 if self.passed and not faults else NOT_ACCEPTED


@dataclass(frozen=True)
class Earlier:
    """An earlier commissioning.

    Attributes:
        record: its record.
        path: its file; its masks are in folders beside it.
    """

    record: CommissionRecord
    path: Path


def read_commission(place: Path) -> Earlier:
    """Read the record of a commissioning.

    Args:
        place: its folder, or the file itself.

    Raises:
        OptionError: if there is no such file.
        InputError: if it is no such record.
    """
    path = place / NAME if place.is_dir() else place
    expected = f"the {NAME} of an earlier commissioning"
    if not exists(path):
        raise OptionError(f"no such file, expected {expected}", path=path)
    record = read_record(path, CommissionRecord, version=SCHEMA_VERSION, most_bytes=MOST_BYTES, expected=expected)
    return Earlier(record, path)
