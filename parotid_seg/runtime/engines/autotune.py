"""The choice between engines that could run a model here: measured once on this machine, then kept.

It is kept because masks depend on it: in another precision a voxel in some hundred may change. So it must not depend
on how busy the machine happens to be today.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Protocol

from parotid_seg.errors import InputError, OutputError, ParotidSegError, RecordError
from parotid_seg.records import read_record, write_record
from parotid_seg.runtime.engines.base import Backend

SCHEMA_VERSION = 1
LARGEST_BATCH = 1024
"""Slices; a larger one is no choice of ours."""
LEAST_GAIN = 1.1
"""How much faster a lower precision than the model file's must be to be worth its rounding."""
BITS = {"int8": 1, "bf16": 2, "fp16": 3, "fp32": 4}
"""Precisions in rising order."""

Say = Callable[[str], None]


@dataclass(frozen=True)
class Candidate:
    """An engine that could run the model.

    Attributes:
        name: as it is told to the user, for example "OpenVINO BF16".
        backend: the name it is asked for by, see `registry.ENGINES`.
        precision: type it computes in.
        file: the model file or engine that it loads.
        make: loads it; raises ParotidSegError if that fails.
    """

    name: str
    backend: str
    precision: str
    file: Path
    make: Callable[[], Backend]


class Measure(Protocol):
    """What `choose` asks about loaded models; see `engine_benchmark.Trial`."""

    def speeds(self, backends: Mapping[str, Backend]) -> dict[str, float]:
        """Looks a second by name."""

    def batch_size(self, backend: Backend, sizes: Sequence[int]) -> int:
        """The fastest of some batch sizes."""

    def failure(self, reference: Backend, other: Backend, precision: str) -> str:
        """Why another's masks are not the reference's; empty if they are."""


@dataclass(frozen=True)
class Choice:
    """What was chosen, as it is kept.

    Attributes:
        name: of the candidate.
        batch_size: samples at once.
        looks_per_s: of every candidate that was tried, the fastest first.
        refused: why a faster one was not taken, or one could not be tried, by name.
        measured: day.
    """

    name: str
    batch_size: int
    looks_per_s: dict[str, float]
    refused: dict[str, str]
    measured: str
    schema_version: int = SCHEMA_VERSION

    def __post_init__(self) -> None:
        if self.name not in self.looks_per_s or not 1 <= self.batch_size <= LARGEST_BATCH:
            raise InputError(f"found {self.name!r} in batches of {self.batch_size}, expected an engine that was tried")

    def __str__(self) -> str:
        others = ", ".join(f"{name} {speed:.0f}" for name, speed in self.looks_per_s.items() if name != self.name)
        refused = "".join(f"; {name} not taken: {reason}" for name, reason in self.refused.items())
        speed = self.looks_per_s[self.name]
        return f"{self.name}: {speed:.0f} samples/s, batches of {self.batch_size}; {others or 'no other'}{refused}"


def choose(
    candidates: Sequence[Candidate],
    precision: str,
    sizes: Sequence[int],
    measure: Measure,
    place: Path,
    say: Say,
    *,
    today: Callable[[], date] = lambda: datetime.now(UTC).date(),
) -> Backend:
    """Load the best of some candidates: by what is kept of an earlier choice, or by a trial.

    Args:
        candidates: at least one; the first runs the model file itself on the reference engine.
        precision: of the model file. A candidate of a lower one is taken only if it is `LEAST_GAIN` as fast as the best
            of the others, and if its masks pass the gate.
        sizes: batch sizes to try.
        measure: tells what is to be known about them.
        place: file to keep the choice in.
        say: called with what was chosen and why, in one line.
        today: the day.

    Raises:
        ParotidSegError: if the first candidate cannot be loaded, or the one that was chosen before.
    """
    by_name = {candidate.name: candidate for candidate in candidates}
    stored = _kept(place, by_name)
    if stored is None:
        choice, chosen = _tried(candidates, precision, sizes, measure, today())
        stored = _kept(place, by_name)  # another process may have been faster; both must take the same
        if stored is not None:
            chosen.close()
    if stored is not None:
        chosen = by_name[stored.name].make()
        chosen.batch_size = stored.batch_size
        say(f"{stored} (measured on this machine {stored.measured}, kept in {place})")
        return chosen
    kept_where = f"kept in {place}"
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        write_record(choice, place)
    except (OutputError, OSError) as error:
        kept_where = f"not kept, so that the next run may choose another: {error}"
    say(f"{choice} (measured on this machine just now, {kept_where})")
    return chosen


def _tried(
    candidates: Sequence[Candidate], precision: str, sizes: Sequence[int], measure: Measure, day: date
) -> tuple[Choice, Backend]:
    first = candidates[0]
    loaded, refused = {first.name: first.make()}, {}
    for candidate in candidates[1:]:
        try:
            loaded[candidate.name] = candidate.make()
        except ParotidSegError as error:
            refused[candidate.name] = str(error)
    speeds = measure.speeds(loaded)
    order = sorted(speeds, key=lambda name: -speeds[name])
    precisions = {candidate.name: candidate.precision for candidate in candidates}
    lower = {name for name in order if BITS[precisions[name]] < BITS[precision]}
    best = next((name for name in order if name not in lower), first.name)
    for name in order:
        if name == best:
            break
        reason = (
            measure.failure(loaded[first.name], loaded[name], precisions[name])
            if speeds[name] >= LEAST_GAIN * speeds[best]
            else f"less than {LEAST_GAIN - 1:.0%} faster in a lower precision"
        )
        if not reason:
            best = name
            break
        refused[name] = reason
    for name, backend in loaded.items():
        if name != best:
            backend.close()
    chosen = loaded[best]
    chosen.batch_size = measure.batch_size(chosen, sizes)
    rounded = {name: round(speeds[name], 2) for name in order}
    return Choice(best, chosen.batch_size, rounded, refused, day.isoformat()), chosen


def _kept(place: Path, names: Mapping[str, object]) -> Choice | None:
    """An earlier choice; None if there is none that can be used."""
    try:
        choice = read_record(place, Choice, version=SCHEMA_VERSION)
    except RecordError:
        return None
    return choice if choice.name in names else None


def place_for(facts: Mapping[str, object]) -> Path:
    """Where a choice is kept that depends on these facts: model, machine, versions."""
    text = json.dumps({**facts, "schema_version": SCHEMA_VERSION}, sort_keys=True)
    return cache_folder() / "engines" / f"{hashlib.sha256(text.encode()).hexdigest()[:16]}.json"


def cache_folder() -> Path:
    """The user's folder for what can be made again."""
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "parotid-seg"
