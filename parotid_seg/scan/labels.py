"""What the name of a structure tells: its words, its side, whether it is a parotid gland."""

from __future__ import annotations

import re


def words(name: str) -> frozenset[str]:
    """The words of a structure's name, whatever its style: LeftParotid, parotid_left."""
    return frozenset(word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+|[0-9]+|[^\W\d_A-Za-z]+", name))


def is_sided(name: str) -> bool:
    """Whether the name says left or right, so that a patient has one such structure."""
    return bool(words(name) & {"left", "right"})


def is_parotid(name: str) -> bool:
    """Whether the structure is a parotid gland."""
    return "parotid" in words(name)
