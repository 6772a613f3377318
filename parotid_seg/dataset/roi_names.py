"""What the name of a contoured structure (ROI) means: one of our labels, or none, and why.

A name means a parotid gland if every one of its words is known: the gland, one side, nothing else. Names of
AAPM TG-263 ("Parotid_L") are among them. One word more makes it something else: a margin ("Parotid_L_PRV"), what a
target left of it ("Parotid_L-PTV"), a part ("Parotid_Deep_L"), a copy ("Parotid_L_1").
"""

from __future__ import annotations

import re
import tomllib
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from parotid_seg.contract import IGNORE
from parotid_seg.errors import InputError
from parotid_seg.scan.labels import FILLERS, PAROTID_GLAND, is_parotid, side_of, side_words, words

LEFT, RIGHT = "parotid_left", "parotid_right"
LABEL_OF = {"left": LEFT, "right": RIGHT}
BOTH = frozenset(["parotids", "parotides", "parotiden", "parotidas", "both", "bilateral", "bilat"])

LABEL = re.compile(r"[A-Za-z]\w*", re.ASCII)


@dataclass(frozen=True)
class Meaning:
    """What a name means.

    Attributes:
        label: one of the labels; empty if it means none.
        reason: why not.
        own: whether the user's table says so.
        gland: whether a parotid gland is spoken of at all.
    """

    label: str = ""
    reason: str = ""
    own: bool = False
    gland: bool = False


@dataclass(frozen=True)
class RoiNames:
    """The labels to fill, in the order of their values from 1, and which names mean them.

    Attributes:
        labels: names of labels, without background.
        own: the user's names by label, which go over the rules above; upper and lower case are the same.
    """

    labels: tuple[str, ...] = (LEFT, RIGHT)
    own: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        wrong = [label for label in self.labels if not LABEL.fullmatch(label) or label == "background"]
        if wrong or not self.labels or len(set(self.labels)) < len(self.labels):
            raise InputError(
                f"--labels: found {', '.join(self.labels) or 'none'}, expected different names of letters, digits and "
                "underscores, without background"
            )
        if IGNORE in self.labels[:-1]:
            raise InputError(
                f"--labels: found {IGNORE} before {self.labels[-1]}, expected it last: its voxels are not learnt"
            )
        for label in self.own:
            if label not in self.labels:
                raise InputError(
                    f"--names: found the label {label!r}, expected one of --labels: {', '.join(self.labels)}"
                )
        for label in self.labels:
            if label not in LABEL_OF.values() and not self.own.get(label):
                raise InputError(f"--labels: no name is known for {label!r}, expected a list of them in --names")
        owners: dict[str, str] = {}
        for label, names in self.own.items():
            for name in names:
                if owners.setdefault(_folded(name), label) != label:
                    raise InputError(f"--names: found {name!r} under {owners[_folded(name)]} and {label}, expected one")

    def meaning(self, name: str) -> Meaning:
        """What a name means."""
        for label, names in self.own.items():
            if _folded(name) in map(_folded, names):
                return Meaning(label, own=True, gland=True)
        found = parotid_meaning(name)
        if found.label and found.label not in self.labels:
            return Meaning(reason=f"{found.label} is not among the labels", gland=True)
        return found


def parotid_meaning(name: str) -> Meaning:
    """What a name means by the rules: a left or right parotid gland, or neither."""
    found = words(name)
    both = [word for word in found if word in BOTH]
    if not is_parotid(name) and not any(word.startswith("parotid") for word in both):
        return Meaning(reason="its name means none of the labels", gland="parot" in " ".join(found))
    sides = side_words(name)
    more = [word for word in found if word not in PAROTID_GLAND | FILLERS | BOTH | sides.keys()]
    if more:
        return Meaning(reason=f"its name says more than gland and side: {' '.join(more)}", gland=True)
    if both or len(set(sides.values())) > 1:
        return Meaning(reason="its name means both sides", gland=True)
    if not sides:
        return Meaning(reason="its name tells no side", gland=True)
    return Meaning(LABEL_OF[side_of(name)], gland=True)


def read_names(path: Path) -> dict[str, tuple[str, ...]]:
    """Read a user's table: label = ["name", ...].

    Raises:
        InputError: if it is not readable, no TOML, or of another form.
    """
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"--names: {path}: cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise InputError(f"--names: {path}: not TOML: {error}") from error
    for label, names in table.items():
        if not isinstance(names, list) or not names or not all(isinstance(name, str) and name for name in names):
            raise InputError(f'--names: {path}: {label}: found {names!r}, expected a list of names: ["name", ...]')
    return {label: tuple(names) for label, names in table.items()}


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name).strip().casefold()
