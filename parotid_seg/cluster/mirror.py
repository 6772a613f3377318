"""Journal and summary of results behind a URL: local during a run, uploaded regularly and at its end."""

from __future__ import annotations

import os
import platform
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from parotid_seg.cluster.urls import error_text, file_system_of
from parotid_seg.errors import OutputError, RecordError
from parotid_seg.files import scratch_folder, visible
from parotid_seg.records import convert, parse, record_line
from parotid_seg.runtime.pipeline.journal import NAME as JOURNAL
from parotid_seg.runtime.pipeline.ownership import OF_A_RUN

RUNNING = "running.json"
"""Object that marks a run as active, because object storage has no locks."""
SAVED_S = 30.0
"""Seconds between uploads of the journal; after a crash, cases that ended after the last upload are run again."""
FORGOTTEN_S = 300.0
"""Seconds after which a run that has not renewed its mark counts as over."""


MOST_BYTES = 65536
"""Largest valid size of that object in bytes."""


@dataclass(frozen=True)
class _Running:
    """An active run: a readable name, and the time of its last mark in seconds since 1970."""

    run: str
    seen: float


@contextmanager
def mirrored(url: str) -> Iterator[Mirror]:
    """A folder here for the journal and the summary of results behind a URL, uploaded at the end.

    Raises:
        OutputError: if another run is active there, or the URL cannot be read or written.
    """
    with scratch_folder() as folder:
        mirror = Mirror(url, folder)
        over = threading.Event()

        def keep() -> None:
            while not over.wait(SAVED_S):
                with suppress(OutputError):  # the next upload may succeed; the last one reports its error
                    mirror.save()

        keeper = threading.Thread(target=keep, daemon=True)
        keeper.start()
        try:
            yield mirror
        finally:
            over.set()
            keeper.join()
            mirror.leave()


class Mirror:
    """See `mirrored`."""

    def __init__(self, url: str, folder: Path) -> None:
        self.url, self.folder = url.rstrip("/"), folder
        self._system, self._root = file_system_of(self.url)
        self._id = f"{platform.node()} {os.getpid()} {time.time():.0f}"
        with self._reaching():
            self._enter()

    def _enter(self) -> None:
        with self._missing_is_fine():
            content = self._system.cat_file(f"{self._root}/{RUNNING}", end=MOST_BYTES)
            running = convert(parse(content), _Running)
            if abs(time.time() - running.seen) < FORGOTTEN_S:
                raise OutputError(
                    f"{self.url}: another run is working there ({visible(running.run)}); wait for its end, or for "
                    f"{FORGOTTEN_S / 60:.0f} minutes if it was killed, or choose another --out"
                )
        with self._missing_is_fine():
            self._system.get_file(f"{self._root}/{JOURNAL}", str(self.folder / JOURNAL))
        if not (self.folder / JOURNAL).exists():
            for name in filter(lambda name: self._system.exists(f"{self._root}/{name}"), OF_A_RUN):
                raise OutputError(
                    f"{self.url}/{name}: exists and was not written by parotid-seg; move it or choose another --out"
                )
        self._tell_of_run()

    def save(self) -> None:
        """Upload the current journal, and renew the run's mark."""
        with self._reaching():
            if (self.folder / JOURNAL).exists():
                self._put(self.folder / JOURNAL)
            self._tell_of_run()

    def leave(self) -> None:
        """Upload everything, and remove the run's mark."""
        with self._reaching():
            for path in sorted(self.folder.iterdir()):
                if path.is_file() and not path.name.startswith("."):
                    self._put(path)
            self._system.rm_file(f"{self._root}/{RUNNING}")

    def _put(self, path: Path) -> None:
        self._system.put_file(str(path), f"{self._root}/{path.name}")

    def _tell_of_run(self) -> None:
        self._system.pipe_file(f"{self._root}/{RUNNING}", record_line(_Running(self._id, time.time())))

    @contextmanager
    def _missing_is_fine(self) -> Iterator[None]:
        try:
            yield
        except (FileNotFoundError, RecordError):
            return

    @contextmanager
    def _reaching(self) -> Iterator[None]:
        try:
            yield
        except OutputError:
            raise
        except Exception as error:  # each storage client has its own error types
            raise OutputError(f"{self.url}: cannot be read or written ({error_text(error)})") from error
