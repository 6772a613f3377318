"""What is done in an output folder: an append-only journal, so that a killed run resumes without redoing or trusting
anything half-written."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path

from parotid_seg.errors import OutputError

NAME = "journal.jsonl"


@dataclass(frozen=True)
class Entry:
    """A finished or failed case.

    Attributes:
        case: name in the output folder.
        source: absolute path of the scan, of several channels the first.
        key: hash over the bytes of the scan's files, the model and the options that change the mask.
        status: "done" or "failed".
        reason: why it failed, else empty.
        mask: the mask's file name, and `mask_sha256` its hash; empty if failed.
        volumes_ml, flags, seconds: as in `Segmentation`, and the time of each stage.
        backend, device, precision: what really ran.
    """

    case: str
    source: str
    key: str
    status: str
    reason: str = ""
    mask: str = ""
    mask_sha256: str = ""
    volumes_ml: dict[str, float] = dataclasses.field(default_factory=dict)
    flags: tuple[str, ...] = ()
    seconds: dict[str, float] = dataclasses.field(default_factory=dict)
    backend: str = ""
    device: str = ""
    precision: str = ""


class Journal:
    """The journal of one output folder; the last line of a case counts.

    Raises:
        OutputError: if the journal cannot be read or written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.entries: dict[str, Entry] = {}
        path = folder / NAME
        try:
            text = path.read_text() if path.exists() else ""
        except OSError as error:
            raise OutputError(f"{path}: cannot be read ({error.strerror})") from error
        for line in text.splitlines():
            try:
                entry = Entry(**json.loads(line))
            except (ValueError, TypeError):
                continue  # the line a killed run was writing: its case counts as not done
            self.entries[entry.case] = dataclasses.replace(entry, flags=tuple(entry.flags))

    def add(self, entry: Entry) -> None:
        """Record a case; on return the line is on disk."""
        self.entries[entry.case] = entry
        path = self.folder / NAME
        try:
            torn = path.exists() and path.stat().st_size > 0 and not path.read_bytes().endswith(b"\n")
            with path.open("a") as file:
                file.write(("\n" if torn else "") + json.dumps(dataclasses.asdict(entry)) + "\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise OutputError(f"{path}: cannot be written ({error.strerror})") from error

    def is_done(self, case: str, key: str) -> bool:
        """Whether this very work is done and its mask is still as it was written."""
        entry = self.entries.get(case)
        if entry is None or entry.status != "done" or entry.key != key:
            return False
        mask = self.folder / entry.mask
        return mask.is_file() and hash_file(mask) == entry.mask_sha256

    def owners(self) -> dict[str, Path]:
        """The scan that each name in the folder belongs to, by its first file."""
        return {name: Path(entry.source) for name, entry in self.entries.items()}


def hash_file(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
