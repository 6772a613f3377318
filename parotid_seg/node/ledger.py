"""The state of each series, in a small file each, so that a killed node continues where it stopped."""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from parotid_seg.errors import InputError, RecordError
from parotid_seg.files import make_folder, make_folder_in
from parotid_seg.records import is_plain_name, read_record, write_record

STARTED = "started"
"""In segmentation now, or when the node ended."""
FAILED = "failed"
"""Cannot be segmented as it is."""
INCOMPLETE = "incomplete"
"""New slices arrived after the other slices of the finished series were removed."""
DONE = "done"
"""The result is complete, and not sent yet if there is a peer."""
REFUSED = "refused"
"""The peer has rejected the result."""
SENT = "sent"
"""The peer has received the result."""
STATUSES = (STARTED, FAILED, INCOMPLETE, DONE, REFUSED, SENT)


@dataclass(frozen=True)
class ReceivedSlice:
    """A received object at the time of segmentation: SHA-256 of its content, and when it was written."""

    sha256: str
    mtime_ns: int


@dataclass(frozen=True)
class SeriesRecord:
    """The state of a series, without patient data.

    Attributes:
        status: one of the above.
        slices: the slices that the status refers to, by name (see `short_hash`).
        reason: why it failed or was refused, else empty.
        results: names of the result files in the series' folder of results.
        deaths: how often the node died while segmenting it.
        settings: what the result depends on besides the slices, see `segmenting.settings_of`.
    """

    status: str
    slices: dict[str, ReceivedSlice]
    reason: str = ""
    results: tuple[str, ...] = ()
    deaths: int = 0
    settings: str = ""

    def __post_init__(self) -> None:
        if self.status not in STATUSES:
            raise InputError(f"status: found {self.status!r}, expected one of: {', '.join(STATUSES)}")
        for name in (*self.slices, *self.results):
            if not is_plain_name(name):
                raise InputError(f"found the file name {name!r}, expected one without a path")


class Ledger:
    """Records by series (see `short_hash`). Thread-safe.

    Raises:
        OutputError: if the folder cannot be made or written to, or is a link.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lock = threading.Lock()
        make_folder(make_folder_in(folder.parent, folder.name))

    def get(self, series: str) -> SeriesRecord | None:
        """A series' record; None if there is no readable one."""
        try:
            return read_record(self._path(series), SeriesRecord, follow=False)
        except RecordError:
            return None

    def put(self, series: str, record: SeriesRecord) -> None:
        """Write a series' record to disk.

        Raises:
            OutputError: if it cannot be written.
        """
        with self._lock:
            self._write(series, record)

    def replace(self, series: str, expected: SeriesRecord, record: SeriesRecord) -> bool:
        """Write a series' record, unless its present record is not the expected one.

        Raises:
            OutputError: if it cannot be written.
        """
        with self._lock:
            if self.get(series) != expected:
                return False
            self._write(series, record)
            return True

    def forget(self, series: str) -> None:
        """Remove a series' record: it counts as received and waiting. Works on a full disk."""
        with self._lock, contextlib.suppress(OSError):
            self._path(series).unlink(missing_ok=True)
            sync_folder(self.folder)

    def __iter__(self) -> Iterator[str]:
        return (path.stem for path in sorted(self.folder.glob("*.json")))

    def _path(self, series: str) -> Path:
        return self.folder / f"{series}.json"

    def _write(self, series: str, record: SeriesRecord) -> None:
        write_record(record, self._path(series))
        sync_folder(self.folder)


def short_hash(uid: str) -> str:
    """The name of a UID on disk and in messages: the first 16 digits of its SHA-256."""
    return hashlib.sha256(uid.encode()).hexdigest()[:16]


def sync_folder(folder: Path) -> None:
    """Sync a folder's entries to disk, where the system supports it."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
