"""Segments a folder of scans into a folder of masks: the model is loaded once, and each case is a transaction."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from parotid_seg.errors import InputError, OptionError, ScanError
from parotid_seg.files import exists, make_folder, remove_orphans
from parotid_seg.records import write_record
from parotid_seg.runtime.engines.base import Backend
from parotid_seg.runtime.formats.mask_formats import NIFTI
from parotid_seg.runtime.formats.slicer import write_itksnap_labels
from parotid_seg.runtime.pipeline.discovery import Case, find_scans, name_cases
from parotid_seg.runtime.pipeline.executor import Executor, LocalExecutor
from parotid_seg.runtime.pipeline.infer_options import InferOptions
from parotid_seg.runtime.pipeline.journal import NAME as JOURNAL
from parotid_seg.runtime.pipeline.journal import Entry, Journal
from parotid_seg.runtime.pipeline.ownership import (
    LABELS,
    RESULTS,
    RUN,
    SUMMARY,
    Inputs,
    Written,
    has_masks,
    names_of,
    not_found_again,
    remove_outdated_pictures,
    to_replace,
    what_stays,
)
from parotid_seg.runtime.pipeline.protocol.messages import PICTURES, CaseRequest, WorkerConfig, failed, refused_input
from parotid_seg.runtime.pipeline.sources import Scan
from parotid_seg.runtime.pipeline.worker_process import WorkerStarter
from parotid_seg.runtime.pipeline.writers import is_result
from parotid_seg.runtime.report.identities import PatientIdentity, patients_of
from parotid_seg.runtime.report.results import results_of
from parotid_seg.runtime.report.summary import STATUSES, run_record, write_summary
from parotid_seg.runtime.segmentation.segmentation_options import determined_by
from parotid_seg.scan.search import Skipped
from parotid_seg.wording import Say, counted

if TYPE_CHECKING:
    from parotid_seg.runtime.doses import Doses

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Outcome:
    """The outcome of one case, for the terminal.

    Attributes:
        status: "done", "skipped" (done before) or "failed".
        entry: the case's entry in the journal.
        number, total: number of finished cases, and of all cases.
        machine: see `CaseResult`.
    """

    status: str
    entry: Entry
    number: int
    total: int
    machine: bool = False


OutcomeProgress = Callable[[Outcome], None]
"""Takes the outcome of each case when it is finished."""


@dataclass(frozen=True)
class Summary:
    """The outcome of a run.

    Attributes:
        done, skipped, failed: numbers of cases.
        out: folder of the results.
        replaced: number of done cases that replaced earlier results.
        not_used: number of other items found, by kind.
    """

    done: int
    skipped: int
    failed: int
    out: Path
    replaced: int = 0
    not_used: Mapping[str, int] = field(default_factory=dict)

    def __str__(self) -> str:
        """All counts in one line."""
        again = f" ({self.replaced} of them again)" if self.replaced else ""
        counts = f"{self.done} done{again}, {self.skipped} done before, {self.failed} failed"
        if not self.not_used:
            return counts
        kinds = ", ".join(f"{counted(count, kind)}" for kind, count in self.not_used.items())
        return f"{counts}, {sum(self.not_used.values())} not used ({kinds})"

    @property
    def exit_status(self) -> int:
        """0 all done, 3 some cases failed, 1 nothing was done."""
        if not self.failed:
            return 0
        return 3 if self.done + self.skipped else 1


def infer(
    scans: Sequence[Path],
    out: Path,
    load: Callable[[], Backend],
    options: InferOptions,
    *,
    model_name: str = "",
    say: Say = lambda _: None,
    progress: OutcomeProgress = lambda _: None,
    workers: WorkerStarter | None = None,
) -> Summary:
    """Segment scans into `out` on this machine.

    Args:
        scans: files and folders.
        out: output folder, made if missing.
        load: loads the model; the first worker starts meanwhile.
        options: how the scans are segmented, and what is written.
        model_name: of the model's file, for the report and the record of the run.
        say: called with one line for each event.
        progress: called with the outcome of every case.
        workers: starts the workers' processes, if there is one already.

    Raises:
        ParotidSegError: if the model cannot be loaded, there is no scan at all, or results cannot be written.
    """
    if not any(map(exists, scans)):
        raise OptionError("; ".join(f"{scan}: no such file or folder" for scan in scans) or "no scan was named")
    with closing(LocalExecutor(load, options, say, workers)) as executor:
        return infer_at(executor, scans, out, options, model_name=model_name, say=say, progress=progress)


def infer_at(
    executor: Executor,
    scans: Sequence[Path],
    out: Path,
    options: InferOptions,
    *,
    find: Callable[..., tuple[list[Scan], list[ScanError]]] = find_scans,
    model_name: str = "",
    say: Say = lambda _: None,
    progress: OutcomeProgress = lambda _: None,
) -> Summary:
    """Segment scans into `out`.

    Cases that `out` already holds for the same scan, model and options are skipped. A case that fails is recorded with
    its reason, and the others go on.

    Args:
        executor: runs the cases.
        scans: files and folders.
        out: output folder, made if missing.
        options: see `InferOptions`.
        find: as `find_scans`.
        model_name: see `infer`.
        say: called with one line for each event.
        progress: called with the outcome of every case.

    Raises:
        ParotidSegError: before any case is run, if there is no scan at all, or none for which the formats can be
            written; later, if the executor cannot continue.
        OutputError: if results cannot be written; cases finished before stay complete.
    """
    options.rois.check(executor.contract.labels)
    run = _Run(out, executor, options, say, progress)
    scans_found, errors = find(scans, executor.contract.channels, ignore=run.results(scans), skip=run.skip)
    refused = [refused_input(error) for error in errors]
    run.total = len(scans_found) + len(refused)
    if not scans_found:
        raise run.without_scans(refused)
    options.outputs.check_some(scan[0] for scan in scans_found)
    doses = _doses_below(options.dose) if options.dose else None
    make_folder(out)
    with run.journal.writing():
        run.say_what_is_ignored()
        _remove_partials(out)
        cases = run.with_doses(name_cases(scans_found, run.journal.owners()), doses)
        run.claim(cases)
        patients = patients_of(cases) if options.identify else None
        run.say_what_runs()
        try:
            run.say_what_is_replaced(cases)
            run.refuse(refused)
            run.do(cases)
        finally:
            executor.close()
            _remove_partials(out)
            run.write_results(scans, model_name, cases, patients)
            run.written.close()
    return Summary(**run.counts, out=out, replaced=run.replaced, not_used=run.not_used)


class _Run:
    """The state of a run."""

    def __init__(
        self, out: Path, executor: Executor, options: InferOptions, say: Say, progress: OutcomeProgress
    ) -> None:
        self.begun = datetime.now(UTC)
        self.journal = Journal(out)
        self.counts = dict.fromkeys(STATUSES, 0)
        self.not_used: Counter[str] = Counter()
        self.total = 0
        self._executor, self._say, self._progress = executor, say, progress
        self._entries: list[Entry] = []
        self._blocked: dict[str, ScanError] = {}
        self.replaced = 0
        computed = determined_by(executor.model_sha256, executor.ran.precision, options)
        self.work = WorkerConfig(
            out,
            executor.contract,
            (*computed, *options.outputs.fingerprint),
            options,
            made_by=executor.model_sha256[:12],
        )

    def results(self, scans: Sequence[Path]) -> list[Path]:
        """Results that the search for scans must ignore: the output folder, or the masks in it.

        A file is not ignored only because the journal names it: it must be unchanged, or state that parotid-seg wrote
        it. Masks among the scans are reported and counted.
        """
        out = self.work.out.resolve()
        places = [scan.resolve() for scan in scans]
        if not any(place.is_relative_to(out) for place in places):
            return [out]
        hashes = {out / name: sha256 for entry in self.journal.entries.values() for name, sha256 in entry.files.items()}
        masks = [path for path, sha256 in hashes.items() if is_result(path, sha256)]
        if own_masks := tuple(path for path in masks if {path, *path.parents} & {*places}):
            reason = "a mask that an earlier run made" if len(own_masks) == 1 else "masks that earlier runs made"
            path = own_masks[0] if len(own_masks) == 1 else out
            self.skip(Skipped(path, reason, len(own_masks), kind="mask", items=len(own_masks), files=own_masks))
        return masks

    def skip(self, skipped: Skipped) -> None:
        """Report and count an item that is not a scan for the model."""
        self._say(f"not used: {skipped}")
        self.not_used[skipped.kind] += skipped.items

    def refuse(self, entries: Iterable[Entry]) -> None:
        """Report an input that cannot be used as a scan."""
        for entry in entries:
            self.tell("failed", entry)

    def without_scans(self, refused: Sequence[Entry]) -> InputError:
        """The error of a run in which nothing can be used; several inputs are reported first."""
        if len(refused) < 2:
            return InputError(refused[0].failure if refused else "no scan was named")
        self.refuse(refused)
        return InputError(f"nothing was segmented: none of {len(refused)} scans and files is usable")

    def say_what_is_ignored(self) -> None:
        """Report invalid lines of the journal."""
        if lost := self.journal.unusable:
            self._say(f"{self.work.out / JOURNAL}: invalid lines are ignored: {len(lost)}; the first: {lost[0]}")

    def say_what_is_replaced(self, cases: Iterable[Case]) -> None:
        """Report earlier results that will be replaced."""
        writable = [case for case in cases if case.name not in self._blocked]
        for line in to_replace(writable, self.journal.entries.get, self.work):
            self._say(line)

    def with_doses(self, cases: list[Case], doses: Doses | None) -> list[Case]:
        """The cases with the file of each one's dose; a case that has none, or several, is not run."""
        if doses is None:
            return cases
        for error in doses.unreadable:
            self._say(f"--dose: not used: {error}")
        found = []
        for case in cases:
            source = case.scan[0]
            series = None if isinstance(source, Path) else source
            try:
                found.append(replace(case, dose=doses.of_case(case.name, series, only=self.total == 1)))
            except ScanError as error:
                self._blocked[case.name] = error
                found.append(case)
        return found

    def claim(self, cases: Sequence[Case]) -> None:
        """Record the files that the run will write, and find the cases whose files it must not write.

        Raises:
            OutputError: if files of the run itself exist and were not written by parotid-seg, or recording fails.
        """
        self.written = Written(self.work.out, self.journal.entries.values())
        names = self.written.check_run(self.work)
        inputs = Inputs(cases, self.work.options.append)
        for case in cases:
            case_names = names_of(case.name, self.work)
            if reason := self.written.why_not(case_names, inputs):
                self._blocked[case.name] = ScanError(reason)
            else:
                names += case_names
        self.written.claim(names)

    def do(self, cases: Sequence[Case]) -> None:
        """Run the cases, and record and report the outcome of each."""
        for case in cases:
            if error := self._blocked.get(case.name):
                entry = failed(case, error.reason, path=error.path)
                self.journal.add(entry)
                self.tell("failed", entry)
        jobs = [
            CaseRequest(case, self.journal.entries.get(case.name)) for case in cases if case.name not in self._blocked
        ]
        before = {
            job.case.name
            for job in jobs
            if (job.known and job.known.status == "done") or has_masks(job.case.name, self.work)
        }
        for each in self._executor.do(self.work, jobs):
            entry = each.entry
            if each.status == "done":
                self.replaced += entry.case in before
                ran = asdict(each.ran or self._executor.ran)
                entry = replace(entry, **ran, model=self._executor.model_sha256)
            if each.status != "skipped":
                self.journal.add(entry)
                remove_outdated_pictures(entry, self.work, self.written)
            self.tell(each.status, entry, each.machine)

    def tell(self, status: str, entry: Entry, machine: bool = False) -> None:
        """Count a case, and report its outcome."""
        if status == "done":
            seconds = ", ".join(f"{name} {value:.2f} s" for name, value in entry.seconds.items())
            read_by = f", decoded by {', '.join(entry.decoders)}" if entry.decoders else ""
            log.info("%s: %s%s; wrote %s", entry.case, seconds, read_by, ", ".join(entry.files))
        self._entries.append(entry)
        self.counts[status] += 1
        self._progress(Outcome(status, entry, len(self._entries), self.total, machine))

    def say_what_runs(self) -> None:
        """Say how many scans there are, the engine, and what the model does not state."""
        self._say(f"{counted(self.total, 'scan')}; {self._executor}")
        if not self._executor.contract.calibrations:
            self._say("the model is not calibrated: the results have no expected DSC")
        if not self._executor.contract.operating_range:
            self._say(
                "the model's file states no operating range: a scan unlike those it was made for is not flagged as such"
            )

    def write_results(
        self,
        scans: Sequence[Path],
        model_name: str,
        cases: Sequence[Case],
        patients: Mapping[str, PatientIdentity] | None,
    ) -> None:
        """Write what a run writes beside its masks, tables, record and report, and say what stays of earlier runs."""
        out, options, labels = self.work.out, self.work.options, self._executor.contract.labels
        if NIFTI in options.outputs.formats:
            write_itksnap_labels(labels, out / LABELS, options.rois)
        log.info("writing %s, %s and %s", SUMMARY, RESULTS, RUN)
        order = {case.name: number for number, case in enumerate(cases)}
        unusable_first = sorted(self._entries, key=lambda entry: order.get(entry.case, -1))
        write_summary(unusable_first, labels, out / SUMMARY, patients)
        not_reached = self.total - len(self._entries)
        record = run_record(
            self._executor, model_name, options, scans, self.begun, self.counts, not_reached, self.not_used
        )
        write_record(record, out / RUN)
        unusable = (entry for entry in self._entries if not entry.case)
        not_found = not_found_again(self.journal.entries.values(), order, scans)
        results = results_of([*self.journal.entries.values(), *unusable], record, patients or {}, not_found)
        write_record(results, out / RESULTS)
        if options.report:
            from parotid_seg.runtime.report.page import write_report

            write_report(results, out, options.rois)
        for line in what_stays(self._entries, self.work, self.written, not_found):
            self._say(line)


def _doses_below(place: Path) -> Doses:
    from parotid_seg.runtime.doses import Doses

    return Doses.below(place)


def _remove_partials(out: Path) -> None:
    """Remove incomplete files of killed processes; the folder is locked, so no other process is writing."""
    for folder in (out.resolve(), out.resolve() / PICTURES):
        remove_orphans(folder)
