"""Results of earlier runs in the output folder: those that a run replaces, and those that it leaves as they are."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

from parotid_seg.files import hash_file, is_real_file
from parotid_seg.runtime.formats.mask_formats import FORMATS
from parotid_seg.runtime.pipeline.discovery import Case
from parotid_seg.runtime.pipeline.journal import NAME as JOURNAL
from parotid_seg.runtime.pipeline.journal import Entry
from parotid_seg.runtime.pipeline.ownership import PAGE, Written, names_of, pictures_of
from parotid_seg.runtime.pipeline.protocol.messages import WorkerConfig
from parotid_seg.wording import counted, some_of


def to_replace(cases: Iterable[Case], entry_of: Callable[[str], Entry | None], work: WorkerConfig) -> list[str]:
    """Sentences on the cases whose results will be replaced even if their scans are unchanged.

    Args:
        cases: those whose files may be written.
        entry_of: the journal's entry of a case, or None.
        work: the run's configuration.
    """
    counts = dict.fromkeys(("overwrite", "settings", "changed", "dose", "unknown"), 0)
    for case in cases:
        entry = entry_of(case.name)
        if entry is None or entry.status != "done":
            counts["unknown"] += any(is_real_file(work.out / each) for each in work.options.outputs.names(case.name))
        elif work.options.overwrite:
            counts["overwrite"] += 1
        elif entry.settings != work.settings:
            counts["settings"] += 1
        elif _is_changed(entry, work):
            counts["changed"] += 1
        else:
            counts["dose"] += bool(case.dose and not entry.dose)
    why = {
        "overwrite": "as --overwrite asks for",
        "settings": "another model, other options or another version of parotid-seg made them",
        "changed": "found other masks than the recorded ones",
        "dose": "they have no mean dose yet, which --dose asks for",
        "unknown": f"found masks that {JOURNAL} does not record",
    }
    return [_again(count, why[kind]) for kind, count in counts.items() if count]


def _again(count: int, why: str) -> str:
    cases_are = "1 case that is done is" if count == 1 else f"{count} cases that are done are"
    return f"{cases_are} made again, and replaced: {why}"


def _is_changed(entry: Entry, work: WorkerConfig) -> bool:
    """Whether one of a case's files is there with another content."""
    there = ((work.out / name, sha256) for name, sha256 in entry.files.items() if is_real_file(work.out / name))
    return any(hash_file(path, follow=False) != sha256 for path, sha256 in there)


def remove_outdated_pictures(entry: Entry, work: WorkerConfig, written: Written) -> None:
    """Remove a case's pictures that an earlier run drew and this one did not: they show another mask, or none."""
    drawn = names_of(entry.case, work) if entry.status == "done" else []
    for name in pictures_of(entry.case):
        if name not in drawn and written.is_own(name):
            with suppress(OSError):
                (work.out / name).unlink()


def what_stays(entries: Iterable[Entry], work: WorkerConfig, written: Written) -> list[str]:
    """Sentences on files of earlier runs that are not part of this run's results, on pictures that are missing, and on
    mean doses of earlier runs.

    Args:
        entries: of this run's cases.
        work: the run's configuration.
        written: the files of parotid-seg in the folder.
    """
    entries = [entry for entry in entries if entry.case]
    names = [f"{entry.case}{each.ending}" for entry in entries for each in FORMATS.values()]
    current = {name for entry in entries for name in entry.files}
    stays = [name for name in names if name not in current and written.is_own(name)]
    stays += [PAGE] if not work.options.report and written.is_own(PAGE) else []
    lines = []
    if stays:
        files_stay = "1 file of an earlier run stays" if len(stays) == 1 else f"{len(stays)} files of earlier runs stay"
        lines.append(f"{files_stay} beside the results of this run and may differ from them: {some_of(stays)}")
    whole = [entry.case for entry in entries if entry.mask and is_real_file(work.out / entry.mask)]
    without = [case for case in whole if not is_real_file(work.out / pictures_of(case)[0])]
    if work.options.pictures and without:
        lines.append(f"{len(without)} of the cases done before have no picture; --overwrite makes it")
    if not work.options.dose and (planned := [entry for entry in entries if entry.dose]):
        line = f"the mean doses of {counted(len(planned), 'case')} are of an earlier run with --dose"
        changed = [entry.case for entry in planned if not _has_its_dose(entry)]
        other = f", and the dose of {some_of(changed)} has changed since or is not there" if changed else ""
        lines.append(f"{line}{other}; give --dose to compute them again")
    return lines


def _has_its_dose(entry: Entry) -> bool:
    """Whether the file of a case's dose is the one that its mean doses are from."""
    try:
        return hash_file(Path(entry.dose)) == entry.dose_sha256
    except OSError:
        return False
