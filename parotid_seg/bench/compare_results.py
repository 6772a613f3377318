"""Compare two results: what got slower by more than chance explains."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain
from pathlib import Path

from parotid_seg.bench.machine_probe import best_transfer_ms, undisturbed_median, undisturbed_rounds
from parotid_seg.bench.result import SCHEMA, SCHEMA_VERSION
from parotid_seg.bench.stats import ratio_interval
from parotid_seg.errors import InputError, OptionError, RecordError
from parotid_seg.records import read_record

LEAST_CHANGE = 0.02
"""Share of the time. Smaller changes do not matter, and remaining drift of the machine would show up as one."""

LEAST_LAUNCHES = 2
"""With undisturbed rounds; differences between starts of a process are noise, too."""

DISTURBED = 1.5
"""Factor by which a little other work slows an engine down at most (see `machine_probe`)."""

Rounds = tuple[tuple[float, ...], ...]
TIMES = ("rounds_ms", "transfers_ms")
"""Fields of a bench.json with milliseconds by launch and round."""
Key = tuple[str, int]
"""Engine and batch size."""


@dataclass(frozen=True)
class Change:
    """One engine at one batch size in both.

    Attributes:
        engine, batch_size: which.
        old_ms, new_ms: medians as they were measured.
        ratio, low, high: new time over old time, and its 95 % interval. None if either run had a single launch.
        disturbed: whether too few rounds of either run were undisturbed: then the ratio is of all rounds, and the
            interval is as wide as if only one of the two had been disturbed.
    """

    engine: str
    batch_size: int
    old_ms: float
    new_ms: float
    ratio: float | None
    low: float = 0.0
    high: float = math.inf
    disturbed: bool = False

    @property
    def verdict(self) -> str:
        """Slower or faster only if the whole interval is beyond `LEAST_CHANGE`."""
        if self.ratio is None:
            return "cannot tell"
        if self.low > 1 + LEAST_CHANGE:
            return "slower"
        if self.high < 1 / (1 + LEAST_CHANGE):
            return "faster"
        return "cannot tell" if self.disturbed else "no change found"


@dataclass(frozen=True)
class SpeedComparison:
    """Two results.

    Attributes:
        changes: of what is in both.
        only_old, only_new: what is in one of them.
        transfer: time of a transfer between the machine's cores in the new run over that in the old run, both at their
            best (see `machine_probe`).
        notes: what makes the comparison doubtful.
    """

    changes: tuple[Change, ...]
    only_old: tuple[Key, ...]
    only_new: tuple[Key, ...]
    transfer: float
    notes: tuple[str, ...]

    def lines(self) -> list[str]:
        """The comparison as text, one line each."""
        lines = [f"note: {note}; the comparison is not reliable" for note in self.notes]
        lines.append(f"transfers between the machine's cores take {self.transfer:.2f} times the old time")
        for each in self.changes:
            change = "a single launch is not enough, measure again with more --minutes"
            if each.ratio is not None:
                change = f"{each.ratio - 1:+.1%} ({each.low - 1:+.1%} to {each.high - 1:+.1%})"
            if each.disturbed:
                change += "; other work disturbed the machine, measure again when it rests"
            lines.append(
                f"{each.engine}, batches of {each.batch_size}: {each.verdict}: {each.old_ms:.1f} ms, now "
                f"{each.new_ms:.1f} ms; {change}"
            )
        for words, keys in (("gone", self.only_old), ("new", self.only_new)):
            lines += [f"{engine}, batches of {size}: {words}" for engine, size in keys]
        return lines

    @property
    def slower(self) -> bool:
        """Whether anything got slower, or is gone."""
        return bool(self.only_old) or any(change.verdict == "slower" for change in self.changes)

    @property
    def undecided(self) -> bool:
        """Whether the measurements leave a change undecided."""
        return any(change.verdict == "cannot tell" for change in self.changes)


@dataclass(frozen=True)
class _Speed:
    batch_size: int
    rounds_ms: Rounds
    transfers_ms: Rounds

    def __post_init__(self) -> None:
        for name in TIMES:
            rounds = getattr(self, name)
            if not rounds or not all(rounds) or any(each <= 0 for launch in rounds for each in launch):
                raise InputError(f"{name}: expected positive times of at least one launch")
        if [*map(len, self.rounds_ms)] != [*map(len, self.transfers_ms)]:
            raise InputError("found rounds without a time of transfers between cores, expected as many of both")


@dataclass(frozen=True)
class _Row:
    name: str
    speeds: tuple[_Speed, ...]


@dataclass(frozen=True)
class _Gpu:
    name: str


@dataclass(frozen=True)
class _Machine:
    processor: str
    cores: int
    gpu: _Gpu | None = None


@dataclass(frozen=True)
class _Model:
    sha256: str


@dataclass(frozen=True)
class _Inputs:
    voxels_of_a_chunk: dict[str, tuple[int, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class _File:
    """The fields read from a bench.json."""

    schema: str
    machine: _Machine
    model: _Model
    rows: tuple[_Row, ...]
    inputs: _Inputs = field(default_factory=_Inputs)

    def __post_init__(self) -> None:
        if self.schema != SCHEMA:
            raise InputError("not made by parotid-seg bench, expected a bench.json")
        if len(self.speeds) < sum(len(row.speeds) for row in self.rows):
            raise InputError("rows: found an engine and batch size more than once, expected each once")

    @cached_property
    def speeds(self) -> dict[Key, _Speed]:
        """By engine and batch size."""
        return {(row.name, speed.batch_size): speed for row in self.rows for speed in row.speeds}

    @property
    def best_ms(self) -> float:
        """The best time of a transfer between the machine's cores."""
        return best_transfer_ms([launch for speed in self.speeds.values() for launch in speed.transfers_ms])


def compare_files(old: Path, new: Path) -> SpeedComparison:
    """Compare two bench.json files.

    Raises:
        OptionError: if one is missing, is not a bench.json or has another schema version, or if they have no
            measurement in common. Its exit status differs from that of "something is slower".
    """
    for path in (old, new):
        if not path.exists():
            raise OptionError("no such file, expected a bench.json", path=path)
    one, other = _read(old), _read(new)
    shared = [key for key in one.speeds if key in other.speeds]
    if not shared:
        raise OptionError(f"has no engine and batch size in common with {old}", path=new)
    notes = [
        f"{what}: {before} and {after}"
        for what, before, after in (
            ("other processors", one.machine.processor, other.machine.processor),
            ("other numbers of cores", one.machine.cores, other.machine.cores),
            ("other model files", one.model.sha256[:12], other.model.sha256[:12]),
        )
        if before != after
    ]
    gpus = [each.machine.gpu.name for each in (one, other) if each.machine.gpu]  # of a file that measured one
    if len(set(gpus)) > 1:
        notes.append(f"other GPUs: {gpus[0]} and {gpus[1]}")
    shapes = [{size: each.inputs.voxels_of_a_chunk.get(str(size)) for _, size in shared} for each in (one, other)]
    for size, before in shapes[0].items():
        if before and (after := shapes[1][size]) and before != after:
            found = " and ".join(" x ".join(map(str, each)) for each in (before, after))
            notes.append(f"other scans, batches of {size} have other voxels: {found}")
    return SpeedComparison(
        tuple(_change(key, one.speeds[key], other.speeds[key], min(one.best_ms, other.best_ms)) for key in shared),
        tuple(key for key in one.speeds if key not in other.speeds),
        tuple(key for key in other.speeds if key not in one.speeds),
        other.best_ms / one.best_ms,
        tuple(notes),
    )


def _change(key: Key, one: _Speed, other: _Speed, best_ms: float) -> Change:
    old, new = (undisturbed_rounds(each.rounds_ms, each.transfers_ms, best_ms) for each in (one, other))
    old_ms, new_ms = (undisturbed_median(each.rounds_ms, each.transfers_ms) for each in (one, other))
    if one.rounds_ms == other.rounds_ms:
        return Change(*key, old_ms, new_ms, 1.0, 1.0, 1.0)
    if min(len(old), len(new)) >= LEAST_LAUNCHES:
        return Change(*key, old_ms, new_ms, *ratio_interval(old, new))
    if min(len(one.rounds_ms), len(other.rounds_ms)) < LEAST_LAUNCHES:
        return Change(*key, old_ms, new_ms, None)
    ratio, low, high = ratio_interval(one.rounds_ms, other.rounds_ms)
    transfers_ms = [statistics.median(chain.from_iterable(each.transfers_ms)) for each in (one, other)]
    slowed = [max(DISTURBED, each / best_ms) for each in transfers_ms]
    return Change(*key, old_ms, new_ms, ratio, low / slowed[1], high * slowed[0], disturbed=True)


def _read(path: Path) -> _File:
    try:
        return read_record(path, _File, unknown_fields=True, version=SCHEMA_VERSION)
    except RecordError as error:
        advice = "expected a bench.json of this version of parotid-seg; measure again"
        raise OptionError(f"{error.reason}; {advice}", path=error.path) from error
