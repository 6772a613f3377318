"""Sees to it that nothing is written, changed or removed outside of a test's folders, and no program is started.

Python reports each such step to audit hooks before it is made. A library in C does not; `conftest.watched` looks for
what one may have left beside the test's folder.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
PATHS = {
    "os.rename": 2,
    "os.link": 2,
    "os.symlink": 2,
    "os.remove": 1,
    "os.rmdir": 1,
    "os.mkdir": 1,
    "os.truncate": 1,
    "os.chmod": 1,
    "os.chown": 1,
    "os.utime": 1,
    "os.setxattr": 1,
    "os.removexattr": 1,
}
"""How many of an event's first arguments are paths. Of a symbolic link both: it may not lead out, either."""
PROGRAMS = {
    "subprocess.Popen",
    "os.system",
    "os.exec",
    "os.spawn",
    "os.posix_spawn",
    "os.fork",
    "os.forkpty",
    "pty.spawn",
}


class Watch:
    """Steps outside of some folders; each is refused, and kept in `found` in case that the error is caught.

    Attributes:
        found: what was tried.
    """

    def __init__(self) -> None:
        self.found: list[str] = []
        self._folders: tuple[str, ...] | None = None
        sys.addaudithook(self._hear)

    @contextmanager
    def only_in(self, *folders: Path) -> Iterator[None]:
        """Watch while a block runs, in all threads; AssertionError at its end if anything was tried elsewhere."""
        self.found.clear()
        self._folders = tuple(os.path.realpath(folder) + os.sep for folder in folders)
        try:
            yield
        finally:
            self._folders = None
        self.check()

    def check(self) -> None:
        """Raise AssertionError if anything was tried outside of the folders so far."""
        assert self.found == []

    def _hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self._folders is None:
            return
        if event in PROGRAMS:
            self._refuse(f"{event} {arguments!r}")
        if event == "open" and (arguments[2] or 0) & WRITING and not isinstance(arguments[0], int):
            self._see(event, arguments[0])
        for path in arguments[: PATHS.get(event, 0)]:
            self._see(event, path)

    def _see(self, event: str, path: str) -> None:
        """Of a path that is no open file's."""
        if isinstance(path, int) or os.fspath(path) in (os.devnull, os.fsencode(os.devnull)):
            return
        folder, name = os.path.split(os.fsdecode(path))
        there = str(Path(os.path.realpath(folder), name))
        if self._folders is not None and not (there + os.sep).startswith(self._folders):
            self._refuse(f"{event} {there}")

    def _refuse(self, what: str) -> None:
        self.found.append(what[:1000])
        raise PermissionError(f"outside of the test's folders: {what[:1000]}")


WATCH = Watch()
"""The one; a hook cannot be taken away."""


def left_in(folder: Path) -> dict[str, tuple[int, int]]:
    """Size and time of change of what is in a folder, by name."""
    return {each.name: (each.lstat().st_size, each.lstat().st_mtime_ns) for each in folder.iterdir()}
