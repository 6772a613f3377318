"""English sentences and severities of flags, which are defined here only.

Decisions are made by `FlagCode`. The sentences are for readers only; a test verifies this: it rewords all of them and
compares every decision.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

from parotid_seg.flags import Flag, FlagCode
from parotid_seg.scan.labels import plain_name


class FlagText(NamedTuple):
    """Severity of a code (16: the mask is probably wrong; 1: for information), and its sentence.

    The sentence may contain `structure`, `value` and `detail`, see `Flag`.
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
    FlagCode.STRUCTURE_MISSING: FlagText(8, "{structure} missing ({value:.1f} ml)"),
    FlagCode.NOTHING_FOUND: FlagText(8, "no {structure} found"),
    FlagCode.ORIENTATION_UNKNOWN: FlagText(
        8, "no orientation in the header (sform and qform codes are 0): left and right may be swapped"
    ),
    FlagCode.SFORM_WITHOUT_CODE: FlagText(
        8,
        "no orientation in the header (sform and qform codes are 0); the sform was used anyway: left and right "
        "may be swapped",
    ),
    FlagCode.AXES_DISAGREE: FlagText(
        8,
        "sform and qform map the voxel axes to different sides ({detail}); the sform was used, as NIfTI-1 gives it "
        "precedence: left and right may be swapped",
    ),
    FlagCode.SPACING_DISAGREE: FlagText(
        8,
        "sform and pixdim disagree on the spacing ({detail}); the sform was used, as NIfTI-1 gives it precedence: "
        "volumes may be wrong",
    ),
    FlagCode.SFORM_STALE: FlagText(
        8,
        "sform and pixdim disagree on the spacing ({detail}); qform and pixdim were used, as the sform's spacing is "
        "impossible",
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
        "{value:.2%} of the voxels have the padding value {detail} (as stored) within the image, where tissue has it, "
        "too; they count as image",
    ),
    FlagCode.SAME_VALUED: FlagText(
        8, "{value:.1%} of the voxels have the same tissue value {detail}: padding, or an edited region?"
    ),
    FlagCode.SLICES_UNLIKE_NEIGHBOURS: FlagText(
        8, "unlike both neighbours: slice {detail}: damaged, of another intensity, or in a wrong place?"
    ),
    FlagCode.STEPS_BETWEEN_SLICES: FlagText(
        8, "abrupt change of tissue after slice {detail}: slices of another intensity, or in a wrong order?"
    ),
    FlagCode.SERIES_SPLIT: FlagText(
        8,
        "other images of its SeriesInstanceUID name another patient or study: slices of this scan may be missing, or "
        "be of another patient",
    ),
    FlagCode.SLICES_OUT_OF_ORDER: FlagText(
        16,
        "{value:.0f} of {detail} slices resemble one far away more than their neighbours: stored in another order, as "
        "every second slice first?",
    ),
    FlagCode.SLICES_REPEATED: FlagText(
        4, "equal to the slice before: slice {detail}: one stored twice, in place of another?"
    ),
    FlagCode.HU_CLIPPED: FlagText(2, "intensities are clipped at {detail} HU"),
    FlagCode.UNCERTAIN: FlagText(
        4, "{structure} uncertain (the prediction on the mirrored scan agrees at a DSC of {value:.2f} only)"
    ),
    FlagCode.LOW_EXPECTED_DSC: FlagText(4, "{structure}: low expected DSC ({value:.2f}, floor {detail})"),
    FlagCode.OUTSIDE_RANGE: FlagText(4, "{structure} outside the model's operating range: {detail}, found {value:.3g}"),
    FlagCode.LEAVES_SKIN: FlagText(
        8, "{structure}: {value:.0%} of it lie in air, outside the patient's skin or in an airway"
    ),
    FlagCode.CUT_BY_SCAN_END: FlagText(4, "{structure} cut by the end of the scan"),
    FlagCode.CUT_IN_PLANE: FlagText(4, "{structure} cut by the edge of the field of view"),
    FlagCode.UNUSUAL_VOLUME: FlagText(3, "{structure} of unusual volume ({value:.1f} ml)"),
    FlagCode.DAMAGED_FILE_BESIDE: FlagText(
        3, "{detail} in the scan's folder cannot be read and may be the scan's first or last slice"
    ),
    FlagCode.MORE_VOXELS: FlagText(
        2, "the file holds more voxels than stated in its header; the additional ones were not read"
    ),
    FlagCode.SIDES_DIFFER: FlagText(2, "sides differ (the larger gland is {value:.2f} times the smaller)"),
    FlagCode.SFORM_QFORM_DISAGREE: FlagText(
        1, "sform and qform disagree by up to {value:.1f} mm; the sform was used, as NIfTI-1 gives it precedence"
    ),
    FlagCode.SFORM_UNUSABLE: FlagText(1, "the sform is singular or not finite; the qform was used instead"),
    FlagCode.QFORM_UNUSABLE: FlagText(1, "the qform is damaged and was not used"),
    FlagCode.PIXDIM_STALE: FlagText(
        1,
        "sform and pixdim disagree on the spacing ({detail}); the sform was used, as pixdim's spacing is impossible",
    ),
    FlagCode.OBLIQUE: FlagText(1, "oblique by {value:.0f} degrees: slices were taken along the nearest patient axes"),
    FlagCode.SQUARED: FlagText(
        1,
        "voxel axes not quite at right angles, probably by rounding; they were corrected, which moves voxels by up to "
        "{value:.1f} mm",
    ),
    FlagCode.SHEARED: FlagText(
        1,
        "sheared voxel axes (gantry tilt, {value:.0f} degrees): programs based on ITK cannot open a NIfTI mask of this "
        "scan, but can open .seg.nrrd and RTSTRUCT",
    ),
    FlagCode.PART_OF_SERIES: FlagText(1, "one of several volumes of its series ({detail})"),
    FlagCode.CHANNEL_PARTLY_COVERED: FlagText(
        1, "a sequence covers {value:.0%} of the first one ({detail}); the rest counts as air"
    ),
    FlagCode.BLANK_IDENTIFIERS: FlagText(
        1, "{value:.0f} DICOM files have blank identifiers; those of their file meta information were used"
    ),
    FlagCode.LOSSY_COMPRESSION: FlagText(1, "compressed lossily"),
    FlagCode.CONTOURS_OVERLAP: FlagText(
        4, "{structure}: contours overlap in part on {value:.0f} slices; they are joined there"
    ),
    FlagCode.CONTOURS_EXCLUSIVE: FlagText(
        4, "{structure}: contours overlap on {value:.0f} slices; their intersection is outside (CLOSEDPLANAR_XOR)"
    ),
    FlagCode.CONTOURS_HOLLOW: FlagText(
        4, "{structure}: on {value:.0f} slices a contour inside another counts as a hole and takes most of it"
    ),
    FlagCode.NUMBER_TWICE: FlagText(
        4, "{structure}: {value:.0f} structures share its ROINumber; contours were assigned by their order"
    ),
    FlagCode.SLICES_INTERPOLATED: FlagText(
        3, "{structure}: no contour on {value:.0f} of the {detail} slices between its ends; they are interpolated"
    ),
    FlagCode.SLICES_BETWEEN_PIECES: FlagText(
        3, "{structure}: no contour on {value:.0f} slices between two pieces; these slices stay empty"
    ),
    FlagCode.CONTOURS_REPEATED: FlagText(
        2, "{structure}: a contour repeats another one on {value:.0f} slices; it counts once"
    ),
    FlagCode.CONTOURS_TOO_SHORT: FlagText(
        1, "{structure}: {value:.0f} of {detail} contours have fewer than three points and are ignored"
    ),
    FlagCode.CONTOURS_BEYOND_SCAN: FlagText(
        2, "{structure}: {value:.0f} of {detail} contours lie beyond the scan's first or last slice and are ignored"
    ),
    FlagCode.CONTOURS_OF_OTHER_IMAGES: FlagText(
        4,
        "{structure}: {value:.0f} of {detail} contours refer to another slice than the one they lie on; their "
        "position was used",
    ),
    FlagCode.MATCHED_BY_FRAME: FlagText(
        4,
        "the images that the RTSTRUCT was drawn on are not there; it was matched to the only scan in its frame of "
        "reference, which may be another scan of the patient",
    ),
    FlagCode.SCAN_NOT_FOUND: FlagText(
        4,
        "of an earlier run: the last run searched its folder and did not find this scan, which was removed, replaced "
        "or changed, or is refused now",
    ),
    FlagCode.CONTOURS_OVER_EDGE: FlagText(
        2, "{structure}: {value:.0f} of {detail} contours extend beyond the slices' edges and are clipped"
    ),
    FlagCode.LABELS_OVERLAP: FlagText(1, "{value:.0f} voxels of {detail} are in {structure}, too, which has them"),
    FlagCode.FRAME_NOT_STATED: FlagText(
        1, "{structure}: no ReferencedFrameOfReferenceUID; the scan's was used, as its referenced images or series fit"
    ),
    FlagCode.APPENDED_WITHOUT_FRAME: FlagText(
        1,
        "{value:.0f} structures of the RTSTRUCT of --append state no frame of reference; they were copied as they are",
    ),
    FlagCode.NAME_NOT_DECLARED: FlagText(
        1, "{structure}: its name is in UTF-8, but the RTSTRUCT declares another character set or none"
    ),
    FlagCode.DOSE_PARTLY_OUTSIDE: FlagText(
        4, "{structure}: {value:.0%} of it lie outside the dose grid, where its mean dose is not known"
    ),
    FlagCode.DOSE_FRAME_UNKNOWN: FlagText(
        2, "the scan states no frame of reference, so it is not checked that the RTDOSE is the scan's"
    ),
    FlagCode.DOSE_EFFECTIVE: FlagText(1, "the RTDOSE is an effective dose, weighted by biological effect (DoseType)"),
    FlagCode.SIGN_FROM_PIXELS: FlagText(
        1,
        "signed pixels in unsigned compressed images of fewer bits: read as {detail}, which fits their neighbours best",
    ),
    FlagCode.PADDING: FlagText(1, "{value:.1%} of the voxels are padding and count as {detail}"),
}


RANGE_WORDS = {
    "sharpness": "fine detail within tissue (blurred, noisy, or a sharp kernel?)",
    "soft tissue": "intensity of soft tissue (contrast agent?)",
    "bone behind": "bone behind the glands, index from -1 to 1: more in the upper third is positive (upside down?)",
    "distance of sides mm": "distance of the glands in mm (a child, or not the glands?)",
    "turn mm": "offset of the glands from front to back in mm (a turned head?)",
    "difference of sides": "difference of the glands' intensity (one removed, or metal?)",
    "difference below skin": "difference of the sides below the skin (bolus, surgery, or cut by the field of view?)",
    "intensity": "its mean intensity (contrast agent, or not the gland?)",
    "slice overlap": "overlap of its neighbouring slices (ragged?)",
}
"""Features of the operating range in words, by their names as in the detail of a flag."""


def severity_of(code: FlagCode) -> int:
    """The severity of a flag, 1 to 16."""
    return TEXTS[code].severity


def sentence(flag: Flag, named: Callable[[str], str] = plain_name) -> str:
    """A flag as one line of English.

    Args:
        flag: the flag.
        named: gives the name of its structure for readers.
    """
    detail = flag.detail
    if flag.code == FlagCode.OUTSIDE_RANGE:
        name, comma, limits = detail.partition(",")
        detail = RANGE_WORDS.get(name, name) + comma + limits
    return TEXTS[flag.code].sentence.format(
        structure=named(flag.structure) if flag.structure else "scan",
        value=0.0 if flag.value is None else flag.value,
        detail=detail,
    )


def sentences(flags: Iterable[Flag]) -> str:
    """Flags as one line of English."""
    return "; ".join(map(sentence, flags))
