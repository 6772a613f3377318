"""Agreement of a mask with a reference: the definitions of all figures that the project reports.

Voxel overlaps follow the usual definitions; surface distances are taken between the boundary voxels' centres, in mm,
with the scan's spacing along each axis.

The handling of empty masks is defined here only. As sets of voxels two empty masks are equal (`dice` 1, distance 0), as
needed for comparisons of two predictions; if only one is empty they disagree completely (DSC 0, distance infinite). In
an evaluation, a structure that is absent in prediction and reference has no figures (NaN), so that it never raises a
mean. nnU-Net does the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from parotid_seg.errors import InputError

Binary = NDArray[np.bool_]
Labels = NDArray[np.uint8]
Spacing = tuple[float, float, float]


@dataclass(frozen=True)
class LabelScores:
    """Agreement of one structure in one case; all but the volumes are NaN if the structure is absent in both masks.

    Attributes:
        dsc: Dice similarity coefficient, 0 to 1.
        iou: intersection over union, 0 to 1.
        accuracy: share of the reference's voxels that were found (recall).
        hd_mm, hd95_mm: Hausdorff distance and its 95th percentile.
        volume_ml, reference_ml, volume_error_ml: prediction, reference, and their signed difference.
    """

    dsc: float
    iou: float
    accuracy: float
    hd_mm: float
    hd95_mm: float
    volume_ml: float
    reference_ml: float
    volume_error_ml: float

    @property
    def absent(self) -> bool:
        """Whether neither mask shows the structure."""
        return self.volume_ml == self.reference_ml == 0


@dataclass(frozen=True)
class CaseScores:
    """Agreement of one case over all labels. Means exclude structures that are absent in both masks.

    Attributes:
        mpa: share of all voxels, background included, that have the right label (the papers' MPA).
        macc: mean over the labels, background included, of the share of the reference's voxels found (mAcc).
        miou: mean over the labels, background included, of intersection over union.
        labels: scores of each structure by its name.
        ignored_ml: volume of the voxels that are not scored, because the reference leaves them unlabelled.
    """

    mpa: float
    macc: float
    miou: float
    labels: dict[str, LabelScores]
    ignored_ml: float = 0.0


def dice(prediction: Binary, reference: Binary) -> float:
    """Dice similarity coefficient of two binary masks of one shape; 1.0 if both are empty.

    Raises:
        InputError: if shapes differ.
    """
    _check_shapes(prediction, reference)
    total = int(np.count_nonzero(prediction)) + int(np.count_nonzero(reference))
    return 2.0 * int(np.count_nonzero(prediction & reference)) / total if total else 1.0


def iou(prediction: Binary, reference: Binary) -> float:
    """Intersection over union of two binary masks of one shape; 1.0 if both are empty.

    Raises:
        InputError: if shapes differ.
    """
    _check_shapes(prediction, reference)
    union = int(np.count_nonzero(prediction | reference))
    return int(np.count_nonzero(prediction & reference)) / union if union else 1.0


def accuracy(prediction: Binary, reference: Binary) -> float:
    """Share of the reference's voxels that are also in the prediction (recall).

    Returns:
        For an empty reference 1.0 if the prediction is empty as well, else 0.0.

    Raises:
        InputError: if shapes differ.
    """
    _check_shapes(prediction, reference)
    total = int(np.count_nonzero(reference))
    if not total:
        return 0.0 if prediction.any() else 1.0
    return int(np.count_nonzero(prediction & reference)) / total


def volume_ml(mask: Binary, spacing_mm: Spacing) -> float:
    """Volume of a binary mask in millilitres."""
    return int(np.count_nonzero(mask)) * float(np.prod(spacing_mm)) / 1000.0


def hausdorff_mm(prediction: Binary, reference: Binary, spacing_mm: Spacing, *, percentile: float = 100.0) -> float:
    """Symmetric surface distance between two binary masks at a percentile, in mm (100 = Hausdorff, 95 = HD95).

    A mask's surface is its voxels that touch the outside by a face (the volume's border counts as outside). The
    percentile is taken over each direction's distances, and the larger of the two directions is returned.

    Args:
        prediction: bool array (D, H, W).
        reference: bool array of the same shape.
        spacing_mm: voxel size along each axis, same order.
        percentile: 0 to 100.

    Returns:
        0.0 if both masks are empty; inf if exactly one is.

    Raises:
        InputError: if shapes differ or a spacing is not positive and finite.
    """
    return surface_distances_mm(prediction, reference, spacing_mm, percentiles=(percentile,))[0]


def surface_distances_mm(
    prediction: Binary, reference: Binary, spacing_mm: Spacing, *, percentiles: Sequence[float] = (100.0, 95.0)
) -> tuple[float, ...]:
    """`hausdorff_mm` at several percentiles from one distance transform. Arguments and errors as there."""
    _check_shapes(prediction, reference)
    if not (np.isfinite(spacing_mm).all() and min(spacing_mm) > 0 and len(spacing_mm) == prediction.ndim):
        raise InputError(f"spacing_mm: found {spacing_mm}, expected {prediction.ndim} positive, finite numbers")
    if not prediction.any() and not reference.any():
        return tuple(0.0 for _ in percentiles)
    if not prediction.any() or not reference.any():
        return tuple(float("inf") for _ in percentiles)
    box = ndimage.find_objects(np.asarray(prediction | reference, dtype=np.uint8))[0]
    surface_a, surface_b = _surface(prediction[box]), _surface(reference[box])
    a_to_b = ndimage.distance_transform_edt(~surface_b, sampling=spacing_mm)[surface_a]
    b_to_a = ndimage.distance_transform_edt(~surface_a, sampling=spacing_mm)[surface_b]
    return tuple(float(max(np.percentile(a_to_b, each), np.percentile(b_to_a, each))) for each in percentiles)


def score_case(
    prediction: Labels,
    reference: Labels,
    spacing_mm: Spacing,
    names: Sequence[str],
    ignored: Binary | None = None,
) -> CaseScores:
    """All figures of one case.

    Args:
        prediction: label map (D, H, W).
        reference: label map of the same shape.
        spacing_mm: voxel size along the same axes.
        names: label names by value, background first.
        ignored: (D, H, W), voxels that are excluded from all figures.

    Raises:
        InputError: if shapes differ, a spacing is not positive and finite, or every voxel is ignored.
    """
    _check_shapes(prediction, reference)
    scored: Binary = np.ones(reference.shape, np.bool_)
    if ignored is not None:
        _check_shapes(prediction, ignored)
        scored = ~ignored
        prediction, reference = np.where(scored, prediction, 0), np.where(scored, reference, 0)
    if not scored.any():
        raise InputError("every voxel is ignored, expected some to score")
    labels = {
        name: _score_label(prediction == value, reference == value, spacing_mm)
        for value, name in enumerate(names[1:], start=1)
    }
    shown = [scores for scores in labels.values() if not scores.absent]
    background = (prediction == 0) & scored, (reference == 0) & scored
    return CaseScores(
        mpa=float(np.mean((prediction == reference)[scored])),
        macc=float(np.mean([accuracy(*background), *(scores.accuracy for scores in shown)])),
        miou=float(np.mean([iou(*background), *(scores.iou for scores in shown)])),
        labels=labels,
        ignored_ml=volume_ml(~scored, spacing_mm),
    )


def _score_label(predicted: Binary, expected: Binary, spacing_mm: Spacing) -> LabelScores:
    volume, reference_volume = volume_ml(predicted, spacing_mm), volume_ml(expected, spacing_mm)
    hd, hd95 = surface_distances_mm(predicted, expected, spacing_mm)
    if not volume and not reference_volume:
        nan = float("nan")
        return LabelScores(nan, nan, nan, nan, nan, volume, reference_volume, nan)
    return LabelScores(
        dsc=dice(predicted, expected),
        iou=iou(predicted, expected),
        accuracy=accuracy(predicted, expected),
        hd_mm=hd,
        hd95_mm=hd95,
        volume_ml=volume,
        reference_ml=reference_volume,
        volume_error_ml=volume - reference_volume,
    )


def bootstrap_mean(
    values: Sequence[float], *, confidence: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> tuple[float, float, float]:
    """Mean with a percentile bootstrap interval over cases (Efron & Tibshirani 1993).

    Returns:
        (mean, lower end, upper end); three NaN for no values.
    """
    sample = np.asarray(values, dtype=np.float64)
    if not sample.size:
        return float("nan"), float("nan"), float("nan")
    draws = np.random.default_rng(seed).integers(0, sample.size, size=(resamples, sample.size))
    means = sample[draws].mean(axis=1)
    tail = 50.0 * (1.0 - confidence)
    low, high = np.percentile(means, [tail, 100.0 - tail])
    return float(sample.mean()), float(low), float(high)


def _surface(mask: Binary) -> Binary:
    inside = ndimage.binary_erosion(mask, structure=ndimage.generate_binary_structure(mask.ndim, 1), border_value=0)
    return np.asarray(mask & ~inside, dtype=np.bool_)


def _check_shapes(prediction: NDArray[np.generic], reference: NDArray[np.generic]) -> None:
    if prediction.shape != reference.shape:
        raise InputError(f"masks of different shapes: found {prediction.shape} and {reference.shape}")
