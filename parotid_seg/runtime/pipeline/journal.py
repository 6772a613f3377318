"""The journal of an output folder: append-only, so that a killed run resumes without repeating finished cases or using
incomplete files."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import msgspec

from parotid_seg.dicom.read.series import SeriesFacts
from parotid_seg.errors import InputError, OutputError, RecordError
from parotid_seg.files import hash_file, is_real_file, locked, open_to_append
from parotid_seg.flags import Flag
from parotid_seg.records import is_plain_name, read_lines, record_line
from parotid_seg.scan.labels import ratio_of_sides

NAME, LOCK = "journal.jsonl", ".lock"
RESUMES = "finished cases are kept, and the same command goes on with the rest"
"""Advice in errors that end a run."""

Millilitres = Annotated[float, msgspec.Meta(ge=0, le=1e9)]
Seconds = Annotated[float, msgspec.Meta(ge=0, le=1e9)]
Gray = Annotated[float, msgspec.Meta(ge=-1e6, le=1e6)]
Share = Annotated[float, msgspec.Meta(ge=0, le=1)]


@dataclass(frozen=True)
class Entry:
    """A finished or failed case.

    Attributes:
        case: name in the output folder.
        source: absolute path of the scan's first channel; for a DICOM series see `sources.place_of`.
        key: hash of the scan's files and everything else that determines the mask, see `case_runner.key_of`.
        status: "done" or "failed".
        reason: why it failed, without the path; else empty.
        path: the file or folder that caused the failure; empty if there is none.
        mask: the mask's file name, and `mask_sha256` its hash; empty if failed.
        further: hashes by name of its files in other formats.
        volumes_ml, agreement, expected_dsc, floor_dsc, flags: as in `Segmentation`.
        seconds: the time of each stage.
        decoders: as in `Volume`.
        backend, device, precision: what really ran.
        model: hash of the model file.
        settings: see `WorkerConfig.settings`.
        series: title of the DICOM series, see `Series.title`; empty for image files.
        facts: what the DICOM series' header says of the acquisition; None for image files.
        shape, spacing_mm: as in `Volume`; None if it failed.
        dose, dose_sha256: file of the planned dose and its hash; empty without --dose.
        mean_gy: as in `CaseDose`.
    """

    case: str
    source: str
    key: str
    status: str
    reason: str = ""
    path: str = ""
    mask: str = ""
    mask_sha256: str = ""
    further: dict[str, str] = dataclasses.field(default_factory=dict)
    volumes_ml: dict[str, Millilitres] = dataclasses.field(default_factory=dict)
    agreement: dict[str, Share] = dataclasses.field(default_factory=dict)
    flags: tuple[Flag, ...] = ()
    seconds: dict[str, Seconds] = dataclasses.field(default_factory=dict)
    decoders: tuple[str, ...] = ()
    backend: str = ""
    device: str = ""
    precision: str = ""
    model: str = ""
    settings: str = ""
    series: str = ""
    facts: SeriesFacts | None = None
    shape: tuple[int, int, int] | None = None
    spacing_mm: tuple[float, float, float] | None = None
    dose: str = ""
    dose_sha256: str = ""
    mean_gy: dict[str, Gray] = dataclasses.field(default_factory=dict)
    expected_dsc: dict[str, Share] = dataclasses.field(default_factory=dict)
    floor_dsc: dict[str, Share] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.status not in ("done", "failed"):
            raise InputError(f"status: found {self.status!r}, expected done or failed")
        for name in (*filter(None, (self.case, self.mask)), *self.further):
            if not is_plain_name(name):
                raise InputError(f"found the file name {name!r}, expected one in the folder, without a path")
        for field, path in (("source", self.source), ("path", self.path), ("dose", self.dose)):
            if not _may_be_path(path):
                raise InputError(f"{field}: found {path!r}, expected a path that a file can have")
        if not math.isfinite(ratio_of_sides(self.volumes_ml) or 1.0):
            raise InputError(f"volumes_ml: found {self.volumes_ml}, expected volumes with a finite ratio")

    @property
    def files(self) -> dict[str, str]:
        """Hashes by file name of the mask in all formats; none if it failed."""
        return {self.mask: self.mask_sha256, **self.further} if self.mask else {}

    @property
    def place(self) -> str:
        """The scan's file, or the folder of the DICOM series' files."""
        return str(Path(self.source).parent) if self.series else self.source

    @property
    def failure(self) -> str:
        """Why it failed, with the path, in one line; empty if it did not. A series is named by its folder."""
        place = (self.place, self.series) if self.path == self.source else (self.path,)
        return ": ".join(filter(None, (*place, self.reason)))


class Journal:
    """The journal of one output folder; the last line of a case counts.

    Attributes:
        folder: the output folder.
        entries: by case.
        unusable: errors of invalid lines (incomplete, foreign or damaged). Their cases count as not done.

    Raises:
        OutputError: if the journal cannot be read.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.entries: dict[str, Entry] = {}
        self.unusable: list[str] = []
        self._read()

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Lock the folder, and open the journal for appending.

        Raises:
            OutputError: if another run is working in the folder, or the journal cannot be opened.
        """
        path = self.folder / NAME
        with locked(self.folder / LOCK, self.folder):
            try:
                self._file = open_to_append(path)
            except OSError as error:
                raise OutputError(f"cannot be written ({error.strerror})", path=path) from error
            with self._file as file:
                self._read()  # another run may have ended meanwhile
                if file.seek(0, os.SEEK_END) > 0:
                    file.seek(-1, os.SEEK_END)
                    if file.read(1) != b"\n":  # the incomplete line of a killed run
                        file.write(b"\n")
                yield

    def add(self, entry: Entry) -> None:
        """Write a case's line to disk.

        Raises:
            OutputError: if it cannot be written.
        """
        self.entries[entry.case] = entry
        try:
            self._file.write(record_line(entry))
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise OutputError(f"cannot be written ({error.strerror})", path=self.folder / NAME) from error

    def owners(self) -> dict[str, Path]:
        """The scan that each name in the folder belongs to, by its first file."""
        return {name: Path(entry.source) for name, entry in self.entries.items()}

    def _read(self) -> None:
        path = self.folder / NAME
        self.unusable = []
        if not (path.exists() or path.is_symlink()):
            return
        try:
            for each in read_lines(path, Entry, follow=False):
                if isinstance(each, RecordError):
                    self.unusable.append(each.reason)
                elif not each.case:  # only entries that are never written to a journal have no name
                    self.unusable.append("a line without the name of its case")
                else:
                    self.entries[each.case] = each
        except RecordError as error:
            raise OutputError(error.reason, path=path) from error


def _may_be_path(text: str) -> bool:
    """Whether a text can be a file's path: no null character, and bytes that are no text only as Python reads them."""
    try:
        return b"\0" not in os.fsencode(text)
    except UnicodeEncodeError:
        return False


def is_whole(entry: Entry, folder: Path) -> bool:
    """Whether a case is done and its files are unchanged."""
    return (
        entry.status == "done"
        and bool(entry.files)
        and all(
            is_real_file(folder / name) and hash_file(folder / name, follow=False) == sha256
            for name, sha256 in entry.files.items()
        )
    )
