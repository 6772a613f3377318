"""Agreement of a mask with a reference: the definitions of all figures that the project reports.

Voxel overlaps follow the usual definitions; Hausdorff distances are taken between the boundary voxels' centres, in mm,
with the scan's spacing along each axis. Surface DSC is that of DeepMind's package surface-distance.

The handling of empty masks is defined here only. As sets of voxels two empty masks are equal (`dice` 1, distance 0), as
needed for comparisons of two predictions; if only one is empty they disagree completely (DSC 0, distance infinite). In
an evaluation, a structure that is absent in prediction and reference has no figures (NaN), so that it never raises a
mean. nnU-Net does the same.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage, special

from parotid_seg.errors import InputError
from parotid_seg.metrics import surface_voxels
from parotid_seg.metrics.surface_elements import areas_mm2, corner_codes
from parotid_seg.metrics.surface_voxels import Planes, distances_mm, inside_along, occupied_planes

Binary = NDArray[np.bool_]
Labels = NDArray[np.uint8]
Spacing = tuple[float, float, float]
NAN = float("nan")

TOLERANCES_MM = (1.0, 2.0, 3.0)
"""Tolerances of the reported surface DSC."""
ROUNDING = 1e-6
"""Relative error of distances, as headers state voxel axes in float32: a distance of the tolerance is within it."""
SURFACE_FIGURES = tuple(f"surface_dsc_{tolerance:g}mm" for tolerance in TOLERANCES_MM)


@dataclass(frozen=True)
class LabelScores:
    """Agreement of one structure in one case; all but the volumes are NaN if the structure is absent in both masks.

    Attributes:
        dsc: Dice similarity coefficient, 0 to 1.
        iou: intersection over union, 0 to 1.
        accuracy: share of the reference's voxels that were found (recall).
        hd_mm, hd95_mm: Hausdorff distance and its 95th percentile.
        surface_dsc_1mm, surface_dsc_2mm, surface_dsc_3mm: see `surface_dice`.
        apl_mm: see `added_path_length_mm`.
        volume_ml, reference_ml, volume_error_ml: prediction, reference, and their signed difference.
        mean_gy, reference_mean_gy, mean_error_gy: mean dose of prediction and reference, and their signed difference;
            NaN without a dose, for an empty mask, and for one outside the dose grid.
    """

    dsc: float
    iou: float
    accuracy: float
    hd_mm: float
    hd95_mm: float
    surface_dsc_1mm: float
    surface_dsc_2mm: float
    surface_dsc_3mm: float
    apl_mm: float
    volume_ml: float
    reference_ml: float
    volume_error_ml: float
    mean_gy: float = NAN
    reference_mean_gy: float = NAN
    mean_error_gy: float = NAN

    @property
    def absent(self) -> bool:
        """Whether neither mask shows the structure."""
        return self.volume_ml == self.reference_ml == 0

    @property
    def mean_error_abs_gy(self) -> float:
        """Absolute difference of the mean doses."""
        return abs(self.mean_error_gy)


@dataclass(frozen=True)
class CaseScores:
    """Agreement of one case over all labels. Means exclude structures that are absent in both masks.

    Attributes:
        mpa: share of all voxels, background included, that have the right label (the papers' MPA).
        macc: mean over the labels, background included, of the share of the reference's voxels found (mAcc, a recall).
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
        InputError: if shapes differ, or a mask is neither bool nor whole numbers 0 and 1.
    """
    _check_binary(prediction, reference)
    total = int(np.count_nonzero(prediction)) + int(np.count_nonzero(reference))
    return 2.0 * int(np.count_nonzero(prediction & reference)) / total if total else 1.0


def iou(prediction: Binary, reference: Binary) -> float:
    """Intersection over union of two binary masks of one shape; 1.0 if both are empty.

    Raises:
        InputError: if shapes differ, or a mask is neither bool nor whole numbers 0 and 1.
    """
    _check_binary(prediction, reference)
    union = int(np.count_nonzero(prediction | reference))
    return int(np.count_nonzero(prediction & reference)) / union if union else 1.0


def accuracy(prediction: Binary, reference: Binary) -> float:
    """Share of the reference's voxels that are also in the prediction (recall).

    Returns:
        For an empty reference 1.0 if the prediction is empty as well, else 0.0.

    Raises:
        InputError: if shapes differ, or a mask is neither bool nor whole numbers 0 and 1.
    """
    _check_binary(prediction, reference)
    total = int(np.count_nonzero(reference))
    if not total:
        return 0.0 if prediction.any() else 1.0
    return int(np.count_nonzero(prediction & reference)) / total


def volume_ml(mask: Binary, spacing_mm: Spacing) -> float:
    """Volume of a binary mask in millilitres.

    Raises:
        InputError: if it is neither bool nor whole numbers 0 and 1.
    """
    _check_binary(mask)
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
        InputError: if shapes differ, a mask is neither bool nor whole numbers 0 and 1, or a spacing is not positive
            and finite.
    """
    return surface_distances_mm(prediction, reference, spacing_mm, percentiles=(percentile,))[0]


def surface_distances_mm(
    prediction: Binary, reference: Binary, spacing_mm: Spacing, *, percentiles: Sequence[float] = (100.0, 95.0)
) -> tuple[float, ...]:
    """`hausdorff_mm` at several percentiles from the same distances. Arguments and errors as there."""
    _check_masks(prediction, reference, spacing_mm)
    if not prediction.any() and not reference.any():
        return tuple(0.0 for _ in percentiles)
    if not prediction.any() or not reference.any():
        return tuple(float("inf") for _ in percentiles)
    prediction, reference, planes = _cropped(prediction, reference)
    a_to_b, b_to_a = distances_mm(_surface(prediction), _surface(reference), spacing_mm, planes)
    return tuple(float(max(np.percentile(a_to_b, each), np.percentile(b_to_a, each))) for each in percentiles)


def surface_dice(
    prediction: Binary, reference: Binary, spacing_mm: Spacing, tolerances_mm: Sequence[float] = TOLERANCES_MM
) -> tuple[float, ...]:
    """Surface DSC at tolerances: the share of both surfaces that lies within the tolerance of the other one.

    Nikolov et al., J Med Internet Res 2021;23(7):e26151. Surfaces are those of marching cubes between voxel centres,
    with elements weighted by their area, and distances run between the corners of voxels, as in the package
    surface-distance.

    Args:
        prediction: bool array (D, H, W).
        reference: bool array of the same shape.
        spacing_mm: voxel size along each axis, same order.
        tolerances_mm: in mm.

    Returns:
        1.0 if both masks are empty; 0.0 if exactly one is.

    Raises:
        InputError: as `hausdorff_mm`.
    """
    _check_masks(prediction, reference, spacing_mm)
    if not prediction.any() or not reference.any():
        return tuple(float(prediction.any() == reference.any()) for _ in tolerances_mm)
    areas = areas_mm2(spacing_mm)
    surfaces, weights = [], []
    prediction, reference, planes = _cropped(prediction, reference)
    for mask in (prediction, reference):
        codes = corner_codes(mask)
        surfaces.append((codes > 0) & (codes < 255))
        weights.append(areas[codes[surfaces[-1]]])
    distances = distances_mm(surfaces[0], surfaces[1], spacing_mm, planes)
    weight, distance = np.concatenate(weights), np.concatenate(distances)
    limits = [tolerance * (1 + ROUNDING) for tolerance in tolerances_mm]
    return tuple(float(weight[distance <= limit].sum() / weight.sum()) for limit in limits)


def added_path_length_mm(prediction: Binary, reference: Binary, spacing_mm: Spacing) -> float:
    """Added path length: mm of the reference's outline, slice by slice, that the prediction's does not have.

    Vaassen et al., Phys Imaging Radiat Oncol 2020;13:1-6. An outline is the mask's voxels that touch the outside by a
    side within their slice; it coincides where both masks have the same voxel in it. A voxel counts with its size along
    the outline, and one at a corner with the mean of its two sizes; with square voxels that is the number of voxels
    times their size, as published.

    Args:
        prediction: bool array (D, H, W), slices first.
        reference: bool array of the same shape.
        spacing_mm: voxel size along each axis, same order.

    Raises:
        InputError: as `hausdorff_mm`.
    """
    _check_masks(prediction, reference, spacing_mm)
    if not reference.any():
        return 0.0
    prediction, reference, _ = _cropped(prediction, reference)
    _, row_mm, column_mm = spacing_mm
    predicted_down, predicted_across = (_open_along(prediction, axis) for axis in (1, 2))
    down, across = (_open_along(reference, axis) for axis in (1, 2))
    added = (down | across) & ~(predicted_down | predicted_across)
    lengths = (down & ~across, column_mm), (across & ~down, row_mm), (down & across, (row_mm + column_mm) / 2)
    return float(sum(np.count_nonzero(part & added) * length for part, length in lengths))


def _open_along(mask: Binary, axis: int) -> Binary:
    """Voxels of a mask that touch the outside along an axis."""
    return np.asarray(mask & ~inside_along(mask, (axis,)), dtype=np.bool_)


def score_case(
    prediction: Labels,
    reference: Labels,
    spacing_mm: Spacing,
    names: Sequence[str],
    ignored: Binary | None = None,
    shear: float = 1.0,
) -> CaseScores:
    """All figures of one case.

    Args:
        prediction: label map (D, H, W).
        reference: label map of the same shape.
        spacing_mm: voxel size along the same axes.
        names: label names by value, background first.
        ignored: (D, H, W), voxels that are excluded from all figures.
        shear: volume of a voxel over the product of its spacings, for volumes; distances are computed with axes at
            right angles.

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
    box = _box_of_both(prediction > 0, reference > 0)
    labels = {
        name: _score_label(prediction[box] == value, reference[box] == value, spacing_mm, shear)
        for value, name in enumerate(names[1:], start=1)
    }
    shown = [scores for scores in labels.values() if not scores.absent]
    background = (prediction == 0) & scored, (reference == 0) & scored
    return CaseScores(
        mpa=float(np.mean((prediction == reference)[scored])),
        macc=float(np.mean([accuracy(*background), *(scores.accuracy for scores in shown)])),
        miou=float(np.mean([iou(*background), *(scores.iou for scores in shown)])),
        labels=labels,
        ignored_ml=volume_ml(~scored, spacing_mm) * shear,
    )


def _score_label(predicted: Binary, expected: Binary, spacing_mm: Spacing, shear: float) -> LabelScores:
    volume, reference_volume = (volume_ml(mask, spacing_mm) * shear for mask in (predicted, expected))
    hd, hd95 = surface_distances_mm(predicted, expected, spacing_mm)
    if not volume and not reference_volume:
        absent = dict.fromkeys((each.name for each in fields(LabelScores)), NAN)
        return LabelScores(**absent | {"volume_ml": volume, "reference_ml": reference_volume})
    return LabelScores(
        dsc=dice(predicted, expected),
        iou=iou(predicted, expected),
        accuracy=accuracy(predicted, expected),
        hd_mm=hd,
        hd95_mm=hd95,
        **dict(zip(SURFACE_FIGURES, surface_dice(predicted, expected, spacing_mm), strict=True)),
        apl_mm=added_path_length_mm(predicted, expected, spacing_mm),
        volume_ml=volume,
        reference_ml=reference_volume,
        volume_error_ml=volume - reference_volume,
    )


def bootstrap_mean(
    values: Sequence[float], *, confidence: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> tuple[float, float, float]:
    """Mean with a percentile bootstrap interval over cases (Efron & Tibshirani 1993).

    Returns:
        (mean, lower end, upper end); three NaN for no values, and NaN for the ends of one, which has no interval.
    """
    sample = np.asarray(values, dtype=np.float64)
    if not sample.size:
        return float("nan"), float("nan"), float("nan")
    if sample.size == 1:
        return float(sample[0]), float("nan"), float("nan")
    draws = np.random.default_rng(seed).integers(0, sample.size, size=(resamples, sample.size))
    means = sample[draws].mean(axis=1)
    tail = 50.0 * (1.0 - confidence)
    low, high = np.percentile(means, [tail, 100.0 - tail])
    return float(sample.mean()), float(low), float(high)


def mean_with_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Mean with its 95 % bootstrap interval over cases, widened for few of them: (mean, lower end, upper end).

    Percentile intervals of few cases are too narrow, by the factors between the t and the normal distribution, and
    between the standard deviations with n - 1 and with n (Hesterberg, Am Stat 2015;69(4):371-386, 5.2). Of two cases
    they would contain the true mean in about half of all samples.
    """
    count = len(values)
    if count < 2:
        return bootstrap_mean(values)
    reach = math.sqrt(count / (count - 1)) * special.stdtrit(count - 1, 0.975)
    return bootstrap_mean(values, confidence=float(1 - 2 * special.ndtr(-reach)))


def _surface(mask: Binary) -> Binary:
    return np.asarray(mask & ~inside_along(mask, range(mask.ndim)), dtype=np.bool_)


def _cropped(prediction: Binary, reference: Binary) -> tuple[Binary, Binary, Planes | None]:
    """Two masks within the box of both; of a large box those planes alone that are in or beside a mask, and which."""
    box = _box_of_both(prediction, reference)
    prediction, reference = prediction[box], reference[box]
    if prediction.size <= surface_voxels.LARGEST_BOX:
        return prediction, reference, None
    planes = occupied_planes(prediction | reference)
    return prediction[np.ix_(*planes)], reference[np.ix_(*planes)], planes


def _box_of_both(prediction: Binary, reference: Binary) -> tuple[slice, ...]:
    """The part of two masks outside which both are empty; without voxels if they are empty."""
    boxes = ndimage.find_objects(np.asarray(prediction | reference, dtype=np.uint8))
    return boxes[0] if boxes else (slice(0),) * prediction.ndim


def _check_masks(prediction: Binary, reference: Binary, spacing_mm: Spacing) -> None:
    _check_binary(prediction, reference)
    if not (np.isfinite(spacing_mm).all() and min(spacing_mm) > 0 and len(spacing_mm) == prediction.ndim):
        raise InputError(f"spacing_mm: found {spacing_mm}, expected {prediction.ndim} positive, finite numbers")


def _check_binary(*masks: Binary) -> None:
    for mask in masks:
        if mask.dtype != np.bool_ and not (mask.dtype.kind in "iu" and np.isin(mask, (0, 1)).all()):
            raise InputError(f"mask: found an array of {mask.dtype}, expected bool, as in labels == 1")
    _check_shapes(masks[0], masks[-1])


def _check_shapes(prediction: NDArray[np.generic], reference: NDArray[np.generic]) -> None:
    if prediction.shape != reference.shape:
        raise InputError(f"masks of different shapes: found {prediction.shape} and {reference.shape}")
