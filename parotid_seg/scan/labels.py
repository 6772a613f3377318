"""Interprets names of structures: words, side, and whether it is a parotid gland.

Only this module decides the side of a name, for training (mirrored scans), clean-up, flags, reports, `evaluate`,
`dataset` and DICOM codes. The words are English, German, Dutch, French, Italian, Spanish, Portuguese and Latin.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache

from parotid_seg.errors import InputError

LEFT, RIGHT = "left", "right"

PAROTID_ML = (8.0, 60.0)
"""Usual volumes of parotid glands in ml; 99 % of the contoured training and validation glands are within."""
LARGEST_RATIO = 1.6
"""Largest ratio of the larger to the smaller parotid gland without a flag. In 187 of the 191 contoured training and
validation patients it is smaller; their median is 1.12."""


def _table(words: str) -> frozenset[str]:
    return frozenset(words.split())


PAROTID_GLAND = _table("parotid parot parotis parotide parotida parotidea ohrspeicheldruse ohrspeicheldruese")
FILLERS = _table("gland gl glnd side glandula glande ghiandola")
"""Words that add nothing to the name of a gland."""
SIDES = {
    LEFT: _table(
        "l lt lft left li lks links linke linker linkes linken gauche sx sin sinistra sinistro sinister sinistrum "
        "izq izda izdo izquierda izquierdo esq esquerda esquerdo"
    ),
    RIGHT: _table(
        "r rt rgt right re rts rechts rechte rechter rechtes rechten droite droit dx dex dextra dexter dextrum destra "
        "destro der dcha dcho derecha derecho dir direita direito"
    ),
}
AT_AN_END = _table("sin der dir")
"""Words that mean a side only as the first or last word of a name; elsewhere they have another meaning ("Boden der
Mundhöhle")."""
LETTERS = {"parotide": {"g": LEFT, "d": RIGHT}, "parotida": {"i": LEFT, "e": LEFT, "d": RIGHT}}
"""Letters that mean a side only next to the gland's name in the same language."""
GLUED = (*SIDES[LEFT] - {"li", "sin"}, *SIDES[RIGHT] - {"re", "der", "dir"})
"""Sides that may be joined with the parotid gland in one word: "lparotid"."""

WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|\d+|[^\W\d_A-Za-z]+|[^\w\s.,()-]")
"""Words in any style: Parotid_L, ParotidLt, PAROTID LT. Signs such as "+" and "~" are words."""
PAIRED_LETTERS = ({"l", "r"}, {"g", "d"}, {"s", "d"}, {"i", "d"}, {"e", "d"})
"""One-letter words for left and right in the languages above, by which two names may differ."""


def words(name: str) -> tuple[str, ...]:
    """The words of a name in order, in lower case and without accents; "lparotid" is two words."""
    return tuple(word for word, _ in _tokens(name))


def side_words(name: str) -> dict[str, str]:
    """The words of a name that mean a side, with "left" or "right" for each."""
    tokens = _tokens(name)
    letters = {letter: side for word, _ in tokens for letter, side in LETTERS.get(word, {}).items()}
    sides = {}
    for index, (word, numbered) in enumerate(tokens):
        side = letters.get(word) or next((side for side, table in SIDES.items() if word in table), "")
        in_the_middle = word in AT_AN_END and 0 < index < len(tokens) - 1
        if side and not in_the_middle and not (numbered and len(word) == 1):
            sides[word] = side
    return sides


def side_of(name: str) -> str:
    """The side in a structure's name in any language of `SIDES`: "left", "right", or "" for none or both.

    A letter before a number is not a side: "vertebra_L1".
    """
    sides = set(side_words(name).values())
    return sides.pop() if len(sides) == 1 else ""


def from_the_right(names: Iterable[str]) -> list[str]:
    """Names of structures as pages and tables show them: of each organ the patient's right one before the left one.

    This is the order of a radiological display. Files for programs have the order of the labels.
    """
    order = list(names)
    places: dict[frozenset[str], int] = {}
    for place, name in enumerate(order):
        places.setdefault(structure_words(name), place)
    return sorted(order, key=lambda name: (places[structure_words(name)], side_of(name) == LEFT))


def structure_words(name: str) -> frozenset[str]:
    """The words of a structure's name without its side; all names of the parotid gland become the same word.

    Two names mean the same structure if these words and `side_of` are the same.
    """
    sides = side_words(name)
    name_words = frozenset("parotid" if word in PAROTID_GLAND else word for word in words(name) if word not in sides)
    return name_words - FILLERS or name_words


def plain_name(name: str) -> str:
    """A structure's name in plain words: parotid_left and LeftParotid are both "left parotid"."""
    name_words = [
        word.lower() if word.istitle() else word for word in re.sub(r"(?<=[a-z])(?=[A-Z])|_+", " ", name).split()
    ]
    return " ".join(sorted(name_words, key=lambda word: word not in {"left", "right"}))


def is_parotid(name: str) -> bool:
    """Whether a name means a parotid gland, and not a part of it, a tumour or another structure there."""
    return structure_words(name) == {"parotid"}


def mirrored_labels(names: Sequence[str]) -> tuple[int, ...]:
    """For each label the one that it becomes in a mirrored scan: names that differ only in their side are swapped."""
    parts = [_paired_by(name) for name in names]
    opposite = {LEFT: RIGHT, RIGHT: LEFT}
    return tuple(
        parts.index(partner) if side and (partner := (rest, opposite[side])) in parts else value
        for value, (rest, side) in enumerate(parts)
    )


def is_usual_volume(name: str, volume_ml: float) -> bool:
    """Whether a volume is usual for a structure; True for structures other than parotid glands."""
    return not is_parotid(name) or PAROTID_ML[0] <= volume_ml <= PAROTID_ML[1]


def ratio_of_sides(volumes_ml: Mapping[str, float]) -> float | None:
    """Volume of the larger parotid gland over that of the smaller; None unless there are one left and one right."""
    sides = {
        side_of(name): size for name, size in volumes_ml.items() if is_parotid(name) and side_of(name) and size > 0
    }
    return max(sides.values()) / min(sides.values()) if len(sides) == 2 else None


def check_pairs(names: Sequence[str]) -> None:
    """Check that every label with a side, or with what looks like one, is swapped in a mirrored scan.

    Args:
        names: of all labels; their values do not matter.

    Raises:
        InputError: if a side has no counterpart, or more than one, or is written in an unknown way.
    """
    way_out = (
        "expected pairs such as parotid_left and parotid_right, which change places in mirrored scans, or "
        "mirror_probability = 0 in the table [augment] of --config"
    )
    parts = [_paired_by(name) for name in names]
    twice = [name for name, each in zip(names, parts, strict=True) if each[1] and parts.count(each) > 1]
    if twice:
        raise InputError(f"labels {', '.join(twice)} are the same side of the same structure; {way_out}")
    partners = mirrored_labels(names)
    alone = [
        f"{name} ({side})"
        for value, (name, (_, side)) in enumerate(zip(names, parts, strict=True))
        if side and partners[value] == value
    ]
    if alone:
        raise InputError(f"found no counterpart of the same name on the other side for {', '.join(alone)}; {way_out}")
    if alike := _only_a_letter_apart([name for name in names if not side_of(name)]):
        raise InputError(f"labels {' and '.join(alike)} look like left and right of one structure; {way_out}")


def _paired_by(name: str) -> tuple[tuple[str, ...], str]:
    """The common part of two labels that are swapped, and the side. Different names of an organ do not count as equal,
    because both labels of a pair have the same style."""
    sides = side_words(name)
    return tuple(sorted(word for word in words(name) if word not in sides)), side_of(name)


def _only_a_letter_apart(names: Sequence[str]) -> tuple[str, ...]:
    """Two names that are equal except for a one-letter word (`PAIRED_LETTERS`), or for l and r at the edge of a word
    ("SMGL", "leye", "rib_L1"), if there are any."""
    variants: dict[tuple[str, str], dict[str, str]] = {}
    for name in names:
        text = without_accents(name).lower()
        for match in re.finditer(r"(?<![a-z])[a-z](?![a-z])|(?<![a-z])[lr]|[lr](?![a-z])", text):
            variants.setdefault((text[: match.start()], text[match.end() :]), {})[match.group()] = name
    return next((tuple(pair.values()) for pair in variants.values() if set(pair) in PAIRED_LETTERS), ())


@lru_cache(1000)
def _tokens(name: str) -> tuple[tuple[str, bool], ...]:
    """The words of a name, each with whether a number follows directly."""
    plain = without_accents(name)
    return tuple(
        (word, plain[match.end() : match.end() + 1].isdecimal())
        for match in WORD.finditer(plain)
        for word in _apart(match.group().lower())
    )


def _apart(word: str) -> tuple[str, ...]:
    """Split gland and side that are written as one word."""
    if word not in PAROTID_GLAND:
        for gland in sorted(PAROTID_GLAND, key=len, reverse=True):
            for side in GLUED:
                if word in (side + gland, gland + side):
                    return gland, side
    return (word,)


def without_accents(name: str) -> str:
    """A name with plain letters in place of those with accents."""
    plain = "".join(sign for sign in unicodedata.normalize("NFKD", name) if not unicodedata.combining(sign))
    return unicodedata.normalize("NFC", plain)
