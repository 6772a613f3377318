"""Records which files of an output folder parotid-seg has written: only these are replaced, and never an input.

The content of a file does not prove its origin. `NAME` in the folder lists the written files. Before a run writes
anything, unused names are added to it, so that files of a killed run are recognised; at the end names without a file
are removed. Results of earlier runs that a run replaces, or leaves as they are, are reported.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path

import msgspec

from parotid_seg.errors import OutputError
from parotid_seg.files import Identity, exists, hash_file, identity_of, is_real_file, is_taken, read_input, write_text
from parotid_seg.runtime.formats.mask_formats import FORMATS, NIFTI
from parotid_seg.runtime.pipeline.discovery import Case
from parotid_seg.runtime.pipeline.journal import NAME as JOURNAL
from parotid_seg.runtime.pipeline.journal import Entry
from parotid_seg.runtime.pipeline.protocol.messages import PICTURES, WorkerConfig, views_of
from parotid_seg.scan.other_formats import files_of_image
from parotid_seg.wording import counted, some_of

NAME = ".written.json"
SUMMARY, RUN, RESULTS, PAGE, LABELS = "summary.csv", "run.json", "results.json", "report.html", "itk-snap-labels.txt"
OF_A_RUN = (SUMMARY, RUN, RESULTS, PAGE, LABELS)
"""Files that a run writes in addition to those of its cases."""


MOST_BYTES = 2**28
"""Size of the largest record of files that is read: of millions of them."""


class Written:
    """The files of an output folder that parotid-seg has written.

    Args:
        folder: the output folder, locked.
        entries: the journal's entries.

    Raises:
        OutputError: if the record is not a regular file or cannot be read.
    """

    def __init__(self, folder: Path, entries: Iterable[Entry]) -> None:
        self._folder = folder.resolve()
        self._names = set(self._read())
        done = [each for each in entries if each.status == "done"]
        lost = f" as far as is known ({NAME}, its record, is missing)" if done and not is_taken(folder / NAME) else ""
        self._foreign = f"exists and was not written by parotid-seg{lost}; move it or choose another --out"
        for entry in done:
            self._names.update((entry.mask, *entry.further, *pictures_of(entry.case)))

    def _read(self) -> list[str]:
        """The record; empty if there is none, or it is damaged."""
        path = self._folder / NAME
        if not is_taken(path):
            return []
        try:
            if path.lstat().st_size > MOST_BYTES:
                return []
            return msgspec.json.decode(read_input(path, follow=False), type=list[str])
        except (msgspec.MsgspecError, RecursionError, UnicodeError):
            return []
        except OSError as error:
            raise OutputError(f"cannot be read ({error.strerror})", path=path) from error

    def check_run(self, work: WorkerConfig) -> list[str]:
        """Names of the files that a run writes in addition to those of its cases.

        Raises:
            OutputError: if one of them exists and was not written by parotid-seg.
        """
        names = [
            SUMMARY,
            RUN,
            RESULTS,
            *([PAGE] if work.options.report else []),
            *([LABELS] if NIFTI in work.options.outputs.formats else []),
        ]
        for name in names:
            if name not in self._names and is_taken(self._folder / name):
                raise OutputError(self._foreign, path=self._folder / name)
        return names

    def why_not(self, names: Iterable[str], inputs: Inputs) -> str:
        """Why the files of a case must not be written; empty if they may."""
        for name in names:
            path = self._folder / name
            if not is_taken(path):
                continue
            if same := inputs.same_as(path):
                return f"{name} would replace {same}, which is read; choose another --out"
            if name not in self._names:
                return f"{name} {self._foreign}"
        return ""

    def is_own(self, name: str) -> bool:
        """Whether a file of this name is there and was written by parotid-seg."""
        return name in self._names and is_real_file(self._folder / name)

    def claim(self, names: Iterable[str]) -> None:
        """Record names before anything is written under them.

        Raises:
            OutputError: if that fails.
        """
        self._names.update(names)
        self._save()

    def close(self) -> None:
        """Record the existing files at the end of a run.

        Raises:
            OutputError: if that fails.
        """
        self._names = {name for name in self._names if is_taken(self._folder / name)}
        self._save()

    def _save(self) -> None:
        write_text(json.dumps(sorted(self._names), indent=0) + "\n", self._folder / NAME)


class Inputs:
    """The files that a run reads: scans, and the RTSTRUCT of --append."""

    def __init__(self, cases: Sequence[Case], append: Path | None) -> None:
        self._paths: set[Path] = set()
        self._identities: dict[Identity, Path] = {}
        files = [append.resolve()] if append else []
        for source in (each for case in cases for each in case.scan):
            if isinstance(source, Path):
                files += files_of_image(source)
            else:
                self._paths.update(each.path for each in source.slices)
        for path in files:
            self._paths.add(path)
            if identity := identity_of(path):
                self._identities[identity] = path

    def same_as(self, path: Path) -> Path | None:
        """The input that a path leads to, also through hard or symbolic links."""
        if path in self._paths:
            return path
        identity = identity_of(path)
        return self._identities.get(identity) if identity else None


def names_of(case: str, work: WorkerConfig) -> list[str]:
    """The files of a case, in the output folder."""
    pictures = pictures_of(case)
    options = work.options
    return [
        *options.outputs.names(case),
        *(pictures[:1] if options.pictures else []),
        *(pictures[1:] if options.views else []),
    ]


def pictures_of(case: str) -> list[str]:
    """The pictures of a case, in the output folder: for people, and for the report."""
    return [f"{PICTURES}/{case}.png", f"{PICTURES}/{views_of(case)}"]


def to_replace(cases: Iterable[Case], entry_of: Callable[[str], Entry | None], work: WorkerConfig) -> list[str]:
    """Sentences on the cases whose results will be replaced even if their scans are unchanged.

    Args:
        cases: those whose files may be written.
        entry_of: the journal's entry of a case, or None.
        work: the run's configuration.
    """
    counts = dict.fromkeys(("overwrite", "settings", "changed", "dose", "failed", "unknown"), 0)
    for case in cases:
        entry = entry_of(case.name)
        if entry is None or entry.status != "done":
            counts["failed" if entry else "unknown"] += has_masks(case.name, work)
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
        "failed": "their last run failed, and masks of an earlier one are there",
        "unknown": f"found masks that {JOURNAL} does not record",
    }
    return [_again(count, why[kind]) for kind, count in counts.items() if count]


def has_masks(case: str, work: WorkerConfig) -> bool:
    """Whether a file of a case's mask is there, of whatever run."""
    return any(is_real_file(work.out / name) for name in work.options.outputs.names(case))


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


def not_found_again(known: Iterable[Entry], current: Iterable[str], scans: Iterable[Path]) -> list[str]:
    """Done cases of earlier runs whose folder or file is there and was searched, but whose scan was not found.

    Args:
        known: all cases of the output folder.
        current: names of this run's cases.
        scans: the files and folders of this run.
    """
    searched, names = [scan.resolve() for scan in scans], {*current}
    return [
        entry.case
        for entry in known
        if entry.status == "done" and entry.case not in names and exists(place := Path(entry.place))
        if any(place.is_relative_to(each) for each in searched)
    ]


def what_stays(
    entries: Iterable[Entry], work: WorkerConfig, written: Written, not_found: Sequence[str] = ()
) -> list[str]:
    """Sentences on files of earlier runs that are not part of this run's results, on pictures that are missing, and on
    mean doses of earlier runs.

    Args:
        entries: of this run's cases.
        not_found: see `not_found_again`.
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
    if not_found:
        lines.append(
            f"{counted(len(not_found), 'case')} of earlier runs, not found among these scans: "
            f"{some_of(not_found)}; their masks stay, and may be of a scan that was changed or is refused now"
        )
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
