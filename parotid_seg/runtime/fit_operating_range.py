"""Makes a model's operating range from the scans and masks of patients that it was not trained on.

For each feature the range goes from the 5th to the 95th percentile of the patients, and beyond these by a margin: the
same share of their distance for all features. The margin is a conformal quantile. With each of n patients left out in
turn, the range of the others is extended until that patient is inside, and of these extensions the margin is the one at
the place ceil(0.9 (n + 1)), as for the floor of `runtime.fit_calibration`. So at most one in ten patients of the same
kind is outside, whatever the number of features.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np

from parotid_seg.contract import Contract
from parotid_seg.operating_range import OUTSIDE, FeatureRange, OperatingRange
from parotid_seg.runtime.fit_calibration import LEAST_PATIENTS, mask_features
from parotid_seg.runtime.segmentation.range_features import (
    SCAN_FEATURES,
    STRUCTURE_FEATURES,
    RangeFeatures,
    range_features,
)
from parotid_seg.scan.components import label_boxes
from parotid_seg.scan.volume import Mask, Volume

TAIL = 0.05
"""Share of the values below, and above, the percentiles."""

Ends = Mapping[tuple[str, str], tuple[float, float]]
"""The percentiles of each feature, by part ("scan" or "structures") and name."""


class SeenPatient(NamedTuple):
    """A patient that the model was not trained on.

    Attributes:
        patient: any name.
        seen: features, see `runtime.segmentation.range_features`.
    """

    patient: str
    seen: RangeFeatures


def seen_patient(patient: str, volume: Volume, mask: Mask, contract: Contract) -> SeenPatient:
    """The features of a patient's scan and of the structures in the model's mask.

    Args:
        patient: any name.
        volume: the scan.
        mask: of the model, after clean-up (D, H, W).
        contract: the model's.

    Raises:
        ScanError: as `segment.prepare`.
    """
    prepared, features = mask_features(volume, mask, contract)
    covered = prepared.crop_to_grid()
    labels = mask[:, covered.rows, covered.columns]
    boxes = label_boxes(labels, len(contract.labels) - 1)
    return SeenPatient(patient, range_features(list(features), labels, covered, boxes, contract, features))


def operating_range(patients: Iterable[SeenPatient], made: str) -> OperatingRange | None:
    """The range in which at least nine of ten patients of the same kind lie; None for fewer than `LEAST_PATIENTS`.

    Args:
        patients: those that the model was not trained on.
        made: see `OperatingRange`.
    """
    known = list(patients)
    if len(known) < LEAST_PATIENTS:
        return None
    beyond = sorted(
        extension_of(each.seen, _ends(other.seen for other in known if other is not each)) for each in known
    )
    margin = beyond[math.ceil((1 - OUTSIDE) * (len(known) + 1)) - 1]
    ranges: dict[str, list[FeatureRange]] = {"scan": [], "structures": []}
    for (part, name), (low, high) in _ends(each.seen for each in known).items():
        more = margin * (high - low)
        least = low - more if low < 0 else max(0.0, low - more)  # of a feature that is never negative
        ranges[part].append(FeatureRange(name, round(least, 5), round(high + more, 5)))
    scan, structures = (tuple(ranges[part]) for part in ("scan", "structures"))
    return OperatingRange(scan, structures, margin=round(margin, 5), patients=len(known), made=made)


def extension_of(seen: RangeFeatures, ends: Ends) -> float:
    """By how much the ranges must be extended so that a patient is inside, as a share of the percentiles' distance."""
    farthest = 0.0
    for part, values in (("scan", seen.scan), *(("structures", each) for each in seen.structures.values())):
        for name, value in values.items():
            if (part, name) in ends:
                low, high = ends[part, name]
                farthest = max(farthest, (value - high) / (high - low), (low - value) / (high - low))
    return farthest


def _ends(patients: Iterable[RangeFeatures]) -> dict[tuple[str, str], tuple[float, float]]:
    """The percentiles of all features that are not the same for all patients."""
    known = list(patients)
    values = {("scan", name): [each.scan[name] for each in known if name in each.scan] for name in SCAN_FEATURES}
    values |= {
        ("structures", name): [each[name] for seen in known for each in seen.structures.values() if name in each]
        for name in STRUCTURE_FEATURES
    }
    ends = {key: np.quantile(each, (TAIL, 1 - TAIL)).tolist() for key, each in values.items() if each}
    return {key: (low, high) for key, (low, high) in ends.items() if high - low > 1e-9}
