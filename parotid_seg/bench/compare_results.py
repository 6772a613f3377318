"""Compare two results: what got slower by more than chance explains, and what gives other masks."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from itertools import chain
from pathlib import Path

from parotid_seg.bench.machine_probe import best_transfer_ms, undisturbed_median, undisturbed_rounds
from parotid_seg.bench.result import SCHEMA, SCHEMA_VERSION
from parotid_seg.bench.stats import ratio_interval
from parotid_seg.errors import InputError, OptionError, RecordError
from parotid_seg.records import read_record
from parotid_seg.wording import some_of

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
        slices: that such a batch labels in the old and in the new run.
        other_masks: whether the new masks are beyond the tolerance.
        ratio, low, high: new time of a slice over old time, and its 95 % interval. None if either run had a single
            launch.
        disturbed: whether too few rounds of either run were undisturbed: then the ratio is of all rounds, and the
            interval is as wide as if only one of the two had been disturbed.
    """

    engine: str
    batch_size: int
    old_ms: float
    new_ms: float
    slices: tuple[int, int]
    other_masks: bool
    ratio: float | None
    low: float = 0.0
    high: float = math.inf
    disturbed: bool = False

    @property
    def verdict(self) -> str:
        """Slower or faster only if the whole interval is beyond `LEAST_CHANGE`, and the masks are the model's."""
        if self.other_masks:
            return "other masks"
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
            old, new = each.slices
            lines.append(
                f"{each.engine}, batches of {each.batch_size}: {each.verdict}: {each.old_ms:.1f} ms for {old} slices, "
                f"now {each.new_ms:.1f} ms for {new}; {change}"
            )
        for words, keys in (("gone", self.only_old), ("new", self.only_new)):
            lines += [f"{engine}, batches of {size}: {words}" for engine, size in keys]
        return lines

    @property
    def worse(self) -> bool:
        """Whether anything got slower, gives other masks, or is gone."""
        return bool(self.only_old) or any(change.verdict in ("slower", "other masks") for change in self.changes)

    @property
    def undecided(self) -> bool:
        """Whether the measurements leave a change undecided."""
        return any(change.verdict == "cannot tell" for change in self.changes)


@dataclass(frozen=True)
class _Parity:
    within: bool


@dataclass(frozen=True)
class _Speed:
    batch_size: int
    slices: int
    rounds_ms: Rounds
    transfers_ms: Rounds
    parity: _Parity | None = None

    def __post_init__(self) -> None:
        if self.slices < 1:
            raise InputError(f"slices: found {self.slices}, expected at least 1")
        for name in TIMES:
            rounds = getattr(self, name)
            if not rounds or not all(rounds) or any(each <= 0 for launch in rounds for each in launch):
                raise InputError(f"{name}: expected positive times of at least one launch")
        if [*map(len, self.rounds_ms)] != [*map(len, self.transfers_ms)]:
            raise InputError("found rounds without a time of transfers between cores, expected as many of both")

    @property
    def slice_ms(self) -> Rounds:
        """Time of a slice, by launch and round."""
        return tuple(tuple(each / self.slices for each in launch) for launch in self.rounds_ms)


@dataclass(frozen=True)
class _Ran:
    device: str
    precision: str

    def __str__(self) -> str:
        return f"{self.precision} on {self.device}"


@dataclass(frozen=True)
class _Row:
    name: str
    ran: _Ran
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
    chunks_of: tuple[str, ...] = ()
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
    return SpeedComparison(
        tuple(_change(key, one.speeds[key], other.speeds[key], min(one.best_ms, other.best_ms)) for key in shared),
        tuple(key for key in one.speeds if key not in other.speeds),
        tuple(key for key in other.speeds if key not in one.speeds),
        other.best_ms / one.best_ms,
        tuple(_notes(one, other, shared)),
    )


def _notes(one: _File, other: _File, shared: Sequence[Key]) -> Iterator[str]:
    """What makes the comparison doubtful."""
    ran = [{row.name: row.ran for row in each.rows} for each in (one, other)]
    for what, before, after in (
        ("other processors", one.machine.processor, other.machine.processor),
        ("other numbers of cores", one.machine.cores, other.machine.cores),
        ("other model files", one.model.sha256[:12], other.model.sha256[:12]),
        *((f"{name} ran otherwise", ran[0][name], ran[1][name]) for name in dict(shared)),
    ):
        if before != after:
            yield f"{what}: {before} and {after}"
    gpus = [each.machine.gpu.name for each in (one, other) if each.machine.gpu]  # of a file that measured one
    if len(set(gpus)) > 1:
        yield f"other GPUs: {gpus[0]} and {gpus[1]}"
    scans = [dict.fromkeys(each.inputs.chunks_of) for each in (one, other)]
    if all(scans) and scans[0].keys() != scans[1].keys():
        gone, added = (some_of(name for name in scans[i] if name not in scans[1 - i]) or "none" for i in (0, 1))
        yield f"other scans: {gone} and {added}"
    for size in dict.fromkeys(size for _, size in shared):
        shapes = [each.inputs.voxels_of_a_chunk.get(str(size)) for each in (one, other)]
        if all(shapes) and shapes[0] != shapes[1]:
            found = " and ".join(" x ".join(map(str, shape)) for shape in shapes if shape)
            yield f"other scans, batches of {size} have other voxels: {found}"
    for name, size in shared:
        before, after = (each.speeds[name, size].slices for each in (one, other))
        if before != after:
            yield f"{name}, batches of {size} label other numbers of slices, their times are compared per slice"


def _change(key: Key, one: _Speed, other: _Speed, best_ms: float) -> Change:
    old_ms, new_ms = (undisturbed_median(each.rounds_ms, each.transfers_ms) for each in (one, other))
    other_masks = other.parity is not None and not other.parity.within
    change = partial(Change, *key, old_ms, new_ms, (one.slices, other.slices), other_masks)
    if one.slice_ms == other.slice_ms:
        return change(1.0, 1.0, 1.0)
    old, new = (undisturbed_rounds(each.slice_ms, each.transfers_ms, best_ms) for each in (one, other))
    if min(len(old), len(new)) >= LEAST_LAUNCHES:
        return change(*ratio_interval(old, new))
    if min(len(one.rounds_ms), len(other.rounds_ms)) < LEAST_LAUNCHES:
        return change(None)
    ratio, low, high = ratio_interval(one.slice_ms, other.slice_ms)
    transfers_ms = [statistics.median(chain.from_iterable(each.transfers_ms)) for each in (one, other)]
    slowed = [max(DISTURBED, each / best_ms) for each in transfers_ms]
    return change(ratio, low / slowed[1], high * slowed[0], disturbed=True)


def _read(path: Path) -> _File:
    try:
        return read_record(path, _File, unknown_fields=True, version=SCHEMA_VERSION)
    except RecordError as error:
        advice = "expected a bench.json of this version of parotid-seg; measure again"
        raise OptionError(f"{error.reason}; {advice}", path=error.path) from error
