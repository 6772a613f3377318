"""Seeded mutation of files, and the loop that feeds them to a reader.

Each mutant is determined by the loop's seed and its number, so what a loop reports can be made again:
`mutant(seeds, seed, number)`. `pytest tests/fuzz --fuzz-inputs N` runs every loop with N inputs, and with
`--fuzz-first M` these are M, M + 1, ...: other ones than the last time.
"""

from __future__ import annotations

import json
import random
import struct
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from parotid_seg.errors import ParotidSegError
from tests.fuzz.watch import WATCH

LONGEST_S = 10.0
"""A reader that takes longer for one small input hangs."""
FIRST = 0
"""Number of a loop's first input; see `conftest.inputs`."""
MOST_MUTATIONS = 4
EXTREMES = (0, 1, -1, 2, 255, 256, 2**15 - 1, -(2**15), 2**16 - 1, 2**31 - 1, -(2**31), 2**32 - 1, 2**63 - 1, -(2**63))
FLOATS = (0.0, -0.0, 1e-300, -1.0, 1e30, 1e300, float("inf"), float("-inf"), float("nan"))
PIECES = tuple(
    piece.encode()
    for piece in (
        "\0", "\n", "\r\n", "\\", '"', "'", ",", ";", "=1+1", "..", "/", "../../x", "/dev/zero", "~", "%s%n", "null",
        "true", "NaN", "1e999", "-1", "99999999999999999999", "[" * 100, "{" * 100, '{"a":' * 40, "\\ud800", "\u202e",
        "<script>", "A" * 300,
    )
)  # fmt: skip
"""Of text formats; harmless noise to binary ones."""


def numbers(count: int) -> range:
    """Of so many inputs."""
    return range(FIRST, FIRST + count)


def mutant(seeds: Sequence[bytes], seed: int, number: int) -> bytes:
    """One of the seeds with one to `MOST_MUTATIONS` changes."""
    chance = random.Random(f"{seed} {number}")
    content = bytearray(chance.choice(seeds))
    for _ in range(chance.randint(1, MOST_MUTATIONS)):
        chance.choice(MUTATIONS)(content, chance, seeds)
    return bytes(content)


def _place(content: bytearray, chance: random.Random) -> int:
    """Anywhere, and every other time near the beginning, where headers are."""
    return chance.randrange(min(len(content), chance.choice((512, len(content)))) or 1) if content else 0


def _flip(content: bytearray, chance: random.Random, __: Sequence[bytes]) -> None:
    for _ in range(chance.choice((1, 1, 4, 16))):
        if content:
            content[_place(content, chance)] ^= 1 << chance.randrange(8)


def _overwrite(content: bytearray, chance: random.Random, _: Sequence[bytes]) -> None:
    if content:
        content[_place(content, chance)] = chance.choice((0, 0x7F, 0x80, 0xFF, chance.randrange(256)))


def _truncate(content: bytearray, chance: random.Random, _: Sequence[bytes]) -> None:
    del content[_place(content, chance) :]


def _remove(content: bytearray, chance: random.Random, _: Sequence[bytes]) -> None:
    place = _place(content, chance)
    del content[place : place + chance.choice((1, 2, 4, 8, 64))]


def _repeat(content: bytearray, chance: random.Random, _: Sequence[bytes]) -> None:
    place = _place(content, chance)
    content[place:place] = content[place : place + chance.choice((1, 8, 64, 512))] * chance.choice((1, 2, 50))


def _splice(content: bytearray, chance: random.Random, seeds: Sequence[bytes]) -> None:
    """A piece of another seed in place of as much or of nothing."""
    other = chance.choice(seeds)
    begin = chance.randrange(len(other)) if other else 0
    piece = other[begin : begin + chance.choice((4, 32, 256, 2048))]
    place = _place(content, chance)
    content[place : place + chance.choice((0, len(piece)))] = piece


def _extreme_integer(content: bytearray, chance: random.Random, _: Sequence[bytes]) -> None:
    size, order = chance.choice((1, 2, 4, 8)), chance.choice(("little", "big"))
    number = chance.choice(EXTREMES) % (1 << 8 * size)
    place = _place(content, chance)
    content[place : place + size] = number.to_bytes(size, "little" if order == "little" else "big")


def _extreme_float(content: bytearray, chance: random.Random, _: Sequence[bytes]) -> None:
    kind = chance.choice(("<f", ">f", "<d", ">d"))
    number = chance.choice(FLOATS)
    packed = struct.pack(kind, number if kind[1] == "d" or abs(number) <= 1e38 else float("inf"))
    place = _place(content, chance)
    content[place : place + len(packed)] = packed


def _piece(content: bytearray, chance: random.Random, _: Sequence[bytes]) -> None:
    place = _place(content, chance)
    content[place : place + chance.choice((0, 1, 4))] = chance.choice(PIECES)


MUTATIONS = (
    _flip,
    _overwrite,
    _truncate,
    _remove,
    _repeat,
    _splice,
    _extreme_integer,
    _extreme_float,
    _piece,
)


VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 0.5, -0.0, 1e300, 2**31, 2**53, 2**63 - 1, -(2**63), 2**64, 10**400, "", "a", "0",
    "null", "/etc/passwd", "../x", "..", "a\nb", "\0", "\ud800", "\u202e", "=1+1", "x" * 5000, "1" * 5000, [], {}, [[]],
    [None], [0], ["a"], [[0, 1]], {"": 0}, {"a": 1}, {"code": "nothing_found"}, float("inf"), float("nan"),
)  # fmt: skip


def tree_mutant(seeds: Sequence[bytes], seed: int, number: int) -> bytes:
    """One of the seeds, JSON or lines of it, with values, names and places in the tree changed; it stays JSON."""
    chance = random.Random(f"{seed} {number} tree")
    lines = [json.loads(line) for line in _documents(chance.choice(seeds))]
    for _ in range(chance.randint(1, MOST_MUTATIONS)):
        _change_tree(lines, chance)
    return b"\n".join(json.dumps(line).encode() for line in lines)


def _documents(content: bytes) -> list[bytes]:
    try:
        json.loads(content)
    except ValueError:
        return content.splitlines()
    return [content]


def _change_tree(lines: list[str], chance: random.Random) -> None:
    """Change something at a random place of a random line."""
    holder: Any = lines
    place: Any = chance.randrange(len(lines))
    while isinstance(below := holder[place], dict | list) and below and chance.random() < 0.75:
        holder, place = below, chance.choice(list(below) if isinstance(below, dict) else range(len(below)))
    kind = chance.randrange(6)
    value = json.loads(json.dumps(chance.choice(VALUES)))
    if holder is lines and kind != 0:
        kind = 5
    if kind <= 2 or kind == 5:
        holder[place] = value
    elif kind == 3:
        del holder[place]
    elif isinstance(holder, dict):
        holder[chance.choice(("a", "", "schema_version", f"{place} "))] = holder[place]
    else:
        holder.insert(place, value)


@dataclass
class Tally:
    """What came of a loop.

    Attributes:
        outcomes: how often a reader took an input ("read"), or refused it with which error.
        slowest_s: the longest that it took over one; of processor time, if that is less: a busy machine is no fault.
        seconds: over all.
    """

    outcomes: Counter[str] = field(default_factory=Counter)
    slowest_s: float = 0.0
    seconds: float = 0.0

    def __str__(self) -> str:
        count = sum(self.outcomes.values())
        kinds = ", ".join(f"{number} {kind}" for kind, number in self.outcomes.most_common())
        rate = count / max(self.seconds, 1e-9)
        return f"{count} inputs ({kinds}), {rate:.0f} inputs/s, slowest {1000 * self.slowest_s:.0f} ms"


def feed(
    read: Callable[[bytes], object],
    seeds: Sequence[bytes],
    count: int,
    *,
    seed: int = 0,
    make: Callable[[Sequence[bytes], int, int], bytes] = mutant,
) -> Tally:
    """Give mutants to a reader; it may take them or refuse them with one line of ours, and nothing else.

    Args:
        read: reads the content of a file, or raises `ParotidSegError`.
        seeds: contents of good files.
        count: how many mutants.
        seed: of the mutations.
        make: makes a mutant.

    Raises:
        AssertionError: for another error, a reason of several lines, a step that `WATCH` refused, or a reader that
            takes `LONGEST_S`; it names the mutant's number.
    """
    tally, began = Tally(), time.perf_counter()
    for number in numbers(count):
        content = make(seeds, seed, number)
        begun, worked = time.perf_counter(), time.process_time()
        try:
            read(content)
            outcome = "read"
        except ParotidSegError as error:
            outcome = type(error).__name__ if len(str(error).splitlines()) == 1 else f"several lines: {str(error)!r}"
        except BaseException as error:
            raise AssertionError(f"mutant {number} of seed {seed}: {type(error).__name__}: {error}") from error
        seconds = min(time.perf_counter() - begun, time.process_time() - worked)
        assert not WATCH.found, f"mutant {number} of seed {seed}: {WATCH.found}"
        assert not outcome.startswith("several lines"), f"mutant {number} of seed {seed}: {outcome}"
        assert seconds < LONGEST_S, f"mutant {number} of seed {seed} took {seconds:.1f} s"
        tally.outcomes[outcome] += 1
        tally.slowest_s = max(tally.slowest_s, seconds)
    tally.seconds = time.perf_counter() - began
    print(tally)  # noqa: T201 (shown by pytest -s)
    return tally
