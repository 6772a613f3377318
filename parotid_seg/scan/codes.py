"""Structures in DICOM: names (TG-263), colours, and codes that are independent of a language.

Codes are SNOMED CT ("SCT") and DICOM's own ("DCM") as DICOM's CID lists have them: CID 7150 and 7151 for category and
structure, CID 244 for the side, CID 7162 for algorithms, CID 7005 for equipment.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from parotid_seg.errors import OptionError
from parotid_seg.scan.labels import plain_name, side_of, side_words, structure_words

COLOURS = ((255, 176, 0), (64, 196, 255), (120, 220, 120), (255, 120, 180), (200, 160, 255))
"""Red, green and blue by label, starting with label 1; further labels start over."""
LONGEST_LINE = 64
"""Most characters of a LO value."""


class Coded(NamedTuple):
    """A code: its value, its scheme, and its meaning."""

    value: str
    scheme: str
    meaning: str


ANATOMICAL_STRUCTURE = Coded("91723000", "SCT", "Anatomical Structure")
ORGAN = Coded("91772007", "SCT", "Organ")
LEFT = Coded("7771000", "SCT", "Left")
RIGHT = Coded("24028007", "SCT", "Right")
LEARNING = Coded("123110", "DCM", "Artificial Intelligence")
MODIFYING = Coded("109103", "DCM", "Modifying Equipment")
SIDES = {"left": ("_L", LEFT), "right": ("_R", RIGHT)}

ORGANS = {
    frozenset({"parotid"}): ("Parotid", Coded("45289007", "SCT", "Parotid gland")),
    frozenset({"submandibular"}): ("Glnd_Submand", Coded("54019009", "SCT", "Submandibular gland")),
    frozenset({"thyroid"}): ("Glnd_Thyroid", Coded("69748006", "SCT", "Thyroid")),
    frozenset({"brainstem"}): ("Brainstem", Coded("119238007", "SCT", "Brain Stem")),
    frozenset({"spinal", "cord"}): ("SpinalCord", Coded("2748008", "SCT", "Spinal cord")),
    frozenset({"mandible"}): ("Bone_Mandible", Coded("91609006", "SCT", "Mandible")),
    frozenset({"esophagus"}): ("Esophagus", Coded("32849002", "SCT", "Esophagus")),
    frozenset({"larynx"}): ("Larynx", Coded("4596009", "SCT", "Larynx")),
}
"""Name and code of organs, by `structure_words` of a label."""


@dataclass(frozen=True)
class Structure:
    """A label in DICOM.

    Attributes:
        value: in the mask.
        label: its name in the model.
        name: TG-263 name, such as Parotid_L, if the structure is known; else the label without characters that a LO
            value may not contain. Unique within a mask.
        colour: red, green, blue.
        known: whether the label's words name an organ.
        code: of the structure; "Organ" for an unknown one.
        side: code of the side, if the label has one.
    """

    value: int
    label: str
    name: str
    colour: tuple[int, int, int]
    known: bool
    code: Coded
    side: Coded | None


@dataclass(frozen=True)
class Rois:
    """A user's choice of the structures that are written, and of their names and colours.

    Attributes:
        only: labels of the structures; empty for all.
        names: by label, instead of the TG-263 name.
        colours: red, green, blue by label.
    """

    only: tuple[str, ...] = ()
    names: Mapping[str, str] = field(default_factory=dict)
    colours: Mapping[str, tuple[int, int, int]] = field(default_factory=dict)

    def written(self, labels: Sequence[str]) -> tuple[str, ...]:
        """The labels that are written, of all labels of a model, background first."""
        return tuple(label for label in labels[1:] if not self.only or label in self.only)

    def shown_name(self, label: str) -> str:
        """A label's name for readers: the user's, else plain words."""
        return self.names.get(label) or plain_name(label)

    def colour_of(self, label: str, value: int) -> tuple[int, int, int]:
        """Red, green and blue of a label: the user's, else those of its value."""
        return self.colours.get(label) or COLOURS[(value - 1) % len(COLOURS)]

    def check(self, labels: Sequence[str]) -> None:
        """Check the choice against the labels of a model, background first.

        Raises:
            OptionError: for a label that it does not have, if two structures would have one name, or if a name says
                the other side than its label.
        """
        for option, chosen in (("--only", self.only), ("--roi-name", self.names), ("--roi-colour", self.colours)):
            if unknown := [each for each in chosen if each not in labels[1:]]:
                raise OptionError(f"{option}: found {unknown[0]!r}, expected one of: {', '.join(labels[1:])}")
        for label, name in self.names.items():
            said, side = side_of(name), side_of(label)
            if said and side and said != side:
                raise OptionError(
                    f"--roi-name: found the name {name!r}, which says {said}, for {label}; expected {side}, or no side"
                )
        for each in structures_of(labels, rois=self):
            name = self.names.get(each.label, each.name)
            if each.name != name:
                raise OptionError(f"--roi-name: found the name {name!r} for several structures, expected one for each")


ALL_ROIS = Rois()


def structures_of(labels: Sequence[str], taken: Sequence[str] = (), rois: Rois = ALL_ROIS) -> tuple[Structure, ...]:
    """The structures of a mask.

    Args:
        labels: names by value, background first.
        taken: names that are already in use; a structure that would get one of them is numbered, as Parotid_L_1.
        rois: which of them, and their names and colours.
    """
    used = {_compared(name) for name in taken}
    structures = []
    written = rois.written(labels)
    for value, label in enumerate(labels[1:], start=1):
        if label not in written:
            continue
        suffix, side = SIDES.get(side_of(label), ("", None))
        both = len(set(side_words(label).values())) > 1
        organ = None if both else ORGANS.get(structure_words(label))
        usual = organ[0] + suffix if organ else plain(label)[:LONGEST_LINE].strip() or f"Structure_{value}"
        name = _unique(rois.names.get(label, usual), used)
        used.add(_compared(name))
        colour, code = rois.colour_of(label, value), organ[1] if organ else ORGAN
        structures.append(Structure(value, label, name, colour, organ is not None, code, side))
    return tuple(structures)


def plain(text: str) -> str:
    """Untrusted text for a message or a LO value: on one line, without control characters."""
    return "".join("_" if c == "\\" or (unicodedata.category(c)[0] in "CZ" and c != " ") else c for c in text)


def plain_uid(uid: str) -> str:
    """An untrusted UID for a message; "none" if there is none."""
    return re.sub(r"[^0-9.]", "?", uid)[:64] or "none"


def _unique(name: str, used: set[str]) -> str:
    numbers = (f"{name[: LONGEST_LINE - 5]}_{number}" for number in range(1, len(used) + 1))
    return next(each for each in (name, *numbers) if _compared(each) not in used)


def _compared(name: str) -> str:
    """A name for comparison: many systems ignore case and outer spaces."""
    return name.strip().casefold()
