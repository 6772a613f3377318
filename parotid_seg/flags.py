"""Flags: points of a result that need review, as data. Only `runtime.report.flag_text` turns them into English.

Nothing outside that module reads or compares a flag's sentence, so rewording one changes no decision.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class FlagCode(StrEnum):
    """Codes of flags. The values are written to journal.jsonl and the reports; they never change."""

    SIDES_SWAPPED = "sides_swapped"
    """The left gland lies to the patient's right of the right one; value: by how many mm."""
    ONLY_GLAND_ON_OTHER_SIDE = "only_gland_on_other_side"
    """The only gland lies on the other side of the middle; value: by how many mm."""
    STRUCTURE_MISSING = "structure_missing"
    """A parotid gland was not found; value: the volume found, in ml."""
    NOTHING_FOUND = "nothing_found"
    """None of the model's structures was found."""
    ORIENTATION_UNKNOWN = "orientation_unknown"
    """The file does not state the patient's orientation."""
    UNCERTAIN = "uncertain"
    """Test-time augmentation disagrees; value: DSC between the two predictions."""
    LOW_EXPECTED_DSC = "low_expected_dsc"
    """The model's calibration expects a low DSC; value: the expected DSC; detail: its floor."""
    OUTSIDE_RANGE = "outside_range"
    """A feature of the scan or of a structure lies outside the model's operating range; value: the feature; detail: its
    name and range."""
    LEAVES_SKIN = "leaves_skin"
    """A structure of a CT lies partly in air, outside the patient's skin; value: share of it."""
    CUT_BY_SCAN_END = "cut_by_scan_end"
    """A structure touches the first or the last slice."""
    CUT_IN_PLANE = "cut_in_plane"
    """A structure touches the edge of the model's field of view or of the scan within a slice, or the skin beside it is
    so straight that it is such an edge."""
    UNUSUAL_VOLUME = "unusual_volume"
    """A parotid gland has an unusual volume; value: ml."""
    SIDES_DIFFER = "sides_differ"
    """Volume of the larger gland over that of the smaller; value: the ratio."""
    SFORM_QFORM_DISAGREE = "sform_qform_disagree"
    """NIfTI's two affines differ; value: by how many mm; detail: the used one."""
    AXES_DISAGREE = "axes_disagree"
    """NIfTI's two affines map a voxel axis to different sides of the patient; value: by how many mm they differ;
    detail: the axes' directions by sform and by qform."""
    SPACING_DISAGREE = "spacing_disagree"
    """NIfTI's sform and pixdim have different spacings, and the sform was used; detail: both."""
    PIXDIM_STALE = "pixdim_stale"
    """The same, but the spacing in pixdim is impossible; detail: both."""
    SFORM_STALE = "sform_stale"
    """The same, but the spacing in the sform is impossible, so the qform was used; detail: both."""
    SFORM_WITHOUT_CODE = "sform_without_code"
    """Sform and qform codes are 0, and the sform was used anyway."""
    SFORM_UNUSABLE = "sform_unusable"
    """The sform is singular or not finite, so the qform was used."""
    QFORM_UNUSABLE = "qform_unusable"
    """The qform is damaged and was not used."""
    MORE_VOXELS = "more_voxels"
    """A NIfTI file holds more voxels than stated in its header; the additional ones are not read."""
    OBLIQUE = "oblique"
    """The voxel axes are rotated against the patient's axes; value: degrees."""
    SQUARED = "squared"
    """The voxel axes were nearly at right angles and were corrected; value: largest shift of a voxel in mm."""
    SHEARED = "sheared"
    """The voxel axes are not at right angles (gantry tilt); value: degrees."""
    PART_OF_SERIES = "part_of_series"
    """A DICOM series holds several volumes, of which this is one; detail: which."""
    SERIES_SPLIT = "series_split"
    """Other images of the same SeriesInstanceUID name another patient or study, so that this may be a part of a
    volume."""
    DAMAGED_FILE_BESIDE = "damaged_file_beside"
    """A file in a series' folder cannot be read and may be its first or last slice; detail: the file's name."""
    BLANK_IDENTIFIERS = "blank_identifiers"
    """DICOM files without SOPInstanceUID or SOPClassUID, taken from the file meta information; value: files."""
    CHANNEL_PARTLY_COVERED = "channel_partly_covered"
    """A sequence does not cover the whole first one; value: share covered; detail: both titles."""
    LOSSY_COMPRESSION = "lossy_compression"
    """The pixels were compressed lossily."""
    SIGN_FROM_PIXELS = "sign_from_pixels"
    """The signedness of pixels was inferred from their values; detail: the chosen reading."""
    HU_SHIFTED = "hu_shifted"
    """Soft tissue of a CT has an unusual intensity; value: that intensity, in the scan's unit, which should be HU."""
    HU_SPREAD = "hu_spread"
    """A CT's histogram is wider than that of tissue in HU; value: the factor."""
    HU_UNEVEN = "hu_uneven"
    """Soft tissue of a CT has different intensities in different parts of a slice; value: difference in HU."""
    HU_INVERTED = "hu_inverted"
    """Inverted, the intensities of a CT would look more like HU."""
    HU_CLIPPED = "hu_clipped"
    """A CT was clipped; detail: at which values."""
    SAME_VALUED = "same_valued"
    """Whole regions of a CT have one value that tissue has, too; value: their share of the voxels; detail: the
    value."""
    SLICES_UNLIKE_NEIGHBOURS = "slices_unlike_neighbours"
    """Slices of a CT differ from both of their neighbours; value: how many; detail: their numbers."""
    STEPS_BETWEEN_SLICES = "steps_between_slices"
    """Tissue of a CT changes abruptly between neighbouring slices; value: how often; detail: after which slices."""
    SLICES_OUT_OF_ORDER = "slices_out_of_order"
    """Slices of a CT resemble one far away more than their neighbours; value: how many; detail: of how many."""
    SLICES_REPEATED = "slices_repeated"
    """Slices of a CT are equal to the one before; value: how many; detail: their numbers."""
    HU_UNKNOWN = "hu_unknown"
    """A CT shows neither fat nor noisy air, so its unit cannot be verified."""
    PADDING_IN_BODY = "padding_in_body"
    """The file declares voxels inside the patient as padding; value: their share; detail: the stored value or range."""
    PADDING = "padding"
    """Voxels that DICOM declares as padding; value: their share; detail: the intensity they get."""
    NUMBER_TWICE = "number_twice"
    """Several structures have the same ROINumber; value: how many."""
    FRAME_NOT_STATED = "frame_not_stated"
    """A structure does not state its frame of reference; it was taken from the images that it was drawn on."""
    NAME_NOT_DECLARED = "name_not_declared"
    """The name of a structure is in UTF-8, but its file declares another character set or none."""
    CONTOURS_TOO_SHORT = "contours_too_short"
    """Contours of fewer than three points; value: how many; detail: of how many."""
    CONTOURS_BEYOND_SCAN = "contours_beyond_scan"
    """Contours beyond the first or the last slice; value: how many; detail: of how many."""
    CONTOURS_OF_OTHER_IMAGES = "contours_of_other_images"
    """Contours that refer to the image of another slice than their own; value: how many; detail: of how many."""
    MATCHED_BY_FRAME = "matched_by_frame"
    """The images that a structure set was drawn on are not there; only its frame of reference is that of the scan."""
    SCAN_NOT_FOUND = "scan_not_found"
    """A case of an earlier run whose scan the last run, which searched its folder, did not find, or refused."""
    CONTOURS_OVER_EDGE = "contours_over_edge"
    """Contours that extend beyond the edges of their slices; value: how many; detail: of how many."""
    CONTOURS_REPEATED = "contours_repeated"
    """A contour repeats another one of its structure; value: on how many slices."""
    CONTOURS_OVERLAP = "contours_overlap"
    """Contours of a structure overlap in part and are joined; value: on how many slices."""
    CONTOURS_EXCLUSIVE = "contours_exclusive"
    """Contours of type CLOSEDPLANAR_XOR overlap in part, so their intersection is outside; value: slices."""
    CONTOURS_HOLLOW = "contours_hollow"
    """Holes take most of a contour's area; value: on how many slices."""
    SLICES_INTERPOLATED = "slices_interpolated"
    """Slices without contours between a structure's ends are filled; value: how many; detail: of how many."""
    SLICES_BETWEEN_PIECES = "slices_between_pieces"
    """Slices without contours between two pieces of a structure that do not overlap in the plane; value: how many."""
    APPENDED_WITHOUT_FRAME = "appended_without_frame"
    """Structures of the extended RTSTRUCT do not state their frame of reference; value: how many."""
    LABELS_OVERLAP = "labels_overlap"
    """Voxels of a structure are also in an earlier label; value: how many; detail: that label."""
    DOSE_PARTLY_OUTSIDE = "dose_partly_outside"
    """A structure lies partly or wholly outside the dose grid; value: share of its voxels outside."""
    DOSE_FRAME_UNKNOWN = "dose_frame_unknown"
    """An RTDOSE was used for a scan that states no frame of reference."""
    DOSE_EFFECTIVE = "dose_effective"
    """The dose is an effective dose (DoseType), weighted by biological effect, not a physical one."""


DOUBTFUL_PLACE = frozenset(
    {
        FlagCode.ORIENTATION_UNKNOWN,
        FlagCode.SFORM_WITHOUT_CODE,
        FlagCode.AXES_DISAGREE,
        FlagCode.SPACING_DISAGREE,
        FlagCode.SFORM_STALE,
    }
)
"""Flags of scans whose orientation or size may differ from what was read."""


@dataclass(frozen=True)
class Flag:
    """One point of a result that needs review.

    Attributes:
        code: what was noticed.
        structure: the label concerned; empty if it concerns the scan.
        value: a number in the unit stated in `FlagCode`; None if there is none.
        detail: a name or number for the sentence; never compared with anything.
    """

    code: FlagCode
    structure: str = ""
    value: float | None = None
    detail: str = ""
