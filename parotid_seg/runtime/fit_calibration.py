"""Makes a model's calibration and its operating range from masks of patients it was not trained on.

The calibration also takes their contours. Its coefficients are those of a ridge regression of the DSC on standardised
features. The margin of the floor is a conformal quantile: with each patient left out in turn, the errors of the
predictions for n structures are sorted, and the margin is the one at the place ceil(0.9 (n + 1)) (V. Vovk et al.,
"Algorithmic Learning in a Random World", 2005; leaving out as in R. F. Barber et al., "Predictive inference with the
jackknife+", Annals of Statistics 49, 2021). Both glands of a patient are counted although they are not independent.

The operating range of a feature goes from the 5th to the 95th percentile of the patients, and beyond these by a margin:
the same share of their distance for all features. The margin is a conformal quantile, too. With each of n patients left
out in turn, the range of the others is extended until that patient is inside, and of these extensions the margin is the
one at the place ceil(0.9 (n + 1)). So at most one in ten patients of the same kind is outside, whatever the number of
features. Of `WIDER` features the margin above is a multiple of the others'.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from parotid_seg.calibration import COVERAGE, OUTSIDE, Calibration, Feature, FeatureRange, OperatingRange
from parotid_seg.contract import Contract
from parotid_seg.metrics import dice
from parotid_seg.runtime.segmentation.features import (
    SCAN_FEATURES,
    STRUCTURE_FEATURES,
    RangeFeatures,
    range_features,
)
from parotid_seg.runtime.segmentation.locate import Prepared
from parotid_seg.runtime.segmentation.quality import features_of
from parotid_seg.runtime.segmentation.segment import is_missing, prepare
from parotid_seg.scan.components import label_boxes
from parotid_seg.scan.labels import mirrored_labels
from parotid_seg.scan.volume import Mask, Volume

LEAST_PATIENTS, LEAST_GLANDS = 10, 20
"""Fewer give no calibration."""
RIDGE = 10.0
"""Penalty on the squared coefficients, in structures: few patients pull them towards 0."""
REVIEWED = 0.15
"""Share of structures of unseen patients that are flagged for their expected DSC."""
OUTLIER = 3.0
"""A DSC further below the lower quartile than this many quartile ranges counts as one there in the regression, since a
contour of something else than the gland says nothing about the features. It counts fully for the floor."""
TAIL = 0.05
"""Share of the values below, and above, the percentiles."""
WIDER: Mapping[str, float] = {"turn_mm": 3.0, "sharpness": 1.5}
"""Multiples of the margin above the 95th percentile: heads turned, or scans noisier, than those of most patients hardly
change the masks, as training turns its slices and adds noise to them. Chosen on such scans (docs/model-card.md)."""

Ends = Mapping[tuple[str, str], tuple[float, float]]
"""The percentiles of each feature, by part ("scan" or "structures") and name."""


@dataclass(frozen=True)
class Gland:
    """A structure of a patient that the model was not trained on.

    Attributes:
        patient: any name.
        structure: the label.
        features: see `runtime.segmentation.features`.
        dsc: of mask and contour.
    """

    patient: str
    structure: str
    features: dict[str, float]
    dsc: float


def glands_of(patient: str, volume: Volume, mask: Mask, contour: Mask, contract: Contract) -> list[Gland]:
    """The structures of a patient that are in both the model's mask and the contour.

    Args:
        patient: any name.
        volume: the scan.
        mask: of the model, after clean-up (D, H, W).
        contour: labels drawn by a person (D, H, W).
        contract: the model's.

    Raises:
        ScanError: as `segment.prepare`.
    """
    names = contract.labels[1:]
    _, features = mask_features(volume, mask, contract)
    return [
        Gland(patient, name, features[name], dice(mask == value, contour == value))
        for value, name in enumerate(names, start=1)
        if name in features and (contour == value).any()
    ]


def mask_features(volume: Volume, mask: Mask, contract: Contract) -> tuple[Prepared, dict[str, dict[str, float]]]:
    """A scan prepared for the model, and the features of the structures in a mask; see `glands_of`."""
    prepared = prepare(volume, contract)
    names = contract.labels[1:]
    volumes = {
        name: float(np.count_nonzero(mask == value)) * volume.voxel_ml for value, name in enumerate(names, start=1)
    }
    found = [name for name, size in volumes.items() if size and not is_missing(name, size)]
    intensities, windows = prepared.volume.voxels[0], prepared.windows
    boxes = label_boxes(mask, len(names))
    return prepared, features_of(found, mask, intensities, windows, volume.spacing_mm, boxes, volumes, contract)


def calibrate(glands: Iterable[Gland], contract: Contract, made: str) -> tuple[Calibration, ...]:
    """The calibrations of all structures for which there are enough patients; left and right share one.

    Args:
        glands: of patients that the model was not trained on.
        contract: the model's.
        made: see `Calibration`.
    """
    known = list(glands)
    partners = mirrored_labels(contract.labels)
    groups = dict.fromkeys(tuple(sorted({value, partners[value]})) for value in range(1, len(partners)))
    calibrations = []
    for group in groups:
        structures = tuple(contract.labels[value] for value in group)
        chosen = [each for each in known if each.structure in structures]
        if len(chosen) >= LEAST_GLANDS and len({each.patient for each in chosen}) >= LEAST_PATIENTS:
            calibrations.append(_calibration(structures, chosen, made))
    return tuple(calibrations)


def left_out_estimates(structures: tuple[str, ...], glands: Sequence[Gland]) -> NDArray[np.float64]:
    """The expected DSC of each structure, by a line through the structures of the other patients.

    The features are those of the first structure; all must have them.
    """
    expected = np.zeros(len(glands))
    for patient in {each.patient for each in glands}:
        line = _line(structures, [each for each in glands if each.patient != patient])
        for index, each in enumerate(glands):
            if each.patient == patient:
                expected[index] = line.estimate(each.features).expected_dsc
    return expected


def _calibration(structures: tuple[str, ...], glands: Sequence[Gland], made: str) -> Calibration:
    dsc = np.array([each.dsc for each in glands])
    expected = left_out_estimates(structures, glands)
    place = math.ceil(COVERAGE * (len(glands) + 1))
    line = _line(structures, glands)
    return Calibration(
        structures,
        tuple(
            Feature(each.name, *(round(value, 5) for value in (each.mean, each.deviation, each.weight)))
            for each in line.features
        ),
        intercept=round(line.intercept, 5),
        margin=round(float(np.sort(expected - dsc)[place - 1]), 5),
        review_below=round(float(np.quantile(expected, REVIEWED)), 5),
        patients=len({each.patient for each in glands}),
        glands=len(glands),
        mean_dsc=round(float(dsc.mean()), 4),
        correlation=round(float(stats.spearmanr(expected, dsc).statistic), 4) if np.ptp(expected) else 0.0,
        made=made,
    )


def _line(structures: tuple[str, ...], glands: Sequence[Gland]) -> Calibration:
    """The regression alone, without margin. Features that are equal for all structures are left out."""
    names = list(glands[0].features)
    values = np.array([[each.features[name] for name in names] for each in glands])
    dsc = np.array([each.dsc for each in glands])
    low, high = np.quantile(dsc, (0.25, 0.75))
    dsc = np.maximum(dsc, low - OUTLIER * (high - low))
    mean, deviation = values.mean(axis=0), values.std(axis=0)
    used = np.flatnonzero(deviation > 1e-9)
    standard = (values[:, used] - mean[used]) / deviation[used]
    weights = np.linalg.solve(standard.T @ standard + RIDGE * np.eye(len(used)), standard.T @ (dsc - dsc.mean()))
    features = tuple(
        Feature(names[index], float(mean[index]), float(deviation[index]), float(weight))
        for index, weight in zip(used, weights, strict=True)
    )
    intercept = float(dsc.mean())
    return Calibration(structures, features, intercept, 0.0, 0.0, 0, len(glands), intercept, 0.0, "")


class SeenPatient(NamedTuple):
    """A patient that the model was not trained on.

    Attributes:
        patient: any name.
        seen: features, see `runtime.segmentation.features`.
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
    cropped = prepared.crop_to_grid()
    labels = mask[:, cropped.rows, cropped.columns]
    boxes = label_boxes(labels, len(contract.labels) - 1)
    return SeenPatient(patient, range_features(list(features), labels, cropped, boxes, contract, features))


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
        ranges[part].append(FeatureRange(name, round(least, 5), round(high + WIDER.get(name, 1.0) * more, 5)))
    scan, structures = (tuple(ranges[part]) for part in ("scan", "structures"))
    return OperatingRange(scan, structures, margin=round(margin, 5), patients=len(known), made=made)


def extension_of(seen: RangeFeatures, ends: Ends) -> float:
    """The margin with which a patient is inside, as a share of the percentiles' distance; see `WIDER`."""
    farthest = 0.0
    for part, values in (("scan", seen.scan), *(("structures", each) for each in seen.structures.values())):
        for name, value in values.items():
            if (part, name) in ends:
                low, high = ends[part, name]
                above = (value - high) / WIDER.get(name, 1.0)
                farthest = max(farthest, above / (high - low), (low - value) / (high - low))
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
