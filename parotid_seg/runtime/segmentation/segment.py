"""Segments one scan: preparation for the model, and checks of the resulting labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from parotid_seg.contract import Contract
from parotid_seg.errors import ScanError
from parotid_seg.flags import DOUBTFUL_PLACE, Flag, FlagCode
from parotid_seg.runtime.engines.base import Backend
from parotid_seg.runtime.report.flag_text import sentences
from parotid_seg.runtime.segmentation.batching import Batcher, Prediction
from parotid_seg.runtime.segmentation.locate import Ask, Prepared, is_cut_in_plane, labels_of_scan
from parotid_seg.runtime.segmentation.quality import judged
from parotid_seg.runtime.segmentation.segmentation_options import DEFAULTS, SegmentationOptions
from parotid_seg.scan.chunks import MOST_SLICES, CroppedScan
from parotid_seg.scan.components import Box, clean_labels, label_boxes
from parotid_seg.scan.ct.slice_order import misfits
from parotid_seg.scan.intensity import in_windows, is_ct
from parotid_seg.scan.labels import LARGEST_RATIO, is_parotid, is_usual_volume, ratio_of_sides, side_of
from parotid_seg.scan.volume import Mask, Volume

SMALLEST_GLAND_ML = 1.0
"""Volume in ml below which a gland counts as missing; the smallest of the 382 contoured training and validation glands
has 5 ml."""
LEAST_AGREEMENT = 0.92
"""DSC between the predictions of the scan and of its mirror image below which a gland is flagged. Of 62 validation
glands 7 are below it, with a mean DSC of 0.52 with the contours; the others have 0.78
(benchmarks/quality/uncertainty.py)."""
WRONG_SIDE_MM = 20.0
"""If only one gland is found and lies so far beyond the middle, it is probably the other one. All of the 382 contoured
training and validation glands lie at least 47 mm on their own side."""

ON_BOTH_SIDES = (FlagCode.SIDES_SWAPPED, FlagCode.ONLY_GLAND_ON_OTHER_SIDE)
"""Flags on one structure that put the other side's mask in doubt as well."""


@dataclass(frozen=True)
class Segmentation:
    """The result for one scan.

    Attributes:
        mask: labels, uint8; of a volume (D, H, W) in its canonical order, of an image in the image's own order.
        volumes_ml: volume of each structure by name.
        flags: points that need review; those on the scan itself come first.
        agreement: of each structure the DSC between the masks of the scan and of its mirror image: the lower, the less
            certain. Empty without test-time augmentation.
        expected_dsc: of each structure the expected DSC with a contour drawn by a person. Empty for a model without
            calibration, and without structures that were not found.
        floor_dsc: of the same structures the DSC that 90 % of such structures reach.
    """

    mask: Mask
    volumes_ml: dict[str, float]
    flags: tuple[Flag, ...]
    agreement: dict[str, float]
    expected_dsc: dict[str, float] = field(default_factory=dict)
    floor_dsc: dict[str, float] = field(default_factory=dict)

    def only(self, names: Sequence[str], labels: Sequence[str]) -> Segmentation:
        """The result without all other structures, and without their flags; those on both sides together stay.

        Args:
            names: of the structures.
            labels: names by value, background first.
        """
        if len(names) == len(labels) - 1:
            return self
        kept = np.array([value * (label in names) for value, label in enumerate(labels)], np.uint8)
        return Segmentation(
            kept[self.mask],
            {name: self.volumes_ml[name] for name in names},
            tuple(flag for flag in self.flags if flag.structure in ("", *names) or flag.code in ON_BOTH_SIDES),
            *(
                {name: dsc for name, dsc in figures.items() if name in names}
                for figures in (self.agreement, self.expected_dsc, self.floor_dsc)
            ),
        )


def segment_volume(
    backend: Backend,
    volume: Volume,
    options: SegmentationOptions = DEFAULTS,
    *,
    batch_size: int | None = None,
) -> Segmentation:
    """Segment one scan.

    Args:
        backend: the loaded model.
        volume: the scan.
        options: options of the segmentation.
        batch_size: slices at once; None for the number with which the backend is fastest.

    Raises:
        ScanError: as `prepare` and `postprocess`.
    """
    ask = asking(backend, batch_size or backend.batch_size, tta=options.tta)
    prepared = prepare(volume, backend.contract)
    cropped, labelled = labels_of_scan(prepared, ask, options)
    return postprocess(labelled.labels, cropped, volume, backend.contract, options, agreement=labelled.agreement)


def asking(backend: Backend, batch_size: int, *, tta: bool = False) -> Ask:
    """A function for `labels_of_scan` that labels one scan after the other.

    Args:
        backend: the loaded model.
        batch_size, tta: see `batching.Batcher`.
    """
    batches = Batcher[None](backend, batch_size, tta=tta)

    def ask(cropped: CroppedScan) -> Prediction:
        batches.add(None, cropped)
        complete: list[tuple[None, Prediction | ScanError]] = []
        while batches.busy:
            complete += batches.step()
        ((_, labelled),) = complete
        if isinstance(labelled, ScanError):
            raise labelled
        return labelled

    return ask


def prepare(volume: Volume, contract: Contract) -> Prepared:
    """Prepare a scan for the model.

    Raises:
        ScanError: if it has more than `MOST_SLICES`; see also `scan.intensity.in_windows`.
    """
    if volume.shape[0] > MOST_SLICES:
        raise ScanError(f"found {volume.shape[0]} slices, expected at most {MOST_SLICES}")
    prepared, windows = in_windows(volume, contract.channels, contract.windows)
    prepared = replace(prepared, flags=(*prepared.flags, *misfits(prepared, contract.channels)))
    return Prepared(prepared, windows, contract)


def postprocess(
    labels: Mask,
    cropped: CroppedScan,
    volume: Volume,
    contract: Contract,
    options: SegmentationOptions = DEFAULTS,
    *,
    agreement: Mapping[str, float] | None = None,
) -> Segmentation:
    """Turn a scan's labels into the result: clean-up, volumes and flags.

    Args:
        labels: (D, h, w) within the grid.
        cropped, volume, contract: the prepared scan.
        options: whether the labels are cleaned up.
        agreement: see `Segmentation`.

    Raises:
        ScanError: if the model segments parotid glands and none was found.
    """
    if options.clean_up:
        labels = clean_labels(labels, contract.labels)
    boxes = label_boxes(labels, len(contract.labels) - 1)
    volumes = {
        name: int(np.count_nonzero(labels[box] == value)) * volume.voxel_ml if box else 0.0
        for value, (name, box) in enumerate(zip(contract.labels[1:], boxes, strict=True), start=1)
    }
    parotids = {name: size for name, size in volumes.items() if is_parotid(name)}
    if parotids and all(size < SMALLEST_GLAND_ML for size in parotids.values()):
        sizes = ", ".join(f"{name} {size:.1f} ml" for name, size in parotids.items())
        doubts = [flag for flag in volume.flags if flag.code in DOUBTFUL_PLACE]
        if doubts:
            raise ScanError(f"no parotid gland found ({sizes}), and the header may be wrong: {sentences(doubts)}")
        expected = "a CT in HU" if all(map(is_ct, contract.channels)) else ", ".join(contract.channels)
        raise ScanError(f"no parotid gland found ({sizes}); does the scan show the head, and is it {expected}?")
    unsure = (
        Flag(FlagCode.UNCERTAIN, name, dsc)
        for name, dsc in (agreement or {}).items()
        if is_parotid(name) and volumes[name] >= SMALLEST_GLAND_ML and dsc < LEAST_AGREEMENT
    )
    glands = [name if volumes[name] >= SMALLEST_GLAND_ML else "" for name in contract.labels[1:]]
    swapped = _swapped(labels, glands, boxes, cropped, volume.spacing_mm[2])
    cut = [
        Flag(FlagCode.CUT_IN_PLANE, name)
        for name, box in zip(contract.labels[1:], boxes, strict=True)
        if box and not is_missing(name, volumes[name]) and is_cut_in_plane(box, cropped, volume.spacing_mm, contract)
    ]
    found = [name for name, size in volumes.items() if size and not is_missing(name, size)]
    quality = judged(found, labels, cropped, volume.spacing_mm, boxes, volumes, contract)
    cut = [flag for flag in cut if flag not in quality.flags]
    flags = (*cropped.flags, *swapped, *_flags(labels, contract.labels, volumes), *cut, *unsure, *quality.flags)
    mask = np.zeros(volume.shape, np.uint8)
    mask[:, cropped.rows, cropped.columns] = labels
    return Segmentation(mask, volumes, flags, dict(agreement or {}), quality.expected_dsc, quality.floor_dsc)


def _flags(mask: Mask, labels: tuple[str, ...], volumes_ml: dict[str, float]) -> list[Flag]:
    """Flags on the structures. Usual sizes, and missing structures, are checked for parotid glands only."""
    if not any(volumes_ml.values()):
        return [Flag(FlagCode.NOTHING_FOUND, name) for name in volumes_ml]
    flags = []
    for value, name in enumerate(labels[1:], start=1):
        size = volumes_ml[name]
        if is_missing(name, size):
            flags.append(Flag(FlagCode.STRUCTURE_MISSING, name, size))
            continue
        if not is_usual_volume(name, size):
            flags.append(Flag(FlagCode.UNUSUAL_VOLUME, name, size))
        if (mask[0] == value).any() or (mask[-1] == value).any():
            flags.append(Flag(FlagCode.CUT_BY_SCAN_END, name))
    ratio = ratio_of_sides({name: size for name, size in volumes_ml.items() if not is_missing(name, size)})
    return [*flags, Flag(FlagCode.SIDES_DIFFER, value=ratio)] if ratio and ratio > LARGEST_RATIO else flags


def is_missing(name: str, size_ml: float) -> bool:
    """Whether a structure that every patient has is missing or too small."""
    return is_parotid(name) and size_ml < SMALLEST_GLAND_ML


def _swapped(
    labels: Mask, names: Sequence[str], boxes: Sequence[Box | None], cropped: CroppedScan, column_mm: float
) -> list[Flag]:
    """Flags for parotid glands that lie on the wrong side by their names; columns run to the patient's left.

    Two glands are compared with each other. A single one is compared with the middle of the tissue in its slices, which
    is less certain, see `WRONG_SIDE_MM`.

    Args:
        labels: (D, h, w) within the grid.
        names, boxes: of each label from 1 on; the box of a missing structure is None.
        cropped: the scan.
        column_mm: between its columns.
    """
    glands = {
        side_of(name): (name, box, box[2].start + _middle((labels[box] == value).sum(axis=(0, 1))))
        for value, (name, box) in enumerate(zip(names, boxes, strict=True), start=1)
        if box and is_parotid(name) and side_of(name)
    }
    if len(glands) == 2:
        (name, _, left), (_, _, right) = glands["left"], glands["right"]
        off_mm = (right - left) * column_mm
        return [Flag(FlagCode.SIDES_SWAPPED, name, off_mm)] if off_mm > 0 else []
    for side, (name, box, column) in glands.items():
        tissue = cropped.voxels[0, box[0]] > cropped.windows[0, 0]
        off_mm = (_middle(tissue.sum(axis=(0, 1))) - column) * column_mm * (1 if side == "left" else -1)
        if off_mm > WRONG_SIDE_MM:
            return [Flag(FlagCode.ONLY_GLAND_ON_OTHER_SIDE, name, off_mm)]
    return []


def _middle(counts: NDArray[np.integer]) -> int:
    """The position of the median of counts."""
    return int(np.searchsorted(np.cumsum(counts), counts.sum() / 2))
