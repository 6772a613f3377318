"""Chooses between the engines that can run a model on this machine: measured once, then stored.

The choice is stored because masks depend on it: in another precision about one voxel in a hundred may change. It must
therefore not depend on the machine's present load.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import stat
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from parotid_seg.errors import InputError, OutputError, ParotidSegError, RecordError
from parotid_seg.files import partial_path
from parotid_seg.records import read_record, write_record
from parotid_seg.runtime.engines.base import Backend
from parotid_seg.wording import Say

if TYPE_CHECKING:
    from parotid_seg.runtime.engines.engine_benchmark import EngineBenchmark

log = logging.getLogger(__name__)

SCHEMA_VERSION = 3
LARGEST_BATCH = 1024
"""Largest batch size that is chosen automatically."""
LEAST_GAIN = 1.1
"""Least speed-up for which a lower precision than the model file's is chosen, despite its rounding."""
BITS = {"int8": 1, "bf16": 2, "fp16": 3, "fp32": 4}
"""Precisions in rising order."""
NO_HOME = "this user has no home folder for the cache, expected $HOME, or $XDG_CACHE_HOME with an absolute path"


@dataclass(frozen=True)
class Candidate:
    """An engine that could run the model.

    Attributes:
        name: its name in messages, for example "OpenVINO BF16".
        backend: its name as an option, see `registry.ENGINES`.
        precision: type it computes in.
        file: the model file or engine that it loads.
        make: loads the engine; raises ParotidSegError if that fails. Picklable, as `bench` calls it in other processes.
        check: called with the loaded engine; raises ParotidSegError, with the engine closed, if it does not run.
    """

    name: str
    backend: str
    precision: str
    file: Path
    make: Callable[[], Backend]
    check: Callable[[Backend], None] = lambda _: None

    def load(self, batch_size: int | None = None) -> Backend:
        """Load and check it, for batches of so many samples if that is known.

        Raises:
            ParotidSegError: as `make` and `check` raise it.
        """
        backend = self.make()
        if batch_size is not None:
            backend.batch_size = batch_size
        self.check(backend)
        return backend


@dataclass(frozen=True)
class Choice:
    """A choice as it is stored.

    Attributes:
        name: of the candidate.
        batch_size: samples at once.
        samples_per_s: samples per second of every candidate that was tried, the fastest first.
        refused: by name, why a faster candidate was not chosen, or one could not be tried.
        measured: day of the measurement.
    """

    name: str
    batch_size: int
    samples_per_s: dict[str, float]
    refused: dict[str, str]
    measured: str
    schema_version: int = SCHEMA_VERSION

    def __post_init__(self) -> None:
        if self.name not in self.samples_per_s or not 1 <= self.batch_size <= LARGEST_BATCH:
            raise InputError(f"found {self.name!r} in batches of {self.batch_size}, expected an engine that was tried")
        if min(self.samples_per_s.values()) < 0 or not re.fullmatch(r"\d{4}-\d\d-\d\d", self.measured):
            raise InputError("found a negative speed or no day, expected what was measured and when")

    def __str__(self) -> str:
        others = ", ".join(f"{name} {speed:.0f}" for name, speed in self.samples_per_s.items() if name != self.name)
        reasons: dict[str, list[str]] = {}
        for name, reason in self.refused.items():
            reasons.setdefault(reason, []).append(name)
        refused = "".join(f"; {', '.join(names)} not taken: {reason}" for reason, names in reasons.items())
        speed = self.samples_per_s[self.name]
        return f"{self.name}: {speed:.0f} samples/s, batches of {self.batch_size}; {others or 'no other'}{refused}"


def choose(
    candidates: Sequence[Candidate],
    precision: str,
    sizes: Sequence[int],
    measure: Callable[[], EngineBenchmark],
    place: Path | None,
    say: Say,
) -> Backend:
    """Load the best of some candidates: by a stored choice, or by a benchmark.

    Args:
        candidates: at least one; the first runs the model file itself on the reference engine. Any other is chosen
            only if its masks are within the tolerance of those of the first.
        precision: of the model file. A candidate of a lower one is chosen only if it is `LEAST_GAIN` times as fast as
            the best of the others.
        sizes: batch sizes to try.
        measure: makes the measurements, if there is no stored choice.
        place: file in which the choice is stored; None if the user has no home folder.
        say: called with the choice and its reason, in one line.

    Raises:
        ParotidSegError: if the first candidate cannot be loaded or compute, or the one of a stored choice be loaded.
    """
    by_name = {candidate.name: candidate for candidate in candidates}
    stored = _stored_choice(place, by_name)
    if stored is None:
        choice, chosen = _tried(candidates, precision, sizes, measure())
        now = f"{choice} (measured on this machine just now"
        try:
            stored = _store(choice, place, by_name)
        except (OutputError, OSError) as error:
            say(f"{now}, not kept, so that the next run may choose another: {error})")
            return chosen
        if stored is choice:
            say(f"{now}, kept in {place})")
            return chosen
        chosen.close()
    chosen = by_name[stored.name].load(stored.batch_size)
    say(f"{stored} (measured on this machine {stored.measured}, kept in {place})")
    return chosen


def _store(choice: Choice, place: Path | None, names: Mapping[str, object]) -> Choice:
    """Store a choice, and return it; or the one that another process has stored meanwhile, which both must use."""
    if place is None:
        raise OutputError(NO_HOME)
    place.parent.mkdir(parents=True, exist_ok=True)
    complete = partial_path(place)
    write_record(choice, complete)
    try:
        while True:
            try:
                os.link(complete, place)  # unlike a renamed file it replaces none
            except FileExistsError:
                if stored := _stored_choice(place, names):
                    return stored
                place.unlink(missing_ok=True)
            except OSError:  # a file system without hard links
                complete.replace(place)
                return choice
            else:
                return choice
    finally:
        complete.unlink(missing_ok=True)


def _tried(
    candidates: Sequence[Candidate],
    precision: str,
    sizes: Sequence[int],
    measure: EngineBenchmark,
    earlier: Mapping[str, str] = MappingProxyType({}),
) -> tuple[Choice, Backend]:
    """The choice, and the chosen engine; `earlier` are others that were tried and refused before."""
    log.info("measuring %s, once on this machine", ", ".join(each.name for each in candidates))
    first = candidates[0]
    loaded, refused = {first.name: first.load()}, dict(earlier)
    for candidate in candidates[1:]:
        try:
            loaded[candidate.name] = candidate.load()
        except ParotidSegError as error:
            refused[candidate.name] = str(error)
    failed: dict[str, ParotidSegError] = {}
    speeds = measure.speeds(loaded, failed)
    if first.name in failed:  # no masks to compare those of the others with
        raise failed[first.name]
    refused |= {name: str(error) for name, error in failed.items()}
    precisions = {candidate.name: candidate.precision for candidate in candidates}
    lower = {name for name in speeds if BITS[precisions[name]] < BITS[precision]}
    worth = {name: speed / (LEAST_GAIN if name in lower else 1) for name, speed in speeds.items()}
    for best in sorted(worth, key=lambda name: -worth[name]):
        reason = "" if best == first.name else measure.failure(loaded[first.name], loaded[best], precisions[best])
        if not reason:
            break
        refused[best] = reason
    for name, backend in loaded.items():
        if name != best:
            with suppress(ParotidSegError):  # of a lost GPU nothing can be freed
                backend.close()
    try:  # with the memory of the others
        loaded[best].batch_size = measure.batch_size(loaded[best], sizes)
    except ParotidSegError as error:
        if best == first.name:
            raise
        with suppress(ParotidSegError):
            loaded[best].close()
        refused[best] = str(error)
        others = [candidate for candidate in candidates if candidate.name not in refused]
        return _tried(others, precision, sizes, measure, refused)
    order = sorted(speeds, key=lambda name: -speeds[name])
    for name in order:
        if name in lower and name not in refused and speeds[name] > speeds[best]:
            refused[name] = f"less than {LEAST_GAIN - 1:.0%} faster in a lower precision"
    rounded = {name: round(speeds[name], 2) for name in order}
    return Choice(best, loaded[best].batch_size, rounded, refused, datetime.now(UTC).date().isoformat()), loaded[best]


def _stored_choice(place: Path | None, names: Mapping[str, object]) -> Choice | None:
    """A stored choice; None if there is no usable one."""
    if place is None:
        return None
    try:
        choice = read_record(place, Choice, version=SCHEMA_VERSION)
    except RecordError:
        return None
    return choice if names.keys() >= choice.samples_per_s.keys() | choice.refused.keys() else None


def place_for(facts: Mapping[str, object]) -> Path | None:
    """File of a choice that depends on these facts: model, machine, versions; None as `cache_file`."""
    text = json.dumps({**facts, "schema_version": SCHEMA_VERSION}, sort_keys=True)
    return cache_file("engines", f"{hashlib.sha256(text.encode()).hexdigest()[:16]}.json")


def cache_file(folder: str, name: str) -> Path | None:
    """A file in a folder of the user's cache; None if the user has no home folder, so that nothing is kept."""
    try:
        return cache_folder() / folder / name
    except OutputError as error:
        log.info("%s/%s is not kept: %s", folder, name, error)
        return None


def cache_folder() -> Path:
    """The user's cache folder.

    A relative $XDG_CACHE_HOME is ignored, as its specification says: choices would depend on the current folder.

    Raises:
        OutputError: if the user has no home folder.
    """
    try:
        if sys.platform == "win32":
            base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
        elif sys.platform == "darwin":
            base = Path.home() / "Library" / "Caches"
        else:
            named = Path(os.environ.get("XDG_CACHE_HOME") or ".")
            base = named if named.is_absolute() else Path.home() / ".cache"
    except RuntimeError as error:
        raise OutputError(NO_HOME) from error
    return base / "parotid-seg"


def is_private(path: Path) -> bool:
    """Whether only this user can write to a file or folder. Systems without user numbers have a folder per user.

    Raises:
        OSError: if there is none.
    """
    status = path.lstat()
    if not hasattr(os, "getuid"):
        return True
    return status.st_uid == os.getuid() and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def make_private(folder: Path, *files: Path) -> None:
    """Make a folder, and files in it, such as `is_private` expects; the folder is made if it is missing.

    Raises:
        OutputError: if that fails.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.chmod(0o700)
        for file in files:
            file.chmod(0o600)
    except OSError as error:
        raise OutputError(
            f"cannot be made a folder that only its owner can write to ({error.strerror})", path=folder
        ) from error
