"""Opens, writes and removes all files of the package.

Results are complete or absent: a file is written under a random name beside its final one, synced, then renamed. Only
regular files are read. No symbolic link in an output folder is followed: not for writing, reading back or deleting.
"""

from __future__ import annotations

import errno
import hashlib
import io
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from parotid_seg.errors import OptionError, OutputError

LONGEST_NAME = 200
"""Most bytes of a name; file systems allow 255."""
NO_ROOM = (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC), errno.EFBIG)
PATIENCE_S = 3.0
"""Seconds to wait for a lock; the last process of a killed run may live on for a moment."""
NO_LINK = getattr(os, "O_NOFOLLOW", 0)
CLOSED_IN_CHILDREN = getattr(os, "O_CLOEXEC", 0)
AT_ONCE = getattr(os, "O_NONBLOCK", 0)
"""Flags for opening files; opening a FIFO does not wait for its other end."""
BINARY = getattr(os, "O_BINARY", 0)
PARTIAL = re.compile(r"\.partial-([0-9a-f]{16}|[0-9a-f]{32})-.*", re.DOTALL)
"""Names of files that are being written."""
KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a FIFO"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
    (stat.S_ISLNK, "a symbolic link"),
)
"""Names of file types other than regular files."""

Identity = tuple[int, int]
"""Device and inode number of a file: its identity, independent of path, hard links and symbolic links."""


def special_kind(mode: int) -> str:
    """The type of a file by its mode (`st_mode`), such as "a FIFO"; empty for a regular file."""
    if stat.S_ISREG(mode):
        return ""
    return next((kind for is_kind, kind in KINDS if is_kind(mode)), "a special file")


def _check_regular(descriptor: int, path: Path) -> None:
    """Raise OSError if an open file is of another type."""
    if kind := special_kind(os.fstat(descriptor).st_mode):
        raise OSError(errno.EINVAL, f"found {kind}, expected a regular file", str(path))


@contextmanager
def _closed_on_error(descriptor: int) -> Iterator[None]:
    try:
        yield
    except BaseException:
        os.close(descriptor)
        raise


def open_input(path: Path, *, follow: bool = True) -> io.BufferedReader:
    """Open a regular file for reading; other file types are not opened, and nothing blocks.

    Args:
        path: the file.
        follow: whether it may be a symbolic link; False for files in an output folder.

    Raises:
        OSError: if it is missing, cannot be read, or is not a regular file.
    """
    if not follow and path.is_symlink():
        raise OSError(errno.ELOOP, "found a symbolic link, expected a regular file", str(path))
    flags = os.O_RDONLY | AT_ONCE | CLOSED_IN_CHILDREN | BINARY | (0 if follow else NO_LINK)
    try:
        descriptor = os.open(path, flags)
    except OSError as error:
        if error.errno == errno.ENXIO:  # a socket
            raise OSError(errno.EINVAL, "found a socket, expected a regular file", str(path)) from error
        raise
    with _closed_on_error(descriptor):
        _check_regular(descriptor, path)
        return open(descriptor, "rb")  # noqa: PTH123


def read_input(path: Path, *, follow: bool = True) -> bytes:
    """All bytes of a regular file.

    Raises:
        OSError: as `open_input`.
    """
    with open_input(path, follow=follow) as file:
        return file.read()


def hash_file(path: Path, *, follow: bool = True) -> str:
    """SHA-256 of a regular file's bytes.

    Raises:
        OSError: as `open_input`.
    """
    with open_input(path, follow=follow) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_real_file(path: Path) -> bool:
    """Whether there is a regular file of that name, not a link to one."""
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except (OSError, ValueError):
        return False


def is_real_folder(path: Path) -> bool:
    """Whether there is a folder of that name, not a link to one."""
    return path.is_dir() and not path.is_symlink()


def is_taken(path: Path) -> bool:
    """Whether there is anything of that name, including a broken link."""
    try:
        path.lstat()
    except (OSError, ValueError):
        return False
    return True


def identity_of(path: Path) -> Identity | None:
    """Identity of the file that a path leads to; None if there is none, or the file system has no inode numbers."""
    try:
        status = path.stat()
    except (OSError, ValueError):
        return None
    return (status.st_dev, status.st_ino) if status.st_ino else None


def size_of(path: Path) -> int:
    """Bytes of a file; 0 if it is missing."""
    try:
        return path.stat().st_size
    except OSError:
        return 0


def check_not_read(path: Path, inputs: Iterable[Path]) -> None:
    """Raise OptionError if an output file is one of the input files, by any path or link."""
    target = identity_of(path)
    for each in inputs:
        if path.absolute() == each.absolute() or (target is not None and identity_of(each) == target):
            raise OptionError(f"cannot be written: it is one of the files that are read ({each})", path=path)


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """A new, empty file to write to, which becomes `path` when the block ends without an error.

    Its name is random, and it is created exclusively. If `path` is a link, the link is replaced, not its target.

    Raises:
        OutputError: if it cannot be written, for example because the disk is full.
    """
    with _replacing(path) as (partial, _):
        yield partial


def write_bytes(content: bytes | memoryview, path: Path) -> None:
    """Write a file completely or not at all; see `atomic_write`.

    Raises:
        OutputError: if that fails.
    """
    with _replacing(path) as (_, descriptor), open(descriptor, "wb", closefd=False) as file:
        file.write(content)


@contextmanager
def _replacing(path: Path) -> Iterator[tuple[Path, int]]:
    """The file of `atomic_write`, and its descriptor."""
    partial = partial_path(path)
    try:
        descriptor = _create(partial)
        try:
            yield partial, descriptor
            if not os.path.samestat(partial.lstat(), os.fstat(descriptor)):
                raise OSError(errno.EPERM, "another process has replaced the file while it was written")
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        partial.replace(path)
    except OSError as error:
        raise OutputError(f"cannot be written ({error.strerror or error})", path=path) from error
    finally:
        partial.unlink(missing_ok=True)


def write_text(text: str, path: Path) -> None:
    r"""Write a text file completely or not at all, in UTF-8 independent of the locale, with the text's line ends.

    Bytes of file names that are not UTF-8 (lone surrogates in Python) become escapes such as \xff, so that the file is
    readable.

    Raises:
        OutputError: if that fails.
    """
    content = text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    write_bytes(content.encode("utf-8"), path)


def open_to_append(path: Path) -> io.BufferedRandom:
    """Open one of the package's files for reading and appending; it is made if missing.

    A symbolic link is refused. A file with other names (hard links) is copied first, so that these stay unchanged.

    Raises:
        OSError: if it is not a regular file or cannot be opened.
        OutputError: if it cannot be copied.
    """
    flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | AT_ONCE | CLOSED_IN_CHILDREN | BINARY | NO_LINK
    if path.is_symlink():
        raise OSError(errno.ELOOP, "found a symbolic link, expected a regular file", str(path))
    if is_real_file(path) and path.lstat().st_nlink > 1:
        write_bytes(read_input(path, follow=False), path)
    descriptor = os.open(path, flags, 0o666)
    with _closed_on_error(descriptor):
        _check_regular(descriptor, path)
        return open(descriptor, "ab+")  # noqa: PTH123


def _create(path: Path) -> int:
    """A descriptor of a new file; nothing may exist at the path."""
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | CLOSED_IN_CHILDREN | BINARY | NO_LINK
    return os.open(path, flags, 0o666)


def partial_path(path: Path) -> Path:
    """A random name in the same folder, see `PARTIAL`; if it would be too long, a hash of the name and the ending."""
    name = path.name
    content = os.fsencode(name)
    if len(content) > LONGEST_NAME:
        name = f"{hashlib.sha256(content).hexdigest()[:16]}{path.suffix}"
    return path.with_name(f".partial-{os.urandom(8).hex()}-{name}")


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """A temporary folder to fill, which becomes `path` when the block ends without an error.

    Args:
        path: a folder that does not exist, in a folder that does.

    Raises:
        OutputError: if it cannot be written, for example because the disk is full, or if `path` exists by then.
    """
    partial = partial_path(path)
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
        OutputError: if there is no room for it or its content.
    """
    try:
        with tempfile.TemporaryDirectory(prefix="parotid-seg-") as folder:
            yield Path(folder)
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        raise OutputError(f"no room for temporary files ({error.strerror})", path=tempfile.gettempdir()) from error


def make_folder(path: Path) -> None:
    """Make a folder and its parents, and check that files can be made in it.

    Raises:
        OutputError: if that fails.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe = partial_path(path / "probe")
        os.close(_create(probe))
        probe.unlink()
    except OSError as error:
        reason = "a file has this name" if path.is_file() else error.strerror
        raise OutputError(f"the folder cannot be made or written to ({reason})", path=path) from error


def make_folder_in(folder: Path, name: str) -> Path:
    """Make a folder in an output folder, unless it exists.

    Raises:
        OutputError: if it cannot be made, or something else has that name, such as a link to a folder.
    """
    path = folder / name
    try:
        with suppress(FileExistsError):
            path.mkdir()
        if not stat.S_ISDIR(mode := path.lstat().st_mode):
            raise OutputError(f"found {special_kind(mode) or 'a file'}, expected a folder", path=path)
    except OSError as error:
        raise OutputError(f"the folder cannot be made ({error.strerror})", path=path) from error
    return path


def remove_orphans(folder: Path) -> None:
    """Remove incomplete files of killed processes in a folder that no other process writes to.

    Nothing is done if the folder is missing or a link.
    """
    try:
        names = [each.name for each in os.scandir(folder) if PARTIAL.fullmatch(each.name) and is_real_folder(folder)]
    except OSError:
        return
    for name in names:
        if not (folder / name).is_dir() or (folder / name).is_symlink():
            _remove_in(folder, name)


def _remove_in(folder: Path, name: str) -> None:
    """Remove a file, or a link itself, in a folder that is not a link."""
    if os.unlink not in os.supports_dir_fd:  # Windows
        (folder / name).unlink(missing_ok=True)
        return
    try:
        opened = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | NO_LINK | CLOSED_IN_CHILDREN)
    except OSError:
        return
    try:
        os.unlink(name, dir_fd=opened)
    except FileNotFoundError:
        pass
    finally:
        os.close(opened)


@contextmanager
def locked(file: Path, folder: Path) -> Iterator[None]:
    """Lock a folder until the block or the process ends.

    Args:
        file: the lock file; it is made, and stays, because removing it would let two runs lock different files.
        folder: the folder for error messages.

    Raises:
        OutputError: if another process still holds the lock after `PATIENCE_S`, if the file is not a regular file, or
            if the file system has no locks.
    """
    from filelock import FileLock, Timeout

    if is_taken(file) and not is_real_file(file):
        raise OutputError(f"found {special_kind(file.lstat().st_mode)}, expected a regular file", path=file)
    lock = FileLock(file, timeout=PATIENCE_S, thread_local=False, fallback_to_soft=False)
    try:
        lock.acquire()
    except Timeout:
        raise OutputError(
            "another run is working in this folder; wait for its end or choose another --out", path=folder
        ) from None
    except OSError as error:
        raise OutputError(f"cannot be locked against other runs ({error.strerror or error})", path=folder) from error
    try:
        yield
    finally:
        lock.release()


def visible(text: object) -> str:
    """A text in which invisible and direction-changing characters are replaced by escapes such as \\u202e."""
    shown = str(text)
    return shown if shown.isprintable() else "".join(c if c.isprintable() else f"\\u{ord(c):04x}" for c in shown)


def exists(path: Path) -> bool:
    """Whether there is a file or folder of that name; False for names that are too long."""
    try:
        return path.exists()
    except (OSError, ValueError):
        return False
