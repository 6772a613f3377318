"""Maps the name of a contoured structure (ROI) to one of the labels, or to none with a reason.

A name means a parotid gland if it consists of known words only: the gland and one side. Names of AAPM TG-263
("Parotid_L") are among them. Any further word makes it another structure: a margin ("Parotid_L_PRV"), the gland without
a target ("Parotid_L-PTV"), a part ("Parotid_Deep_L"), a copy ("Parotid_L_1").

A name that is similar to one of these (a typing error, an abbreviation, another character set) maps to no label, but is
reported for review.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from difflib import SequenceMatcher
from pathlib import Path

from parotid_seg.contract import BACKGROUND, IGNORE
from parotid_seg.dataset.dataset_options import LEFT, RIGHT
from parotid_seg.errors import InputError, OptionError
from parotid_seg.records import read_toml, shown
from parotid_seg.scan.labels import (
    FILLERS,
    GLUED,
    LETTERS,
    PAROTID_GLAND,
    SIDES,
    WORD,
    side_of,
    side_words,
    without_accents,
    words,
)

LABEL_OF = {"left": LEFT, "right": RIGHT}
BOTH = frozenset(["parotids", "parotides", "parotiden", "parotidas", "both", "bilateral", "bilat"])

ABBREVIATIONS = frozenset(["par", "paro", "prtd", "ohrsp", "ohrspeichel"])
"""Words that may stand for a gland, with a side."""
ELSEWHERE = (
    *("腮腺", "耳下腺", "귀밑샘", "이하선", "околоушн", "παρωτιδ", "przyuszn", "priusni", "fultomirigy"),
    *("oorspeekselklier", "oronspottkort", "korvasylki"),
)
"""The gland in languages whose sides are not known here."""
OTHER_ORGAN = ("carot", "karot")
"""Words that differ from the gland's in one letter only, and mean an artery."""
ALIKE = 0.82
"""Least similarity (`difflib`) of a word to the gland's: one letter added, missing or wrong, or two exchanged."""
ALIKE_SIDE = 0.79
"""The same for a side, whose words are shorter."""
SHORTEST_TYPO, SHORTEST_SIDE_TYPO = 5, 4
"""Fewest letters: shorter words are similar to too many others."""
LABEL = re.compile(r"[A-Za-z]\w*", re.ASCII)


@dataclass(frozen=True)
class Meaning:
    """The meaning of a name.

    Attributes:
        label: one of the labels; empty if it means none.
        reason: why it means none, without a word of the name, which may contain the patient's.
        own: whether the meaning comes from the user's table.
        gland: whether the name mentions a parotid gland at all.
        near: whether it is similar to the name of a gland with its side.
    """

    label: str = ""
    reason: str = ""
    own: bool = False
    gland: bool = False
    near: bool = False


@dataclass(frozen=True)
class RoiNames:
    """The labels to fill, in the order of their values from 1, and which names mean them.

    Attributes:
        labels: names of labels, without background.
        own: the user's names by label, which override the rules above; case is ignored.
    """

    labels: tuple[str, ...] = (LEFT, RIGHT)
    own: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        wrong = [label for label in self.labels if not LABEL.fullmatch(label) or label.casefold() == BACKGROUND]
        if wrong or not self.labels or len(set(self.labels)) < len(self.labels):
            raise OptionError(
                f"--labels: found {', '.join(self.labels) or 'none'}, expected different names of letters, digits and "
                "underscores, without background"
            )
        if IGNORE in map(str.casefold, self.labels[:-1]):
            raise OptionError(
                f"--labels: found {IGNORE} before {self.labels[-1]}, expected it last: its voxels are not learnt"
            )
        for label in self.own:
            if label not in self.labels:
                raise OptionError(
                    f"--names: found the label {label!r}, expected one of --labels: {', '.join(self.labels)}"
                )
        for label in self.labels:
            if label not in LABEL_OF.values() and not self.own.get(label):
                raise OptionError(f"--labels: no name is known for {label!r}, expected a list of them in --names")
        owners: dict[str, str] = {}
        for label, names in self.own.items():
            for name in names:
                if owners.setdefault(_folded(name), label) != label:
                    raise InputError(f"--names: found {name!r} under {owners[_folded(name)]} and {label}, expected one")

    @property
    def structures(self) -> tuple[str, ...]:
        """The labels without `ignore`, which a scan need not have."""
        return tuple(label for label in self.labels if label.casefold() != IGNORE)

    def meaning(self, name: str, readings: Sequence[str] = ()) -> Meaning:
        """The meaning of a name.

        Args:
            name: as in the file.
            readings: the name decoded in other character sets.
        """
        for label, names in self.own.items():
            if _folded(name) in map(_folded, names):
                return Meaning(label, own=True, gland=True)
        by_rules = parotid_meaning(name)
        if by_rules.label in self.labels:
            return by_rules
        if by_rules.label:
            return Meaning(reason=f"{by_rules.label} is not among the labels", gland=True)
        likely_label = next(filter(None, (parotid_meaning(reading).label for reading in readings)), "")
        near = likely_label or next(filter(None, map(resembled, (name, *readings))), "")
        if near:
            how = "in another character set its name means" if likely_label else "its name looks like"
            return Meaning(reason=f"{how} {near} (--names can say what it is)", gland=True, near=True)
        return replace(by_rules, gland=by_rules.gland or any(map(_speaks_of_gland, (name, *readings))))


def parotid_meaning(name: str) -> Meaning:
    """The meaning of a name by the rules: a left or right parotid gland, or neither."""
    name_words = words(name)
    both = [word for word in name_words if word in BOTH]
    if PAROTID_GLAND.isdisjoint(name_words) and not any(word.startswith("parotid") for word in both):
        return Meaning(reason="its name means none of the labels", gland="parot" in " ".join(name_words))
    sides = side_words(name)
    if any(word not in PAROTID_GLAND | FILLERS | BOTH | sides.keys() for word in name_words):
        return Meaning(reason="its name says more than gland and side", gland=True)
    if both or len(set(sides.values())) > 1:
        return Meaning(reason="its name means both sides", gland=True)
    if not sides:
        return Meaning(reason="its name has no side", gland=True)
    return Meaning(LABEL_OF[side_of(name)], gland=True)


def resembled(name: str) -> str:
    """The label whose name is similar to a name; empty if the name means a label, or is similar to none.

    Each word must be the gland, one side, or a filler, or be similar to one of these. Words that a missing letter has
    split are joined.
    """
    words = [word.lower() for word in WORD.findall(without_accents(name))]
    return next(filter(None, map(_resembled_by, _put_together(words))), "")


def _put_together(words: list[str]) -> Iterator[list[str]]:
    """The words unchanged, then with two or three of them joined, then with a side split off a word."""
    yield words
    for length in (3, 2):
        for start in range(len(words) - length + 1):
            yield [*words[:start], "".join(words[start : start + length]), *words[start + length :]]
    for place, word in enumerate(words):
        for side in GLUED:
            for rest in {word.removeprefix(side), word.removesuffix(side)} - {word}:
                yield [*words[:place], side, rest, *words[place + 1 :]]


def _resembled_by(words: list[str]) -> str:
    glands = {word: gland for word in words if (gland := word if word in ABBREVIATIONS else _gland_like(word))}
    others = [word for word in words if word not in glands and word not in FILLERS]
    if len(glands) != 1:
        return ""
    (gland,) = glands.values()
    letters = LETTERS.get(gland, {})
    sides = {letters.get(word) or _side_like(word) for word in others}
    return LABEL_OF.get(sides.pop(), "") if len(sides) == 1 else ""


def _gland_like(word: str) -> str:
    """The gland's word that a word equals or resembles; empty if there is none, or if something is added to it."""
    if word in PAROTID_GLAND:
        return word
    longer = any(len(gland) > SHORTEST_TYPO and gland in word for gland in PAROTID_GLAND)
    if len(word) < SHORTEST_TYPO or longer or any(part in word for part in OTHER_ORGAN):
        return ""
    ratio, gland = max((SequenceMatcher(None, word, gland).ratio(), gland) for gland in PAROTID_GLAND)
    return gland if ratio >= ALIKE else ""


def _side_like(word: str) -> str:
    """The side that a word equals or resembles; empty if there is none."""
    sides = [side for side, table in SIDES.items() if word in table]
    if not sides and len(word) >= SHORTEST_SIDE_TYPO:
        alike = {
            side: max(SequenceMatcher(None, word, known).ratio() for known in table) for side, table in SIDES.items()
        }
        sides = [side for side, ratio in alike.items() if ratio >= ALIKE_SIDE and ratio == max(alike.values())]
    return sides[0] if len(sides) == 1 else ""


def _speaks_of_gland(name: str) -> bool:
    plain = without_accents(name).lower()
    words = [word.lower() for word in WORD.findall(without_accents(name))]
    joined = plain.replace(" ", "")
    return any(part in joined for part in ("parot", *map(without_accents, ELSEWHERE))) or any(map(_gland_like, words))


def read_names(path: Path) -> dict[str, tuple[str, ...]]:
    """Read a user's table: label = ["name", ...].

    Raises:
        InputError: if it is not readable, not TOML, or of another form.
    """
    table = read_toml(path, "--names")
    for label, names in table.items():
        if not isinstance(names, list) or not names or not all(isinstance(name, str) and name for name in names):
            raise InputError(
                f'--names: {path}: {shown(label)[1:-1]}: found {shown(names)}, expected a list of names: ["name", ...]'
            )
    return {label: tuple(names) for label, names in table.items()}


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name).strip().casefold()
