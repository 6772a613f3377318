"""Results are whole or absent: files are written beside their final name, synced, then renamed; a folder has one
writer."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import tempfile
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from parotid_seg.errors import OutputError

LONGEST_NAME = 200
"""Bytes; file systems take 255."""
NO_ROOM = (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC), errno.EFBIG)
PATIENCE_S = 3.0
"""A killed run's last process may live on for a moment."""
FORMULA = frozenset("=+-@\t\r\n")
"""First characters of what a spreadsheet runs as a formula, or looks behind for one (OWASP, "CSV Injection")."""


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A temporary path to write to, which becomes `path` once the block ends without an error.

    Raises:
        OutputError: if it cannot be written, for example because the disk is full.
    """
    partial = _beside(path)
    try:
        yield partial
        with partial.open("rb+") as file:
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        raise OutputError(f"cannot be written ({error.strerror or error})", path=path) from error
    finally:
        partial.unlink(missing_ok=True)


def _beside(path: Path) -> Path:
    """A temporary name in the same folder; of a name that may become too long with it, a hash and the ending."""
    name = path.name
    content = os.fsencode(name)
    if len(content) > LONGEST_NAME:
        name = f"{hashlib.sha256(content).hexdigest()[:16]}{path.suffix}"
    return path.with_name(f".partial-{os.getpid()}-{name}")


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """A temporary folder to fill, which becomes `path` once the block ends without an error.

    Args:
        path: a folder that is not there yet, in one that is.

    Raises:
        OutputError: if it cannot be written, for example because the disk is full, or if `path` is there by then.
    """
    partial = _beside(path)
    try:
        partial.mkdir()
        yield partial
        for file in sorted(partial.rglob("*")):
            if file.is_file():
                with file.open("rb+") as opened:
                    os.fsync(opened.fileno())
        partial.rename(path)
    except OSError as error:
        raise OutputError(f"cannot be written ({error.strerror or error})", path=path) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """A temporary folder, removed afterwards.

    Raises:
        OutputError: if there is no room for it, or for what is written in it.
    """
    try:
        with tempfile.TemporaryDirectory(prefix="parotid-seg-") as folder:
            yield Path(folder)
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        raise OutputError(f"no room for temporary files ({error.strerror})", path=tempfile.gettempdir()) from error


def write_text(text: str, path: Path) -> None:
    r"""Write a text file whole, in UTF-8 whatever the locale is, with the line ends that the text has.

    Bytes of file names that are no UTF-8 (Python holds them as lone surrogates) become escapes such as \xff, so that
    the file can be read.

    Raises:
        OutputError: if that fails.
    """
    content = text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    with whole_file(path) as partial:
        partial.write_bytes(content.encode("utf-8"))


def make_folder(path: Path) -> None:
    """Make a folder and its parents, and make sure that files can be made in it.

    Raises:
        OutputError: if not.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe = path / f".partial-{os.getpid()}-probe"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise OutputError(f"the folder cannot be made or written to ({error.strerror})", path=path) from error


def remove_orphans(folder: Path) -> None:
    """Remove what killed processes left half-written in a folder that nobody else is writing to."""
    for partial in folder.glob(".partial-*"):
        partial.unlink(missing_ok=True)


@contextmanager
def locked(file: Path, folder: Path) -> Iterator[None]:
    """Have a folder to oneself until the block ends or the process does, however it ends.

    Args:
        file: what is locked; it is made, and stays, because removing it would let two runs lock different files.
        folder: what the error names.

    Raises:
        OutputError: if another process holds it, even after `PATIENCE_S`, or if the file system has no locks.
    """
    held = FileLock(file, timeout=PATIENCE_S, thread_local=False, fallback_to_soft=False)
    try:
        held.acquire()
    except Timeout:
        raise OutputError(
            "another run is working in this folder; wait for its end or choose another --out", path=folder
        ) from None
    except OSError as error:
        raise OutputError(f"cannot be locked against other runs ({error.strerror or error})", path=folder) from error
    try:
        yield
    finally:
        held.release()


def harmless(text: str) -> str:
    """A text that no spreadsheet takes for a formula: with an apostrophe in front if it begins like one.

    Full-width forms of these characters count as well: spreadsheets in Japanese take them for the same.
    """
    return f"'{text}" if unicodedata.normalize("NFKC", text[:1]) in FORMULA else text


def visible(text: object) -> str:
    """A text with the characters that cannot be seen, or that turn others round, told by their numbers."""
    told = str(text)
    return told if told.isprintable() else "".join(c if c.isprintable() else f"\\u{ord(c):04x}" for c in told)


def exists(path: Path) -> bool:
    """Whether there is a file or folder of that name; names that are too long are none's."""
    try:
        return path.exists()
    except OSError:
        return False
