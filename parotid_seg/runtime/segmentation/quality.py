"""What the model's file tells of a mask: the expected DSC of its structures, and whether the scan is in its operating
range."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from parotid_seg.calibration import calibration_of
from parotid_seg.contract import Contract
from parotid_seg.flags import Flag, FlagCode
from parotid_seg.runtime.segmentation.features import gland_features, range_features
from parotid_seg.scan.chunks import CroppedScan
from parotid_seg.scan.components import Box
from parotid_seg.scan.intensity import Windows, is_ct
from parotid_seg.scan.labels import mirrored_labels
from parotid_seg.scan.volume import Mask

MOST_IN_AIR = 0.1
"""Share of a structure in air from which it is flagged; the masks of 31 validation patients have at most 0.035."""
MOST_STRAIGHT = 0.7
"""Share of the skin beside a structure in one column of the grid above which it is the edge of the field of view; it is
at most 0.65 for the 382 contoured training and validation glands."""


@dataclass(frozen=True)
class Quality:
    """The expected quality of a scan's structures; of those without a calibration, or not found, there is none.

    Attributes:
        expected_dsc, floor_dsc: by structure, see `calibration.Estimate`.
        flags: on structures with a low expected DSC, and on what lies outside the operating range.
    """

    expected_dsc: dict[str, float] = field(default_factory=dict)
    floor_dsc: dict[str, float] = field(default_factory=dict)
    flags: tuple[Flag, ...] = ()


def judged(
    found: Sequence[str],
    labels: Mask,
    cropped: CroppedScan,
    spacing_mm: tuple[float, float, float],
    boxes: Sequence[Box | None],
    volumes_ml: Mapping[str, float],
    contract: Contract,
) -> Quality:
    """The quality of a scan's structures, and flags on what lies outside the model's operating range.

    Args:
        found: the structures that count as found.
        labels: (D, h, w) within the grid, after clean-up.
        cropped: the scan within the grid.
        spacing_mm: of the voxels.
        boxes: around the labels from 1 on.
        volumes_ml: of all structures.
        contract: the model's.
    """
    features, quality = {}, Quality()
    if contract.calibrations or contract.operating_range:
        voxels, windows = cropped.voxels[0], cropped.windows
        features = features_of(found, labels, voxels, windows, spacing_mm, boxes, volumes_ml, contract)
        quality = quality_of(features, contract)
    seen = range_features(found, labels, cropped, boxes, contract, features)
    flags = []
    if is_ct(contract.channels[0]):
        flags += [Flag(FlagCode.LEAVES_SKIN, name, air) for name, air in seen.in_air.items() if air > MOST_IN_AIR]
        flags += [Flag(FlagCode.CUT_IN_PLANE, name) for name, share in seen.straight.items() if share > MOST_STRAIGHT]
    if contract.operating_range:
        outside = contract.operating_range.outside_of(seen.scan, seen.structures)
        flags += [Flag(FlagCode.OUTSIDE_RANGE, name, value, str(limits)) for name, limits, value in outside]
    return replace(quality, flags=(*quality.flags, *flags))


def quality_of(features: Mapping[str, Mapping[str, float]], contract: Contract) -> Quality:
    """The expected quality of structures.

    Args:
        features: of the structures that were found, see `features_of`.
        contract: the model's.
    """
    expected, floor, flags = {}, {}, []
    for name, values in features.items():
        calibration = calibration_of(name, contract.calibrations)
        if calibration is None:
            continue
        estimate = calibration.estimate(values)
        expected[name], floor[name] = estimate.expected_dsc, estimate.floor_dsc
        if estimate.low:
            detail = f"{estimate.floor_dsc:.2f}"
            flags.append(Flag(FlagCode.LOW_EXPECTED_DSC, name, estimate.expected_dsc, detail))
    return Quality(expected, floor, tuple(flags))


def features_of(
    found: Sequence[str],
    labels: Mask,
    intensities: NDArray[np.floating] | NDArray[np.integer],
    windows: Windows,
    spacing_mm: tuple[float, float, float],
    boxes: Sequence[Box | None],
    volumes_ml: Mapping[str, float],
    contract: Contract,
) -> dict[str, dict[str, float]]:
    """Features of structures by name; those too small to have any are left out.

    Args:
        found: the structures that count as found.
        labels: (D, H, W) after clean-up.
        intensities: (D, H, W), of the first channel.
        windows: (C, 2).
        spacing_mm: of the voxels.
        boxes: around the labels from 1 on.
        volumes_ml: of all structures.
        contract: the model's.
    """
    partners = mirrored_labels(contract.labels)
    window = (float(windows[0, 0]), float(windows[0, 1]))
    features = {}
    for value, (name, box) in enumerate(zip(contract.labels[1:], boxes, strict=True), start=1):
        if name not in found or box is None:
            continue
        partner = contract.labels[partners[value]]
        other_ml = volumes_ml[partner] if partner != name else 0.0
        values = gland_features(labels, intensities, window, spacing_mm, value, box, volumes_ml[name], other_ml)
        if values is not None:
            features[name] = values
    return features
