"""What a person should look at in a result, as data. Only `runtime.report.flag_text` turns it into English.

Nothing outside that module reads or compares a flag's sentence, so rewording one changes no decision.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class FlagCode(StrEnum):
    """What was noticed. The values are written to journal.jsonl and the reports; they never change."""

    SIDES_SWAPPED = "sides_swapped"
    """The left gland lies to the patient's right of the right one; value: by how many mm."""
    ONLY_GLAND_ON_OTHER_SIDE = "only_gland_on_other_side"
    """The only gland lies on the other side of the middle; value: by how many mm."""
    STRUCTURE_MISSING = "structure_missing"
    """A parotid gland was not found; value: what was found, in ml."""
    NOTHING_FOUND = "nothing_found"
    """None of the model's structures was found."""
    ORIENTATION_UNKNOWN = "orientation_unknown"
    """The file does not say how the patient lies."""
    UNCERTAIN = "uncertain"
    """Test-time augmentation disagrees; value: DSC between the two predictions."""
    CUT_BY_SCAN_END = "cut_by_scan_end"
    """A structure touches the first or the last slice."""
    CUT_IN_PLANE = "cut_in_plane"
    """A structure touches the edge of the model's field of view or of the scan within a slice."""
    UNUSUAL_VOLUME = "unusual_volume"
    """A parotid gland of a size that hardly any patient has; value: ml."""
    SIDES_DIFFER = "sides_differ"
    """Volume of the larger gland over that of the smaller; value: the ratio."""
    SFORM_QFORM_DISAGREE = "sform_qform_disagree"
    """NIfTI's two affines differ; value: by how many mm; detail: the one that was used."""
    AXES_DISAGREE = "axes_disagree"
    """NIfTI's two affines send a voxel axis to different sides of the patient; value: by how many mm they differ;
    detail: where the axes run by sform and by qform."""
    SPACING_DISAGREE = "spacing_disagree"
    """NIfTI's sform and pixdim have different spacings, and the sform was used; detail: both."""
    PIXDIM_STALE = "pixdim_stale"
    """The same, but pixdim cannot be the patient's; detail: both."""
    SFORM_STALE = "sform_stale"
    """The same, but the sform cannot be the patient's, so the qform was used; detail: both."""
    SFORM_WITHOUT_CODE = "sform_without_code"
    """Sform and qform codes are 0, and the sform that is there was used."""
    SFORM_UNUSABLE = "sform_unusable"
    """The sform is singular or not finite, so the qform was used."""
    QFORM_UNUSABLE = "qform_unusable"
    """The qform is damaged and was not used."""
    MORE_VOXELS = "more_voxels"
    """A NIfTI file holds more voxels than its header says; those beyond are not read."""
    OBLIQUE = "oblique"
    """The voxel axes are turned against the patient's; value: degrees."""
    SQUARED = "squared"
    """The voxel axes were nearly at right angles and were brought there; value: how far voxels moved, in mm at most."""
    SHEARED = "sheared"
    """The voxel axes are not at right angles (gantry tilt); value: degrees."""
    PART_OF_SERIES = "part_of_series"
    """A DICOM series holds several volumes, and this is one of them; detail: which."""
    DAMAGED_FILE_BESIDE = "damaged_file_beside"
    """A file in a series' folder cannot be read and may be its first or last slice; detail: the file's name."""
    BLANK_IDENTIFIERS = "blank_identifiers"
    """DICOM files without SOPInstanceUID or SOPClassUID, taken from the file meta information; value: files."""
    CHANNEL_PARTLY_COVERED = "channel_partly_covered"
    """A sequence does not reach over the whole first one; value: share covered; detail: both titles."""
    LOSSY_COMPRESSION = "lossy_compression"
    """The pixels were compressed with loss."""
    SIGN_FROM_PIXELS = "sign_from_pixels"
    """Whether pixels are signed was decided by the pixels; detail: what they were read as."""
    HU_SHIFTED = "hu_shifted"
    """Soft tissue of a CT lies off its place; value: where it lies, in the scan's unit, which should be HU."""
    HU_SPREAD = "hu_spread"
    """A CT's histogram is wider than tissue in HU; value: how many times."""
    HU_UNEVEN = "hu_uneven"
    """Soft tissue of a CT lies elsewhere in one part of a slice than in another; value: by how many HU."""
    HU_INVERTED = "hu_inverted"
    """Inverted, the intensities of a CT would look more like HU."""
    HU_CLIPPED = "hu_clipped"
    """A CT was clipped; detail: at which values."""
    SAME_VALUED = "same_valued"
    """Regions of a CT have one and the same value, which tissue has, too; value: their share of the voxels; detail: the
    value."""
    HU_UNKNOWN = "hu_unknown"
    """A CT shows neither fat nor air with noise, so nothing tells whether it is in HU."""
    PADDING_IN_BODY = "padding_in_body"
    """The file calls voxels inside the patient padding; value: their share; detail: the stored value or range."""
    PADDING = "padding"
    """Voxels that DICOM calls padding; value: their share; detail: what they count as."""
    NUMBER_TWICE = "number_twice"
    """A structure's ROINumber is that of others, too; value: how many share it."""
    FRAME_NOT_STATED = "frame_not_stated"
    """A structure does not say in which frame of reference it lies; the images it was drawn on tell."""
    NAME_NOT_DECLARED = "name_not_declared"
    """The name of a structure is in UTF-8, and its file declares another character set or none."""
    CONTOURS_TOO_SHORT = "contours_too_short"
    """Contours of fewer than three points; value: how many; detail: of how many."""
    CONTOURS_BEYOND_SCAN = "contours_beyond_scan"
    """Contours beyond the first or the last slice; value: how many; detail: of how many."""
    CONTOURS_OF_OTHER_IMAGES = "contours_of_other_images"
    """Contours that name the image of another slice than that they lie on; value: how many; detail: of how many."""
    CONTOURS_OVER_EDGE = "contours_over_edge"
    """Contours that reach over the edges of their slices; value: how many; detail: of how many."""
    CONTOURS_REPEATED = "contours_repeated"
    """A contour repeats another one of its structure; value: on how many slices."""
    CONTOURS_OVERLAP = "contours_overlap"
    """Contours of a structure overlap in part and are joined; value: on how many slices."""
    CONTOURS_EXCLUSIVE = "contours_exclusive"
    """Contours of type CLOSEDPLANAR_XOR overlap in part, so what they have in common is outside; value: slices."""
    CONTOURS_HOLLOW = "contours_hollow"
    """Holes take most of what a contour encloses; value: on how many slices."""
    SLICES_INTERPOLATED = "slices_interpolated"
    """Slices without contours between a structure's ends are filled; value: how many; detail: of how many."""
    SLICES_BETWEEN_PIECES = "slices_between_pieces"
    """Slices without contours between two pieces of a structure that do not lie above each other; value: how many."""
    APPENDED_WITHOUT_FRAME = "appended_without_frame"
    """Structures of the RTSTRUCT that was added to do not say in which frame of reference they lie; value: how many."""
    LABELS_OVERLAP = "labels_overlap"
    """Voxels of a structure are in an earlier label, too; value: how many; detail: that label."""
    OLD_VERSION = "old_version"
    """Noticed by a version of the program that kept sentences only; detail: the sentence."""


DOUBTFUL_PLACE = frozenset(
    {
        FlagCode.ORIENTATION_UNKNOWN,
        FlagCode.SFORM_WITHOUT_CODE,
        FlagCode.AXES_DISAGREE,
        FlagCode.SPACING_DISAGREE,
        FlagCode.SFORM_STALE,
    }
)
"""A scan with one of these may lie otherwise than it was read, or have another size."""


@dataclass(frozen=True)
class Flag:
    """One thing that was noticed.

    Attributes:
        code: what.
        structure: the label it is about; empty if it is about the scan.
        value: its figure, in the unit that `FlagCode` states; None if it has none.
        detail: a name or number that the sentence repeats; never compared with anything.
    """

    code: FlagCode
    structure: str = ""
    value: float | None = None
    detail: str = ""
