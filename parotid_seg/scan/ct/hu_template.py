"""A scan's histogram, and the template of a head and neck CT that is fitted to it: see `scan.ct.hounsfield`."""

from __future__ import annotations

import functools

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

Counts = NDArray[np.float64]

LOW, HIGH = -4096, 8192
"""Range of the histogram with bins of one unit; values beyond are in its outermost bins."""
FIRST, LAST, BIN = -1200, 2000, 10
"""Range and width of the bins that are compared with the template."""
SCALES = np.exp(np.arange(-0.96, 0.97, 0.06))
"""Scales of the fit, including 1."""
LARGEST_OFFSET = 400
"""Largest offset of the fit in both directions, in steps of a bin."""
UNEXPLAINED = 0.07
"""Share of the voxels that may have any value in the template."""
MOST_AIR = 0.25
"""Most weight of air and nearly air, as a share of the tissue, because most of it lies around the patient."""

TISSUE = -300
"""HU above which tissue lies, partial volume included; fat is near -100 HU and soft tissue near 40."""
SOFT, FAT = 20.0, -113.0
"""Intensities of soft tissue and fat in the template: the medians of the 243 scans."""
SOFT_RANGE = (-45.0, 90.0)
"""Range of soft tissue of a CT in HU; the 243 scans: -21 to 41. A contrast agent adds 20 to 40."""
SCALE_RANGE = (0.74, 1.55)
"""Range of scales of a CT in HU, including noisy ones with wide peaks. Some low-noise scans have 0.57 because they show
hardly any fat; `LEAST_GAIN` distinguishes them from scaled ones."""


def histogram_of(samples: NDArray[np.int32]) -> Counts:
    """Number of examined voxels for each intensity from `LOW` to `HIGH`."""
    return np.bincount((samples - LOW).ravel(), minlength=HIGH - LOW).astype(np.float64)


def constant_values(histogram: Counts) -> NDArray[np.intp]:
    """Values of many voxels whose neighbouring values are rare: without noise they are not image."""
    sums = np.concatenate([[0.0], np.cumsum(histogram)])
    at = np.arange(len(histogram))
    around = sums[np.minimum(at + 51, len(histogram))] - sums[np.maximum(at - 50, 0)]
    return np.flatnonzero((histogram >= 0.002 * histogram.sum()) & (histogram >= 0.3 * around)) + LOW


def moved(histogram: Counts, scale: float, offset: float) -> Counts:
    """The histogram of scaled and shifted intensities."""
    at = np.flatnonzero(histogram)
    places = np.rint((at + LOW) * scale + offset).astype(np.int64) - LOW
    counts: Counts = np.bincount(places.clip(0, len(histogram) - 1), histogram[at], len(histogram)).astype(np.float64)
    return counts


def count_between(histogram: Counts, ends: tuple[int, int]) -> float:
    """Number of voxels with intensities from the first end up to, but excluding, the second."""
    return float(histogram[ends[0] - LOW : ends[1] - LOW].sum())


def binned_shares(histogram: Counts) -> Counts:
    """Shares in the bins that are compared with the template, with reduced weight of air."""
    binned = histogram[FIRST - LOW : LAST - LOW].reshape(-1, BIN).sum(axis=1)
    air = (TISSUE - FIRST) // BIN
    most = MOST_AIR * binned[air:].sum()
    if binned[:air].sum() > most:
        binned[:air] *= most / binned[:air].sum()
    shares: Counts = binned / max(1.0, binned.sum())
    return shares


def template_density(intensity: Counts) -> Counts:
    """Density of a head and neck CT in HU: its components were fitted to the mean of the 243 scans."""

    def peak(centre: float, width: float) -> Counts:
        values: Counts = np.exp(-0.5 * ((intensity - centre) / width) ** 2) / (width * np.sqrt(2 * np.pi))
        return values

    air = ((intensity > -1020) & (intensity < -150)) / 870
    dense = np.where(intensity > 60, np.exp(-(intensity - 60).clip(0) / 300), 0.0) / 300
    density: Counts = 0.14 * air + 0.06 * peak(-30, 50) + 0.22 * peak(FAT, 28) + 0.43 * peak(SOFT, 22) + 0.15 * dense
    return density


@functools.cache
def log_templates() -> NDArray[np.float64]:
    """Log-likelihoods (scales, offsets, bins)."""
    bins, steps = (LAST - FIRST) // BIN, LARGEST_OFFSET // BIN
    centres = FIRST + BIN * (np.arange(-steps, bins + steps) + 0.5) - 0.5
    tables = []
    for scale in SCALES:
        density = sliding_window_view(template_density(centres / scale), bins)[::-1]  # the first has the lowest offset
        density = density / density.sum(axis=1, keepdims=True)
        tables.append(np.log((1 - UNEXPLAINED) * density + UNEXPLAINED / bins))
    return np.stack(tables)


def best_fit(binned: Counts) -> tuple[float, float, float, float]:
    """Scale and offset of the template that fits best, its gain over the best fit in HU, and its log-likelihood."""
    likelihoods = log_templates() @ binned
    offsets = np.arange(-LARGEST_OFFSET, LARGEST_OFFSET + 1, BIN)
    at, shift = np.unravel_index(int(likelihoods.argmax()), likelihoods.shape)
    soft = SOFT * SCALES[:, None] + offsets
    in_hu = (soft >= SOFT_RANGE[0]) & (soft <= SOFT_RANGE[1])
    in_hu &= ((SCALES - SCALE_RANGE[0]) * (SCALES - SCALE_RANGE[1]) <= 0)[:, None]
    best = float(likelihoods[at, shift])
    return float(SCALES[at]), float(offsets[shift]), best - float(likelihoods[in_hu].max()), best


def soft_tissue_of(counts: NDArray[np.integer]) -> float:
    """Intensity of soft tissue in a part of a scan in HU, by the template at the scales of such scans.

    Args:
        counts: voxels of tissue in the bins from `FIRST` to `LAST`.
    """
    scales = np.flatnonzero((SCALES - SCALE_RANGE[0]) * (SCALES - SCALE_RANGE[1]) <= 0)
    likelihoods = log_templates()[scales] @ (counts / counts.sum())
    at, shift = np.unravel_index(int(likelihoods.argmax()), likelihoods.shape)
    return float(SOFT * SCALES[scales[at]] + BIN * shift - LARGEST_OFFSET)


def likely_offsets(histogram: Counts) -> tuple[float, float]:
    """Offsets at which a histogram may be HU: of the best fit, and with the most common value as air."""
    without_constants = histogram.copy()
    without_constants[constant_values(histogram) - LOW] = 0
    binned = without_constants[: (HIGH - LOW) // BIN * BIN].reshape(-1, BIN).sum(axis=1)
    centres = np.arange(FIRST, LAST, BIN, dtype=np.float64) + (BIN - 1) / 2
    template = np.log1p(1e4 * template_density(centres))
    fits = sliding_window_view(np.sqrt(binned), len(template)) @ template
    return float(LOW + BIN * int(fits.argmax()) - FIRST), float(LOW + BIN * int(binned.argmax()) + 1000)
