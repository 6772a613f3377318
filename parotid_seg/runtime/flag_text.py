"""Flags in English, and how grave each is: the only place that does either.

Decisions are made by `FlagCode`. The sentences here are read by people only, and a test proves that: it rewords all of
them and compares every decision.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from parotid_seg.flags import Flag, FlagCode
from parotid_seg.scan.labels import plain_name


class FlagText(NamedTuple):
    """Severity of a code (16: the mask is likely to be wrong; 1: good to know), and its sentence.

    The sentence may name `structure`, `value` and `detail`, see `Flag`.
    """

    severity: int
    sentence: str


TEXTS: dict[FlagCode, FlagText] = {
    FlagCode.SIDES_SWAPPED: FlagText(
        16,
        "left and right look swapped ({structure} lies {value:.0f} mm to the patient's right of the other gland)",
    ),
    FlagCode.ONLY_GLAND_ON_OTHER_SIDE: FlagText(
        16,
        "left and right look swapped ({structure}, the only gland, lies {value:.0f} mm beyond the middle)",
    ),
    FlagCode.OLD_VERSION: FlagText(16, "{detail} (noticed by an older version; run it again)"),
    FlagCode.STRUCTURE_MISSING: FlagText(8, "{structure} missing ({value:.1f} ml)"),
    FlagCode.NOTHING_FOUND: FlagText(8, "no {structure} found"),
    FlagCode.ORIENTATION_UNKNOWN: FlagText(
        8, "no orientation in the header (sform and qform codes are 0): left and right may be swapped"
    ),
    FlagCode.HU_SHIFTED: FlagText(
        4, "soft tissue lies near {value:.0f} HU, expected about 40: not calibrated, or a cone-beam CT?"
    ),
    FlagCode.HU_SPREAD: FlagText(
        4, "intensities spread {value:.1f} times as wide as those of a CT: very noisy, or not calibrated?"
    ),
    FlagCode.HU_UNEVEN: FlagText(
        4, "soft tissue differs by {value:.0f} HU between parts of the body: shading, as of a cone-beam CT?"
    ),
    FlagCode.HU_INVERTED: FlagText(4, "fat looks brighter than soft tissue: inverted intensities, or shading?"),
    FlagCode.HU_UNKNOWN: FlagText(4, "neither fat nor air in the scan shows whether it is in HU"),
    FlagCode.PADDING_IN_BODY: FlagText(
        2,
        "{value:.2%} of the voxels have the padding value {detail} (as stored) within the image, as tissue has; they "
        "were taken as image",
    ),
    FlagCode.HU_CLIPPED: FlagText(2, "intensities are clipped at {detail} HU"),
    FlagCode.UNCERTAIN: FlagText(
        4, "{structure} uncertain (the prediction on the mirrored scan agrees at a DSC of {value:.2f} only)"
    ),
    FlagCode.CUT_BY_SCAN_END: FlagText(4, "{structure} cut by the end of the scan"),
    FlagCode.CUT_IN_PLANE: FlagText(4, "{structure} cut by the edge of the field of view"),
    FlagCode.UNUSUAL_VOLUME: FlagText(3, "{structure} of unusual volume ({value:.1f} ml)"),
    FlagCode.SIDES_DIFFER: FlagText(2, "sides differ (the larger gland is {value:.2f} times the smaller)"),
    FlagCode.SFORM_QFORM_DISAGREE: FlagText(
        1, "sform and qform disagree by up to {value:.1f} mm; the sform was used, as NIfTI-1 gives it precedence"
    ),
    FlagCode.SFORM_UNUSABLE: FlagText(1, "the sform is singular or not finite; the qform was used instead"),
    FlagCode.QFORM_UNUSABLE: FlagText(1, "the qform is damaged and was not used"),
    FlagCode.OBLIQUE: FlagText(1, "oblique by {value:.0f} degrees: slices were taken along the nearest patient axes"),
    FlagCode.SHEARED: FlagText(1, "sheared voxel axes (gantry tilt, {value:.0f} degrees)"),
    FlagCode.PART_OF_SERIES: FlagText(1, "one of several volumes of its series ({detail})"),
    FlagCode.CHANNEL_PARTLY_COVERED: FlagText(
        1, "a sequence covers {value:.0%} of the first one ({detail}); what it lacks counts as air"
    ),
    FlagCode.LOSSY_COMPRESSION: FlagText(1, "compressed with loss"),
    FlagCode.PADDING: FlagText(1, "{value:.1%} of the voxels are padding and count as {detail}"),
}


def severity_of(code: FlagCode) -> int:
    """How grave a flag is, 1 to 16."""
    return TEXTS[code].severity


def sentence(flag: Flag) -> str:
    """A flag for people, in one line."""
    return TEXTS[flag.code].sentence.format(
        structure=plain_name(flag.structure), value=0.0 if flag.value is None else flag.value, detail=flag.detail
    )


def sentences(flags: Iterable[Flag]) -> str:
    """Flags for people, in one line."""
    return "; ".join(map(sentence, flags))
