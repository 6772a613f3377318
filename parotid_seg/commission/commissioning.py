"""Commissions a model: masks of a hospital's labelled patients, figures, limits, faults, drift, and another model."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

from msgspec import structs

from parotid_seg.commission.conditions import conditions_of
from parotid_seg.commission.drift import AGAINST, EXAMPLE, MASKS, begin_in, compare_with, lowest_dsc
from parotid_seg.commission.expected import expected_record, glands_in
from parotid_seg.commission.faults import faults_in, signs_of
from parotid_seg.commission.labelled import Chosen
from parotid_seg.commission.limits import checked
from parotid_seg.commission.record import (
    NAME,
    AgainstRecord,
    CommissionModelRecord,
    CommissionRecord,
    Earlier,
    FaultRecord,
    MaskRecord,
    PatientsRecord,
)
from parotid_seg.commission.tested_models import Hashes, advice, equality, model_record
from parotid_seg.contract import Contract
from parotid_seg.errors import InputError
from parotid_seg.files import hash_file, make_folder
from parotid_seg.models import example_folder
from parotid_seg.records import write_record
from parotid_seg.runtime.compare import comparison_of
from parotid_seg.runtime.doses import Doses
from parotid_seg.runtime.evaluation import Evaluation, score_pairs
from parotid_seg.runtime.evaluation_record import record_of
from parotid_seg.runtime.label_match import match_labels
from parotid_seg.runtime.pipeline.executor import Executor
from parotid_seg.runtime.pipeline.infer_options import InferOptions
from parotid_seg.runtime.pipeline.ownership import RESULTS
from parotid_seg.runtime.pipeline.run import OutcomeProgress, infer_at
from parotid_seg.runtime.report.results import CaseRecord, Results, read_results
from parotid_seg.scan.intensity import is_ct
from parotid_seg.scan.nifti import read_mask
from parotid_seg.scan.volume import Mask
from parotid_seg.wording import Say, counted


@dataclass(frozen=True)
class RunnableModel:
    """A model to run.

    Attributes:
        name: in words, for people.
        executor: makes what runs it; called again for further scans.
    """

    name: str
    executor: Callable[[], Executor]


@dataclass(frozen=True)
class Order:
    """What to do.

    Attributes:
        chosen: the patients.
        out: folder of the results, made if missing.
        model: the model to commission.
        against: another one to compare it with.
        limits: see `read_limits`.
        earlier: an earlier commissioning; None for the newest of `out`.
        dose: file or folder of the planned doses.
        options: how scans are segmented.
    """

    chosen: Chosen
    out: Path
    model: RunnableModel
    limits: Mapping[str, float]
    against: RunnableModel | None = None
    earlier: Earlier | None = None
    dose: Path | None = None
    options: InferOptions = field(default_factory=InferOptions)


@dataclass(frozen=True)
class Masks:
    """The masks of one model.

    Attributes:
        folder: their folder.
        results: of `infer`.
        cases: by patient, of those with a mask.
        failed: reasons by patient, of the others.
    """

    folder: Path
    results: Results
    cases: Mapping[str, CaseRecord]
    failed: Mapping[str, str]

    def path(self, name: str) -> Path:
        """The mask of a patient."""
        return self.folder / next(iter(self.cases[name].files))

    @property
    def sha256(self) -> str:
        """Hash of the model's file."""
        return self.results.run.model.sha256

    @property
    def engines(self) -> str:
        """What made the masks, in words."""
        ran = (case.engine for case in self.cases.values() if case.engine)
        return "; ".join(dict.fromkeys(f"{each.backend} on {each.device}, {each.precision}" for each in ran))

    @property
    def contract(self) -> Contract:
        """The model's contract."""
        return self.results.run.model.contract


@dataclass(frozen=True)
class _New:
    """What is known of the commissioned model when it is compared with another one.

    Attributes:
        model, masks: its record and its masks.
        evaluation: figures of its masks.
        voxels: hashes of their voxels, by patient.
        hashes: of the scans.
    """

    model: CommissionModelRecord
    masks: Masks
    evaluation: Evaluation
    voxels: Mapping[str, str]
    hashes: Hashes


def commission(
    order: Order, *, say: Say = lambda _: None, progress: OutcomeProgress = lambda _: None
) -> CommissionRecord:
    """Commission a model, and write commission.json and report.html.

    Masks that an interrupted run has made are kept. If the folder holds a complete commissioning, that is moved to
    `earlier/DATE` in it, everything is done anew, and the two are compared.

    Args:
        order: what to do.
        say: called with one line for each event.
        progress: called with the outcome of every scan.

    Raises:
        ParotidSegError: if a model cannot be loaded, no patient has a mask, or results cannot be written.
    """
    from parotid_seg.commission.report_page import write_page

    begun = datetime.now(UTC)
    planned = _planned(order)
    _check_models(order)
    make_folder(order.out)
    before = begin_in(order.out, say)
    earlier = order.earlier or before
    say(f"patients: {order.chosen.why}")
    for note in order.chosen.notes:
        say(f"note: {note}")
    masks = _segmented(order, order.model, MASKS, say, progress)
    contract, conditions = masks.contract, conditions_of(masks.results)
    example = _example(order, contract, say, progress)
    evaluation = _evaluated(order.chosen, masks, planned)
    records, faults = _compared(order.chosen, masks, evaluation)
    drift = compare_with(earlier, order.out, records, example, conditions) if earlier else None
    hashes = Hashes(order.chosen.patients)
    model = model_record(order.model.name, masks.sha256, contract, masks.cases, hashes)
    new = _New(model, masks, evaluation, {name: each.voxels_sha256 for name, each in records.items()}, hashes)
    against = _against(order, new, planned, say, progress) if order.against else None
    earlier_dsc, in_both = (lowest_dsc(drift), len(records) - len(drift.added)) if drift else (None, None)
    limits = checked(order.limits, evaluation, len(masks.failed), earlier_dsc, in_both)
    record = CommissionRecord(
        schema_version=1,
        begun=begun.isoformat(timespec="seconds"),
        ended=datetime.now(UTC).isoformat(timespec="seconds"),
        passed=all(each.met for each in limits),
        model=model,
        patients=_patients_record(order.chosen, masks),
        limits=limits,
        faults=faults,
        evaluation=record_of(evaluation),
        expected=expected_record(list(glands_in(masks.cases, evaluation))),
        worst=_worst_first(evaluation),
        conditions=conditions,
        masks=records,
        example=example,
        against=against,
        drift=drift,
    )
    write_page(record, order.out, order.chosen, contract.windows[0])
    write_record(record, order.out / NAME)
    return record


def _planned(order: Order) -> Doses | None:
    """The doses, if any; that each patient has one is checked before anything is computed.

    Raises:
        ScanError: if a patient has none, or several.
    """
    if order.dose is None:
        return None
    planned, patients = Doses.below(order.dose), order.chosen.patients
    for name in patients:
        planned.of_case(name, None, only=len(patients) == 1)
    return planned


def _patients_record(chosen: Chosen, masks: Masks) -> PatientsRecord:
    return PatientsRecord(
        data=str(chosen.data),
        names=list(masks.cases),
        why=chosen.why,
        failed=dict(masks.failed),
        notes=list(chosen.notes),
    )


def _segmented(order: Order, model: RunnableModel, folder: str, say: Say, progress: OutcomeProgress) -> Masks:
    """Segment all patients as `infer` does.

    Raises:
        InputError: if no patient has a mask.
    """
    chosen, out = order.chosen, order.out / folder
    say(f"{model.name} segments {counted(len(chosen.patients), 'patient')}")
    with closing(model.executor()) as executor:
        scans = [each.scan for each in chosen.patients.values()]
        results = _results(executor, scans, out, order.options, model, progress, say)
    by_scan = {Path(case.scan.source).resolve(): case for case in results.cases}
    found = {name: by_scan.get(each.scan.resolve()) for name, each in chosen.patients.items()}
    cases = {name: case for name, case in found.items() if case and case.status == "done"}
    failed = {name: case.reason if case else "not reached" for name, case in found.items() if name not in cases}
    if not cases:
        raise InputError(f"no patient has a mask; the first: {next(iter(failed.values()))}", path=chosen.data)
    return Masks(out, results, cases, failed)


def _results(
    executor: Executor,
    scans: Sequence[Path],
    out: Path,
    options: InferOptions,
    model: RunnableModel,
    progress: OutcomeProgress,
    say: Say = lambda _: None,
) -> Results:
    """What `infer` makes of some scans, without pictures."""
    options, name = replace(options, pictures=False, report=False), Path(model.name).name
    infer_at(executor, scans, out, options, model_name=name, say=say, progress=progress)
    return read_results(out / RESULTS)


def _check_models(order: Order) -> None:
    """Load the models, and check that they take the scans: before anything is moved or computed."""
    for model in filter(None, (order.model, order.against)):
        with closing(model.executor()) as executor:
            _check_channels(executor.contract, order.chosen)


def _check_channels(contract: Contract, chosen: Chosen) -> None:
    found, expected = (tuple(map(str.casefold, each)) for each in (chosen.channels, contract.channels))
    if found and found != expected:
        raise InputError(
            f"channel_names: found {', '.join(chosen.channels)}, expected those of the model: "
            f"{', '.join(contract.channels)}",
            path=chosen.data / "dataset.json",
        )


def _example(order: Order, contract: Contract, say: Say, progress: OutcomeProgress) -> MaskRecord | None:
    """Segment the packaged example, which is the same everywhere; None if the model takes no CT or it is not there."""
    if len(contract.channels) != 1 or not is_ct(contract.channels[0]):
        return None
    try:
        scan = next((example_folder() / "imagesTr").glob("*_0000.nii.gz"))
    except InputError as error:
        say(f"note: {error}")
        return None
    say("the packaged example scan, for constancy")
    out = order.out / EXAMPLE
    with closing(order.model.executor()) as executor:
        cases = _results(executor, [scan], out, order.options, order.model, progress).cases
    case = next(each for each in cases if Path(each.scan.source).resolve() == scan.resolve())
    if case.status == "failed":
        say(f"note: the packaged example has no mask: {case.reason}")
        return None
    name = next(iter(case.files))
    return _mask_record(name, read_mask(out / name)[0], case, scan, reference=None)


def _voxels_hash(mask: Mask) -> str:
    return hashlib.sha256(f"{mask.shape} ".encode() + mask.tobytes()).hexdigest()


def _mask_record(name: str, mask: Mask, case: CaseRecord, scan: Path, reference: Path | None) -> MaskRecord:
    return MaskRecord(
        mask=name,
        voxels_sha256=_voxels_hash(mask),
        scan_sha256=hash_file(scan),
        reference_sha256="" if reference is None else hash_file(reference),
        volumes_ml=case.volumes_ml,
    )


def _evaluated(chosen: Chosen, masks: Masks, planned: Doses | None) -> Evaluation:
    pairs = {name: (masks.path(name), chosen.patients[name].reference) for name in masks.cases}
    evaluation = score_pairs(pairs, match_labels(masks.folder, chosen.references), planned)
    return replace(evaluation, of_sides={})  # exchanged sides are a fault here, and no note


def _compared(chosen: Chosen, masks: Masks, evaluation: Evaluation) -> tuple[dict[str, MaskRecord], list[FaultRecord]]:
    """The masks' records, and the faults that they show when they are compared with the references."""
    records, signs = {}, {}
    for name, case in masks.cases.items():
        patient = chosen.patients[name]
        stored = read_mask(masks.path(name))[0]
        records[name] = _mask_record(masks.path(name).name, stored, case, patient.scan, patient.reference)
        mask, reference, _ = evaluation.labels.scored(stored, read_mask(patient.reference)[0])
        signs[name] = signs_of(mask, reference, evaluation.labels.names)
    return records, faults_in(signs, "references")


def _against(order: Order, new: _New, planned: Doses | None, say: Say, progress: OutcomeProgress) -> AgainstRecord:
    """Compare with the other model, A, on the patients for whom both have a mask."""
    assert order.against
    masks = _segmented(order, order.against, AGAINST, say, progress)
    first, second = _evaluated(order.chosen, masks, planned), new.evaluation
    names = [name for name in second.cases if name in first.cases]
    missing = {
        "a": [name for name in second.cases if name not in first.cases],
        "b": [name for name in first.cases if name not in second.cases],
        "references": [],
    }
    places = {"a": masks.folder, "b": order.out / MASKS, "references": order.chosen.references}
    comparison = comparison_of(_only(first, names), _only(second, names), places, missing)
    if masks.engines != new.masks.engines:
        note = f"A ran on {masks.engines}; B on {new.masks.engines}: with --backend both run on one engine"
        comparison = structs.replace(comparison, notes=[*comparison.notes, note])
    other = model_record(order.against.name, masks.sha256, masks.contract, masks.cases, new.hashes)
    voxels = {name: _voxels_hash(read_mask(masks.path(name))[0]) for name in masks.cases}
    equal = equality((other, new.model), (masks.contract, new.masks.contract), (voxels, new.voxels))
    return AgainstRecord(
        model=other, equal=equal, advice=advice(comparison, other, new.model, equal), comparison=comparison
    )


def _only(evaluation: Evaluation, names: Sequence[str]) -> Evaluation:
    flags = {name: evaluation.dose_flags[name] for name in names if name in evaluation.dose_flags}
    return Evaluation({name: evaluation.cases[name] for name in names}, evaluation.labels, flags)


def _worst_first(evaluation: Evaluation) -> list[str]:
    """Patients by the lowest DSC of a structure."""

    def lowest(name: str) -> float:
        values = [each.dsc for each in evaluation.cases[name].labels.values() if not each.absent]
        return min(values, default=math.inf)

    return sorted(evaluation.cases, key=lowest)
