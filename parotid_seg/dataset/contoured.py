"""Which ROIs of a structure set are which labels, and which of several structure sets counts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from parotid_seg.dataset.roi_names import RoiNames
from parotid_seg.dataset.structures import Roi, StructureSet
from parotid_seg.dicom.objects import MAKER
from parotid_seg.errors import ScanError

APPROVED, REJECTED = "APPROVED", "REJECTED"


@dataclass(frozen=True)
class Contoured:
    """What a structure set has of the labels.

    Attributes:
        by: how it was found to be the series' own: "images", "series" or "frame of reference".
        rois: for each label the contoured ROIs whose names mean it.
        unused: the other ROIs, and why.
        near: whether the name of any ROI that somebody else has drawn speaks of a gland.
    """

    structures: StructureSet
    by: str
    rois: dict[str, tuple[Roi, ...]]
    unused: tuple[tuple[str, str], ...] = field(repr=False)
    near: bool


def read_meaning(structures: StructureSet, by: str, names: RoiNames, frame_of_reference_uid: str) -> Contoured:
    """Which ROIs of a set are which labels, by their names; the user's names go over those of the rules.

    Args:
        frame_of_reference_uid: of the series; contours in another one do not count.
    """
    meanings = [(roi, names.meaning(roi.name)) for roi in structures.rois]
    rois: dict[str, tuple[Roi, ...]] = {}
    unused = []
    named = {meaning.label for roi, meaning in meanings if meaning.own and roi.contours}
    for roi, meaning in meanings:
        reason = meaning.reason
        if meaning.label and not roi.contours:
            reason = "it has no contours"
        elif meaning.label and roi.own and structures.approval != APPROVED:
            reason = f"{MAKER} drew it and nobody has approved it"
        elif meaning.label and meaning.label in named and not meaning.own:
            reason = f"another ROI is {meaning.label} by --names"
        elif meaning.label and roi.frame_of_reference_uid not in ("", frame_of_reference_uid):
            reason = "its contours are in another frame of reference than the series"
        if reason:
            unused.append((roi.shown, reason))
        else:
            rois[meaning.label] = (*rois.get(meaning.label, ()), roi)
    return Contoured(
        structures, by, rois, tuple(unused), any(meaning.gland and not roi.own for roi, meaning in meanings)
    )


def choose(candidates: Sequence[Contoured], prefer: str | None) -> Contoured:
    """The structure set that counts, of several of one series.

    The one whose label is `prefer`; else one with more of the labels; else an approved one; else the newest.

    Args:
        candidates: sets that have at least one of the labels each.

    Raises:
        ScanError: if that does not tell.
    """

    def rank(each: Contoured) -> tuple[bool, int, bool, str]:
        found = each.structures
        preferred = prefer is not None and found.label.strip().casefold() == prefer.strip().casefold()
        return preferred, len(each.rois), found.approval == APPROVED, found.made

    ranked = sorted(candidates, key=rank, reverse=True)
    equal = [each for each in ranked if rank(each) == rank(ranked[0])]
    if len(equal) > 1:
        raise ScanError(
            f"{len(equal)} structure sets of the series are of equal standing and date, expected one that counts; "
            "--prefer names its label"
        )
    return ranked[0]
