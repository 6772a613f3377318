"""Received series on disk, and which of them are complete.

inbox/SERIES/INSTANCE.dcm       received objects; both names are hashes, so no path contains data from the network
inbox/.incoming/                incomplete objects
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import itertools
import os
import shutil
import threading
import time
from collections.abc import Hashable
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from parotid_seg.files import is_real_folder, make_folder, make_folder_in
from parotid_seg.node.ledger import ReceivedSlice, short_hash, sync_folder

PATIENCE = 10
"""Most quiet times for which an association that stays open delays a series."""


@dataclass
class _Arrival:
    """Time of the last object of a series (monotonic seconds), and the open associations that sent it."""

    last: float
    senders: set[Hashable] = field(default_factory=set)


class Inbox:
    """The folder of received series; threads may share it.

    Args:
        folder: made if missing, in a folder that exists; no link is followed.
        quiet_s: a series is ready when no object arrived for so long, and the associations that sent it are closed.

    Raises:
        OutputError: if the folder cannot be made or written to, or is a link.
    """

    def __init__(self, folder: Path, quiet_s: float) -> None:
        self.folder = folder
        self.incoming = folder / ".incoming"
        self._quiet_s = quiet_s
        self._arrivals: dict[str, _Arrival] = {}
        self._in_work: set[str] = set()
        self._lock = threading.Lock()
        self._numbers = itertools.count()
        make_folder(make_folder_in(folder.parent, folder.name))
        shutil.rmtree(make_folder_in(folder, self.incoming.name), ignore_errors=True)
        make_folder(make_folder_in(folder, self.incoming.name))

    def new_path(self) -> Path:
        """Path for the next object until it is complete."""
        return self.incoming / f"{next(self._numbers)}.dcm"

    def free_bytes(self) -> int:
        """Free space on the inbox's disk in bytes; 0 if it is unknown."""
        try:
            return shutil.disk_usage(self.folder).free
        except OSError:
            return 0

    def place(self, file: BinaryIO, path: Path, series_uid: str, instance_uid: str, sender: Hashable) -> str:
        """Sync a complete object to disk and move it to its series, replacing an older one of the same instance.

        Args:
            file: opened for writing; is closed.
            path: of the file.
            series_uid, instance_uid: of the object.
            sender: the association that sent it, see `left`.

        Returns:
            The series' name.

        Raises:
            OSError: if that fails; the object is not in the inbox then.
        """
        os.fsync(file.fileno())
        file.close()
        series = short_hash(series_uid)
        folder = self.path_of(series)
        with self._lock:  # prevents other threads from removing the folder
            fresh = not folder.is_dir()
            folder.mkdir(exist_ok=True)
            if not is_real_folder(folder):
                raise OSError(errno.ELOOP, "found a symbolic link, expected a folder", str(folder))
            path.replace(folder / f"{short_hash(instance_uid)}.dcm")
            arrival = self._arrivals.setdefault(series, _Arrival(0.0))
            arrival.last = time.monotonic()
            arrival.senders.add(sender)
        sync_folder(folder)
        if fresh:
            sync_folder(self.folder)
        return series

    def left(self, sender: Hashable) -> None:
        """Record that an association is closed."""
        with self._lock:
            for arrival in self._arrivals.values():
                arrival.senders.discard(sender)

    def expect(self, series: str, seconds: float = 0.0) -> None:
        """Schedule a series on disk to be ready in so many seconds, or later if more objects arrive."""
        with self._lock:
            self._arrivals.setdefault(series, _Arrival(time.monotonic() - self._quiet_s + seconds))

    def take(self) -> str | None:
        """The series that has been ready for longest, marked as in work until `finish`; None if none is ready."""
        with self._lock:
            now = time.monotonic()
            for series, arrival in sorted(self._arrivals.items(), key=lambda item: item[1].last):
                quiet_s = now - arrival.last
                if quiet_s >= self._quiet_s * (PATIENCE if arrival.senders else 1):
                    del self._arrivals[series]
                    self._in_work.add(series)
                    return series
        return None

    def finish(self, series: str) -> None:
        """Record that a series is no longer in work."""
        with self._lock:
            self._in_work.discard(series)

    def path_of(self, series: str) -> Path:
        """The folder of a series."""
        return self.folder / series

    def all_series(self) -> list[str]:
        """Names of the series on disk."""
        return sorted(path.name for path in self.folder.iterdir() if is_real_folder(path) and path != self.incoming)

    def times(self, series: str) -> dict[str, int]:
        """Time at which each object of a series was written, in ns, by name; objects removed meanwhile are skipped."""
        times = {}
        for path in sorted(self.path_of(series).glob("*.dcm")):
            with contextlib.suppress(FileNotFoundError):
                times[path.stem] = path.stat().st_mtime_ns
        return times

    def slices(self, series: str) -> dict[str, ReceivedSlice]:
        """The objects of a series on disk, by name.

        Raises:
            OSError: if it cannot be read.
        """
        slices = {}
        for name, mtime_ns in self.times(series).items():
            with (self.path_of(series) / f"{name}.dcm").open("rb") as file:
                slices[name] = ReceivedSlice(hashlib.file_digest(file, "sha256").hexdigest(), mtime_ns)
        return slices

    def remove(self, series: str) -> bool:
        """Remove a series' objects, unless it is in work or more objects arrived since; returns whether they were
        removed."""
        with self._lock:
            if series in self._arrivals or series in self._in_work:
                return False
            if is_real_folder(self.path_of(series)):
                shutil.rmtree(self.path_of(series), ignore_errors=True)
            return True
