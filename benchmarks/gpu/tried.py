"""What a process is trying at the moment, kept in a file, so that what ended it is known and not tried again.

A GPU or a library may hang, or end a process, where no exception can be caught. `all` then calls
`avoid_what_was_tried`. A process that was ended from outside, with `all`, leaves no trace.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

TRYING, AVOIDED = "trying.txt", "avoided.txt"
AGAIN = 75
"""Exit status of a process that is to be started again: EX_TEMPFAIL of sysexits.h."""
NOTHING_RAN = 69
"""Exit status of a probe in which no graph ran: EX_UNAVAILABLE of sysexits.h."""


class Tried:
    """What is being tried in a folder.

    Args:
        folder: of the results. What an earlier process left is forgotten.

    Attributes:
        avoided: what ended earlier processes.
    """

    def __init__(self, folder: Path) -> None:
        self._file, self._names = folder / TRYING, list[str]()
        self._file.unlink(missing_ok=True)
        self.avoided: set[str] = set()
        with contextlib.suppress(OSError):
            self.avoided = set((folder / AVOIDED).read_text(encoding="utf-8").splitlines())

    @contextlib.contextmanager
    def now(self, what: str) -> Iterator[None]:
        """Keep that this is tried in the block; the innermost of several counts."""
        self._names.append(what)
        self._file.write_text(what, encoding="utf-8")
        try:
            yield
        finally:
            self._names.pop()
            if self._names:
                self._file.write_text(self._names[-1], encoding="utf-8")
            else:
                self._file.unlink(missing_ok=True)

    def avoid(self, what: str) -> None:
        """It is tried no more."""
        self.avoided.add(what)
        _avoid(self._file.parent, what)


def avoid_what_was_tried(folder: Path) -> None:
    """What a process was trying when it was ended is tried no more."""
    with contextlib.suppress(OSError):
        _avoid(folder, (folder / TRYING).read_text(encoding="utf-8"))
        (folder / TRYING).unlink()


def _avoid(folder: Path, what: str) -> None:
    with (folder / AVOIDED).open("a", encoding="utf-8") as file:
        file.write(f"{what}\n")
