"""Finds files below folders, each real file once. Links are followed; links that are not, or cannot be, are
reported."""

from __future__ import annotations

import os
from collections import defaultdict, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from parotid_seg.errors import ScanError, system_reason
from parotid_seg.files import identity_of, special_kind

# fmt: off
NO_SCANS = frozenset((
    ".bval", ".bvec", ".csv", ".html", ".jpeg", ".jpg", ".json", ".log", ".md", ".pdf", ".png", ".toml", ".tsv", ".txt",
    ".xlsx", ".xml", ".yaml", ".yml",
))
# fmt: on
"""Endings of files that commonly lie beside scans."""

DICOM_ENDINGS = (".dcm", ".ima")
"""Endings of the names of DICOM files, as far as these have one."""

STRAY = "stray file"
"""The kind of irrelevant files: not DICOM, empty, or missing."""

SPECIAL = "special file"
"""The kind of FIFOs, sockets and devices."""

Identity = tuple[int, int] | str
"""Identity of a file or folder, independent of its path: device and inode number, or the real path without a number."""


@dataclass(frozen=True)
class Skipped:
    """Files that are not used, for one reason.

    Attributes:
        path: the file, or the deepest folder that contains all of them.
        reason: in one line, without text from the files.
        count: number of files.
        refused: whether they are, or may be, a scan that cannot be used because it is damaged or incomplete.
        kind: their kind in the singular, for counts: "RT dose", "MR series", "link".
        items: number of items of that kind; a series is one item, however many files it has.
        files: all of them.
    """

    path: Path
    reason: str
    count: int = 1
    refused: bool = False
    kind: str = field(default="file", compare=False)
    items: int = field(default=1, compare=False)
    files: tuple[Path, ...] = field(default=(), compare=False, repr=False)

    def __str__(self) -> str:
        return str(self.as_error())

    def as_error(self, expected: str = "") -> ScanError:
        """The error to raise where such files must not be skipped.

        Args:
            expected: the expected content, for the message.
        """
        reason = self.reason + (f" ({self.count} files)" if self.count > 1 else "")
        return ScanError(printable(f"{reason}; {expected}" if expected else reason), path=printable(str(self.path)))


def printable(text: str) -> str:
    """Text on one line: file names may contain any character."""
    return "".join(each if each.isprintable() else "_" for each in text)


def folder_of_files(paths: Sequence[Path]) -> Path:
    """The deepest folder that contains all of some files."""
    try:
        return Path(os.path.commonpath([path.parent for path in paths]))
    except ValueError:  # absolute and relative paths
        return Path(os.path.commonpath([path.parent.absolute() for path in paths]))


@dataclass(frozen=True)
class Searched:
    """The result of a search.

    Attributes:
        below: for each given folder its files at any depth, including those that are also reached by another path.
        files: every file once: those below folders, and those given directly.
        left_out: broken links, links to files that are found anyway, and folders that cannot be listed.
    """

    below: dict[Path, list[Path]]
    files: list[Path]
    left_out: list[Skipped]


def search(places: Iterable[Path], ignore: Iterable[Path] = ()) -> Searched:
    """Find every file below some folders, at any depth, without hidden ones.

    Symbolic links to files and folders are followed, also out of the given folder. A real file or folder that is
    reached by several paths (links, hard links) is used once, by its own path if that is among them. A link to a folder
    that it lies in is a loop and is not followed.

    Args:
        places: existing files and folders.
        ignore: files and folders to ignore.
    """
    walk = _Walk({os.path.realpath(path) for path in ignore})
    starts = list(dict.fromkeys(map(absolute, places)))
    for place in starts:
        if place.is_dir():
            walk.below[place] = []
            walk.add_folder(_Folder(place, os.path.realpath(place), place))
    for place in starts:
        if not place.is_dir():
            walk.add_named(place)
    walk.follow_links()
    return Searched(walk.below, list(walk.files.values()), walk.left_out())


def absolute(path: Path) -> Path:
    """An absolute path that keeps the given name, even if that is a link."""
    return path.resolve() if path.name in ("", "..") else path.parent.resolve() / path.name


class _Folder(NamedTuple):
    """A folder to search: its path as found, its real path, and the given place that it lies below."""

    path: Path
    real: str
    place: Path


class _Walk:
    """The state of a search."""

    def __init__(self, ignored: set[str]) -> None:
        self.below: dict[Path, list[Path]] = {}
        self.files: dict[Identity, Path] = {}
        self._ignored = ignored
        self._folders: dict[Identity, Path] = {}
        self._links: deque[_Folder] = deque()
        self._also_below: dict[Path, set[Path]] = defaultdict(set)
        self._followed: set[Path] = set()
        self._repeated: dict[tuple[Path, Path], list[tuple[Path, Path]]] = defaultdict(list)
        self._left_out: list[Skipped] = []

    def add_folder(self, start: _Folder) -> None:
        """Search a folder; links are followed later, so that files and folders are found by their own paths first."""
        waiting = [start]
        while waiting:
            folder = waiting.pop()
            try:
                status = folder.path.stat()
                entries = sorted(os.scandir(folder.path), key=lambda entry: entry.name)
            except OSError as error:
                self._skip(folder.path, f"the folder cannot be listed ({system_reason(error)})", "folder", True)
                continue
            first_path = self._folders.setdefault(_identity_of(status, folder.real), folder.path)
            if first_path != folder.path:
                self._skip(folder.path, f"the same folder as {first_path}, which is searched", "repeated folder")
                self._also_below[folder.place].add(first_path)
                continue
            further = []
            for entry in entries:
                candidate = _Folder(folder.path / entry.name, os.path.join(folder.real, entry.name), folder.place)  # noqa: PTH118
                if entry.name.startswith(".") or candidate.real in self._ignored:
                    continue
                if entry.is_symlink():
                    self._links.append(candidate)
                elif entry.is_dir(follow_symlinks=False):
                    further.append(candidate)
                elif entry.is_file(follow_symlinks=False):
                    number = entry.inode()
                    self.add_file(candidate.path, (status.st_dev, number) if number else candidate.real, folder.place)
                else:
                    kind = special_kind(entry.stat(follow_symlinks=False).st_mode)
                    self._skip(candidate.path, f"found {kind}, expected a regular file", SPECIAL)
            waiting += reversed(further)

    def add_named(self, path: Path) -> None:
        """Add a file that was given directly; it is refused if it is not a regular file."""
        kind = special_kind(path.stat().st_mode) if path.exists() else ""
        if kind:
            self._skip(path, f"found {kind}, expected a regular file", SPECIAL, True)
        else:
            self.add_file(path, _identity(path), None)

    def add_file(self, path: Path, identity: Identity, place: Path | None) -> None:
        """Add a file, unless it was added before."""
        first_path = self.files.setdefault(identity, path)
        if place is not None:
            self.below[place].append(first_path)
        if first_path != path and path.suffix.lower() not in NO_SCANS:
            self._repeated[path.parent, first_path.parent].append((path, first_path))

    def follow_links(self) -> None:
        """Add the targets of the links, and follow the links in them."""
        while self._links:
            link = self._links.popleft()
            real = os.path.realpath(link.path)
            if link.path in self._followed:  # both its folder and one above were given
                self._also_below[link.place].add(link.path)
                continue
            self._followed.add(link.path)
            if any(real == each or real.startswith(each + os.sep) for each in self._ignored):
                continue
            try:
                status = link.path.stat()
            except OSError as error:
                if link.path.suffix.lower() not in NO_SCANS:
                    self._skip(link.path, f"a link that leads nowhere ({system_reason(error)})", "link", True)
                continue
            if link.path.is_file():
                self.add_file(link.path, _identity_of(status, real), link.place)
            elif link.path.is_dir():
                self._follow(link, _identity_of(status, real), real)
            else:
                self._skip(link.path, f"a link to {special_kind(status.st_mode)}", "link")
        for place, folders in self._also_below.items():
            self.below[place] += [path for path in self.files.values() if {path, *path.parents} & folders]

    def _follow(self, link: _Folder, identity: Identity, real: str) -> None:
        holds = Path(link.real).parent
        if any(identity == _identity(folder) for folder in (holds, *holds.parents)):
            self._skip(link.path, "a link to a folder that it lies in; it is not followed", "link")
        elif identity in self._folders:
            searched = self._folders[identity]
            self._skip(link.path, f"a link to {searched}, which is searched", "link")
            self._also_below[link.place].add(searched)
        else:
            self.add_folder(_Folder(link.path, real, link.place))

    def _skip(self, path: Path, reason: str, kind: str, refused: bool = False) -> None:
        self._left_out.append(Skipped(path, reason, 1, refused, kind, 1, (path,)))

    def left_out(self) -> list[Skipped]:
        """Unused files; files of one folder that repeat those of another are one entry."""
        for (folder, other), pairs in self._repeated.items():
            (first, first_path), count = pairs[0], len(pairs)
            reason = f"the same file as {first_path}" if count == 1 else f"the same files as in {other}"
            files = tuple(path for path, _ in pairs)
            path = first if count == 1 else folder
            self._left_out.append(Skipped(path, reason, count, False, "repeated file", count, files))
        return self._left_out


def _identity(path: Path) -> Identity:
    return identity_of(path) or os.path.realpath(path)


def _identity_of(status: os.stat_result, real: str) -> Identity:
    return (status.st_dev, status.st_ino) if status.st_ino else real
