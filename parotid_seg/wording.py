"""Counts, sizes and lists of names in messages, and the functions that take messages."""

from __future__ import annotations

from collections.abc import Callable, Iterable

Say = Callable[[str], None]
"""Takes a line for the user."""
Progress = Callable[[str, int, int], None]
"""Takes the name of the present phase, how many of its steps are done, and how many it has."""


def counted(count: int, noun: str) -> str:
    """A number of things: "1 case", "3 cases", "2 studies", "2 MR series"."""
    if count == 1 or noun.endswith("series"):
        return f"{count} {noun}"
    return f"{count} {noun[:-1]}ies" if noun.endswith("y") else f"{count} {noun}s"


def by_axes(values: Iterable[float]) -> str:
    """Sizes along the axes: "512 x 512", "3 x 0.9766 x 0.9766"."""
    return " x ".join(f"{value:.4g}" for value in values)


def some_of(names: Iterable[str], most: int = 3, separator: str = ", ") -> str:
    """The first of some names; the others are counted."""
    every = list(names)
    more = f" and {len(every) - most} more" if len(every) > most else ""
    return separator.join(every[:most]) + more
