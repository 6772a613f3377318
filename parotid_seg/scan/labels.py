"""What the name of a structure tells: its words, its side, whether it is a parotid gland."""

from __future__ import annotations

import re
from collections.abc import Sequence

PAROTID_ML = (8.0, 60.0)
"""Range of parotid glands; 99 % of the contoured training and validation glands lie in it."""


def words(name: str) -> frozenset[str]:
    """The words of a structure's name, whatever its style: LeftParotid, parotid_left."""
    return frozenset(word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+|[0-9]+|[^\W\d_A-Za-z]+", name))


def plain_name(name: str) -> str:
    """The name of a structure in plain words: parotid_left and LeftParotid are both "left parotid"."""
    found = [word.lower() if word.istitle() else word for word in re.sub(r"(?<=[a-z])(?=[A-Z])|_+", " ", name).split()]
    return " ".join(sorted(found, key=lambda word: word not in {"left", "right"}))


def is_sided(name: str) -> bool:
    """Whether the name says left or right, so that a patient has one such structure."""
    return bool(words(name) & {"left", "right"})


def is_parotid(name: str) -> bool:
    """Whether the structure is a parotid gland."""
    return "parotid" in words(name)


def mirrored_labels(names: Sequence[str]) -> tuple[int, ...]:
    """For each label the one it becomes in a mirrored scan: names that differ in left and right change places."""
    found = [words(name) for name in names]
    swapped = {"left": "right", "right": "left"}
    partners = [frozenset(swapped.get(word, word) for word in name) for name in found]
    return tuple(
        found.index(partner) if partner != found[value] and partner in found else value
        for value, partner in enumerate(partners)
    )


def is_usual_volume(name: str, volume_ml: float) -> bool:
    """Whether a structure can have a volume; of other structures than parotid glands that is not known."""
    return not is_parotid(name) or PAROTID_ML[0] <= volume_ml <= PAROTID_ML[1]
