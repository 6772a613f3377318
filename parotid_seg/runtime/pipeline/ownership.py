"""Records which files of an output folder parotid-seg has written: only these are replaced, and never an input.

The content of a file does not prove its origin. `NAME` in the folder lists the written files. Before a run writes
anything, unused names are added to it, so that files of a killed run are recognised; at the end names without a file
are removed.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec

from parotid_seg.errors import OutputError
from parotid_seg.files import Identity, identity_of, is_real_file, is_taken, read_input, write_text
from parotid_seg.runtime.formats.mask_formats import NIFTI
from parotid_seg.runtime.pipeline.discovery import Case
from parotid_seg.runtime.pipeline.journal import Entry
from parotid_seg.runtime.pipeline.protocol.messages import PICTURES, WorkerConfig, views_of
from parotid_seg.scan.other_formats import files_of_image

NAME = ".written.json"
SUMMARY, RUN, RESULTS, PAGE, LABELS = "summary.csv", "run.json", "results.json", "report.html", "itk-snap-labels.txt"
OF_A_RUN = (SUMMARY, RUN, RESULTS, PAGE, LABELS)
"""Files that a run writes in addition to those of its cases."""


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
        for entry in (each for each in entries if each.status == "done"):
            self._names.update((entry.mask, *entry.further, *pictures_of(entry.case)))

    def _read(self) -> list[str]:
        """The record; empty if there is none, or it is damaged."""
        path = self._folder / NAME
        if not is_taken(path):
            return []
        try:
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
                raise OutputError(
                    "exists and was not written by parotid-seg; move it or choose another --out",
                    path=self._folder / name,
                )
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
                return f"{name} exists and was not written by parotid-seg; move it or choose another --out"
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
    """The files that a run reads."""

    def __init__(self, cases: Sequence[Case]) -> None:
        self._paths: set[Path] = set()
        self._identities: dict[Identity, Path] = {}
        for source in (each for case in cases for each in case.scan):
            if not isinstance(source, Path):
                self._paths.update(each.path for each in source.slices)
                continue
            for path in files_of_image(source):
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
