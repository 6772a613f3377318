"""The sequence of an MR series: T1, T2, STIR or another; and the sequence that a model's channel name means.

Pulse sequence and times decide. Descriptions are free text: they are used only where those do not decide, and for
properties that no other attribute states. They are never passed on; the result is one of a few fixed words.
"""

from __future__ import annotations

import math
import re

from parotid_seg.dicom.mr.acquisition import Acquisition, acquisition_of
from parotid_seg.dicom.read.series import Series
from parotid_seg.scan.intensity import is_ct

ANY = "MR"
"""A channel that takes any MR series."""
AGENT, FAT_SUPPRESSED = "C", " FS"
"""Suffixes of a sequence, as in T1C and T2 FS."""
UNCLEAR = "unclear"

FAT_NULL_MS = (120.0, 300.0)
"""Inversion times in ms that null fat at 1.5 to 3 T: at most ln 2 times its T1, less with short repetition times."""
FLUID_NULL_MS = 1500.0
"""Inversion times in ms from which on fluid is suppressed."""
SHORT_TR_MS, LONG_TR_MS = 1000.0, 1500.0
SHORT_TE_MS, LONG_TE_MS = 40.0, 60.0
"""Limits of TR and TE in ms for spin echoes: T1 if both are short, T2 if both are long, PD if only TR is long; values
in between decide nothing."""
GRADIENT_TR_MS, GRADIENT_TE_MS, STAR_TE_MS = 400.0, 8.0, 12.0
"""Limits in ms for gradient echoes: T1 up to these TR and TE if spoiled or prepared; T2* from the last TE on."""

BY_CONTRAST = {
    "T1": "T1",
    "T2": "T2",
    "STIR": "STIR",
    "PROTON_DENSITY": "PD",
    "FLUID_ATTENUATED": "FLAIR",
    "T2_STAR": "T2*",
    "DIFFUSION": "diffusion",
    "PERFUSION": "perfusion",
    "TOF": "angiography",
    "FLOW_ENCODED": "angiography",
    "TAGGING": "tagging",
}
"""Sequences by AcquisitionContrast (DICOM PS3.3, C.8.13.3.1.2)."""
BY_TYPE = {
    "ADC": "ADC",
    "DIFFUSION": "diffusion",
    "PERFUSION": "perfusion",
    "SUBTRACTION": "subtraction",
    "SUBTRACT": "subtraction",
    "SUB": "subtraction",
    "OPP_PHASE": "opposed phase",
    "OUT_PHASE": "opposed phase",
    "OUT_OF_PHASE": "opposed phase",
    "OP": "opposed phase",
    "FAT": "fat only",
    "F": "fat only",
    "PHASE": "phase",
    "P": "phase",
    "IMAGINARY": "phase",
    "I": "phase",
    "REAL": "phase",
    "R": "phase",
}
"""Values of ImageType or ComplexImageComponent of images that never become a channel, such as maps."""
MAPS = ("MAP", "FRACTION")
"""Endings of such values, for images whose values are not a signal."""
WATER = frozenset(("WATER", "W"))
"""Such values of Dixon images that count as fat-suppressed (water images)."""

BY_WORD = {
    "localizer": {"LOC", "LOCALIZER", "LOCALISER", "SCOUT", "SURVEY"},
    "angiography": {"TOF", "MRA", "ANGIO"},
    "subtraction": {"SUB", "SUBTRACTION"},
}
"""Kinds by a word of the description, which overrides the attributes, because no attribute need state them."""
CALLED = {f"{name}{ending}": name for name in ("T1", "T2", "PD") for ending in ("", "W", "WI")} | {
    "T1C": "T1",
    "T1CE": "T1",
    "T2*": "T2*",
    "STIR": "STIR",
    "FLAIR": "FLAIR",
}
"""Sequences by a word of the description."""
AGENT_WORDS = {"T1C", "T1CE", "CE", "GD", "GAD", "KM", "POST", "CONTRAST"}
FAT_WORDS = {"FS", "FATSAT", "SPAIR", "SPIR", "CHESS"}
SPELLINGS = ((r"\+ ?C\b|\bC ?\+", " CE "), (r"FAT.?SAT", "FATSAT"))
"""Patterns of contrast agents in descriptions."""

CHANNEL = re.compile(
    r"(?:mri?)?(?:t2(?=stir|flair))?(t1|t2|pd|protondensity|stir|flair)(?:w|weighted)?"
    r"(?:(c|ce|gd|gad|gadolinium|contrast|post|km)|(fs|fatsat|fatsuppressed)){0,2}"
)
"""A channel's name in small letters without separators: sequence, contrast agent, fat suppression."""


def sequence_named(channel: str) -> str | None:
    """The sequence that a model's channel name means, in any case and with any separators; None if it means none.

    T1, T2, PD, STIR and FLAIR; T1C with a contrast agent (T1ce, T1-Gd, T1+C, ...); with " FS" if fat is suppressed
    (T2_FS, T1C fatsat, ...); CT; and MR for any sequence.
    """
    if is_ct(channel):
        return "CT"
    bare = re.sub(r"[\s_+./()-]", "", channel.casefold())
    if bare in ("mr", "mri"):
        return ANY
    match = CHANNEL.fullmatch(bare)
    if match is None:
        return None
    name = "PD" if match[1] == "protondensity" else match[1].upper()
    if (match[2] and name != "T1") or (match[3] and name == "STIR"):
        return None
    return name + AGENT * bool(match[2]) + FAT_SUPPRESSED * bool(match[3])


def sequence_of(series: Series) -> str:
    """The sequence of a series, as named by `sequence_named`; else the kind of its images, or "unclear".

    In-phase images of a Dixon sequence count as without fat suppression, water images as fat-suppressed.

    Raises:
        ScanError: if its first file cannot be read or has changed.
    """
    if series.modality != "MR":
        return series.modality
    if series.part.startswith("plane-"):  # one series in several planes
        return "localizer"
    return name_of(acquisition_of(series.slices[0]))


def name_of(acquisition: Acquisition) -> str:
    """The sequence of an acquisition, as `sequence_of`."""
    words = _words(acquisition.described)
    name = (
        _unweighted(acquisition, words)
        or _by_inversion(acquisition)
        or BY_CONTRAST.get(acquisition.contrast)
        or _by_times(acquisition)
    )
    name = name or _by_words(words)
    if name not in ("T1", "T2", "PD", "FLAIR"):
        return name
    agent = name == "T1" and (acquisition.agent or bool(words & AGENT_WORDS))
    fat = acquisition.fat_suppressed or bool(acquisition.types & WATER) or bool(words & FAT_WORDS)
    return name + AGENT * agent + FAT_SUPPRESSED * fat


def _words(text: str) -> frozenset[str]:
    """The words of a description in capitals."""
    text = text.upper()
    for pattern, spelling in SPELLINGS:
        text = re.sub(pattern, spelling, text)
    return frozenset(re.findall(r"[A-Z0-9*]+", text))


def _unweighted(acquisition: Acquisition, words: frozenset[str]) -> str:
    """The kind of an image that shows no weighted anatomy, such as a map; empty for others."""
    for word, kind in BY_TYPE.items():
        if word in acquisition.types:
            return kind
    if any(word.endswith(MAPS) for word in acquisition.types):
        return "map"
    if acquisition.diffusion:
        return "diffusion"
    if acquisition.flow:
        return "angiography"
    if "EP" in acquisition.pulses:
        return "echo planar"
    return next((kind for kind, marks in BY_WORD.items() if words & marks), "")


def _by_inversion(acquisition: Acquisition) -> str:
    """The sequence of an inversion recovery; empty if it is not one, or its times do not decide."""
    inversion, echo = acquisition.inversion_ms or 0.0, acquisition.echo_ms or math.nan
    if "IR" not in acquisition.pulses or not inversion:
        return ""
    if FAT_NULL_MS[0] <= inversion <= FAT_NULL_MS[1]:
        return "STIR"
    if inversion >= FLUID_NULL_MS:
        return "FLAIR" if echo >= LONG_TE_MS else ""
    return "T1" if inversion > FAT_NULL_MS[1] and echo <= SHORT_TE_MS else ""


def _by_times(acquisition: Acquisition) -> str:
    """The sequence of a spin or gradient echo without inversion; empty where the times do not decide."""
    repetition, echo = acquisition.repetition_ms or math.nan, acquisition.echo_ms or math.nan
    kind = acquisition.pulses & {"SE", "GR", "IR"}
    if kind == {"SE"}:
        if repetition <= SHORT_TR_MS and echo <= SHORT_TE_MS:
            return "T1"
        if repetition >= LONG_TR_MS:
            return "T2" if echo >= LONG_TE_MS else "PD" if echo <= SHORT_TE_MS else ""
    if kind == {"GR"}:
        if echo >= STAR_TE_MS:
            return "T2*"
        if acquisition.pulses & {"SP", "MP"} and repetition <= GRADIENT_TR_MS and echo <= GRADIENT_TE_MS:
            return "T1"
    return ""


def _by_words(words: frozenset[str]) -> str:
    """The only sequence that a description names; unclear if it names none or several."""
    sequences = {CALLED[word] for word in words if word in CALLED}
    if sequences & {"STIR", "FLAIR"}:
        sequences -= {"T2"}  # as in "T2 FLAIR"
    return sequences.pop() if len(sequences) == 1 else UNCLEAR
