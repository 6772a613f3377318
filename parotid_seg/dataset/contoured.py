"""Assigns the ROIs of a structure set to labels, and chooses one of several structure sets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from parotid_seg.dataset.roi_names import RoiNames
from parotid_seg.dataset.structures import ListedRoi, StructureSet
from parotid_seg.dicom.write.objects import MAKER
from parotid_seg.errors import ScanError

APPROVED, REJECTED = "APPROVED", "REJECTED"


@dataclass(frozen=True)
class Unused:
    """A ROI that is not used as a label.

    Attributes:
        shown: its name for lists.
        reason: why not.
        wanted: whether it may have been meant as one and needs review.
    """

    shown: str = field(repr=False)
    reason: str
    wanted: bool


@dataclass(frozen=True)
class Contoured:
    """The labels in a structure set.

    Attributes:
        by: how it was matched to the series: "images", "series" or "frame of reference".
        rois: for each label the contoured ROIs whose names mean it.
        unused: the other ROIs.
        near: whether the name of any ROI that was not drawn by this package mentions a gland.
    """

    structures: StructureSet
    by: str
    rois: dict[str, tuple[ListedRoi, ...]]
    unused: tuple[Unused, ...]
    near: bool


def read_meaning(structures: StructureSet, by: str, names: RoiNames, frame_of_reference_uid: str) -> Contoured:
    """Assign the ROIs of a set to labels by name; the user's names override the rules.

    Args:
        frame_of_reference_uid: of the series; contours in another frame of reference do not count.
    """
    meanings = [(roi, names.meaning(roi.name.value, roi.name.readings)) for roi in structures.rois]
    labels_by_user = {meaning.label for roi, meaning in meanings if meaning.own and roi.contours}
    rois: dict[str, tuple[ListedRoi, ...]] = {}
    others = []
    for roi, meaning in meanings:
        reason, look_at_it = meaning.reason, meaning.near
        if meaning.label and roi.fault:
            reason, look_at_it = roi.fault, True
        elif meaning.label and not roi.contours:
            reason = "it has no contours"
        elif meaning.label and roi.own and structures.approval != APPROVED:
            reason = f"{MAKER} drew it and nobody has approved it"
        elif meaning.label and meaning.label in labels_by_user and not meaning.own:
            reason = f"another ROI is {meaning.label} by --names"
        elif meaning.label and roi.frame_of_reference_uid not in ("", frame_of_reference_uid):
            reason, look_at_it = "its contours are in another frame of reference than the series", True
        if reason:
            others.append((roi, meaning, reason, look_at_it))
        else:
            rois[meaning.label] = (*rois.get(meaning.label, ()), roi)
    lacks = any(label not in rois for label in names.labels)
    unused = tuple(
        Unused(roi.shown, reason, look_at_it or (lacks and meaning.gland and not meaning.label and roi.contours > 0))
        for roi, meaning, reason, look_at_it in others
    )
    near = any(meaning.gland and not roi.own for roi, meaning in meanings)
    return Contoured(structures, by, rois, unused, near)


def choose(candidates: Sequence[Contoured], prefer: str | None) -> Contoured:
    """Choose one of several structure sets of a series.

    The one whose label is `prefer`; else the one with the most labels; else an approved one; else the newest.

    Args:
        candidates: sets with at least one of the labels each.

    Raises:
        ScanError: if these rules do not decide.
    """

    def rank(each: Contoured) -> tuple[bool, int, bool, str]:
        structures = each.structures
        preferred = prefer is not None and structures.label.strip().casefold() == prefer.strip().casefold()
        return preferred, len(each.rois), structures.approval == APPROVED, structures.made

    ranked = sorted(candidates, key=rank, reverse=True)
    equal = [each for each in ranked if rank(each) == rank(ranked[0])]
    if len(equal) > 1:
        raise ScanError(
            f"{len(equal)} structure sets of the series are of equal standing and date, expected one that counts; "
            "--prefer names its label"
        )
    return ranked[0]
