"""Received series on disk, and which of them nobody is adding to any more.

inbox/SERIES/INSTANCE.dcm       received objects; both names are hashes, so nothing from the network is a path
inbox/.incoming/                objects that are not whole yet
"""

from __future__ import annotations

import contextlib
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

from parotid_seg.files import make_folder
from parotid_seg.node.ledger import Slice, short_hash, sync_folder

PATIENCE = 10
"""An association that stays open holds up a series for no longer than so many quiet times."""


@dataclass
class _Arrival:
    """When something last came of a series (monotonic seconds), and the associations that brought it and are open."""

    last: float
    senders: set[Hashable] = field(default_factory=set)


class Inbox:
    """The folder of received series; threads may share it.

    Args:
        folder: made if it is not there.
        quiet_s: a series is ready once nothing more came for so long, and the associations that brought it are closed.

    Raises:
        OutputError: if the folder cannot be made or written to.
    """

    def __init__(self, folder: Path, quiet_s: float) -> None:
        self.folder = folder
        self.incoming = folder / ".incoming"
        self._quiet_s = quiet_s
        self._arrivals: dict[str, _Arrival] = {}
        self._in_work: set[str] = set()
        self._lock = threading.Lock()
        self._numbers = itertools.count()
        make_folder(folder)
        shutil.rmtree(self.incoming, ignore_errors=True)
        make_folder(self.incoming)

    def new_path(self) -> Path:
        """Where the next object can be written until it is whole."""
        return self.incoming / f"{next(self._numbers)}.dcm"

    def free_bytes(self) -> int:
        """Space left on the inbox's disk; 0 if that cannot be told."""
        try:
            return shutil.disk_usage(self.folder).free
        except OSError:
            return 0

    def place(self, file: BinaryIO, path: Path, series_uid: str, instance_uid: str, sender: Hashable) -> str:
        """Bring a whole object to the disk and to its place; an older one of the same instance makes way.

        Args:
            file: opened for writing; is closed.
            path: of the file.
            series_uid, instance_uid: of the object.
            sender: the association that brought it, see `left`.

        Returns:
            The series' name.

        Raises:
            OSError: if that fails; the object is not in the inbox then.
        """
        os.fsync(file.fileno())
        file.close()
        series = short_hash(series_uid)
        folder = self.path_of(series)
        with self._lock:  # no other thread removes the folder now
            fresh = not folder.is_dir()
            folder.mkdir(exist_ok=True)
            path.replace(folder / f"{short_hash(instance_uid)}.dcm")
            arrival = self._arrivals.setdefault(series, _Arrival(0.0))
            arrival.last = time.monotonic()
            arrival.senders.add(sender)
        sync_folder(folder)
        if fresh:
            sync_folder(self.folder)
        return series

    def left(self, sender: Hashable) -> None:
        """An association is closed."""
        with self._lock:
            for arrival in self._arrivals.values():
                arrival.senders.discard(sender)

    def expect(self, series: str, seconds: float = 0.0) -> None:
        """Have a series that is on disk be taken in so many seconds, unless more comes of it meanwhile."""
        with self._lock:
            self._arrivals.setdefault(series, _Arrival(time.monotonic() - self._quiet_s + seconds))

    def take(self) -> str | None:
        """The series that has been ready for longest, in work until `finish`; None if none is ready."""
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
        """A series is no longer in work."""
        with self._lock:
            self._in_work.discard(series)

    def path_of(self, series: str) -> Path:
        """The folder of a series."""
        return self.folder / series

    def all_series(self) -> list[str]:
        """Names of the series on disk."""
        return sorted(path.name for path in self.folder.iterdir() if path.is_dir() and path != self.incoming)

    def times(self, series: str) -> dict[str, int]:
        """When each object of a series was written, in ns, by its name; of objects that are removed meanwhile, none."""
        times = {}
        for path in sorted(self.path_of(series).glob("*.dcm")):
            with contextlib.suppress(FileNotFoundError):
                times[path.stem] = path.stat().st_mtime_ns
        return times

    def slices(self, series: str) -> dict[str, Slice]:
        """What is on disk of a series, by name.

        Raises:
            OSError: if it cannot be read.
        """
        slices = {}
        for name, mtime_ns in self.times(series).items():
            with (self.path_of(series) / f"{name}.dcm").open("rb") as file:
                slices[name] = Slice(hashlib.file_digest(file, "sha256").hexdigest(), mtime_ns)
        return slices

    def remove(self, series: str) -> bool:
        """Remove a series' objects, unless it is in work or something came of it since; whether it did."""
        with self._lock:
            if series in self._arrivals or series in self._in_work:
                return False
            shutil.rmtree(self.path_of(series), ignore_errors=True)
            return True
