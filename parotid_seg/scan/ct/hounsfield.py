"""Checks whether a CT is in Hounsfield units, by the intensities of fat, soft tissue and air instead of the minimum.

Values that fill whole regions (padding, air set to one number) are removed from the scan's histogram. The rest is
compared with a template of the head and neck: air inside the body, fat, soft tissue, and dense tissue with bone. The
template is fitted to the histogram at every scale and offset of a grid, and the most likely pair gives the intensity of
soft tissue and the width of the histogram: in HU the scale is near 1 and the offset near 0. Field of view, padding and
surroundings of the patient do not matter, and a tight crop without air can be checked, too.

Every limit below was set from the 243 scans of the OpenKBP data set, unchanged and after changes that keep HU (crops,
air around the patient, noise, resampling), with a margin: benchmarks/quality/hounsfield.py measures them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from parotid_seg.errors import ScanError
from parotid_seg.flags import Flag, FlagCode
from parotid_seg.scan.ct.hu_template import (
    BIN,
    FAT,
    FIRST,
    HIGH,
    LAST,
    LOW,
    SCALE_RANGE,
    SOFT,
    SOFT_RANGE,
    TISSUE,
    Counts,
    best_fit,
    binned_shares,
    constant_values,
    count_between,
    histogram_of,
    likely_offsets,
    moved,
    soft_tissue_of,
)
from parotid_seg.scan.ct.patient import of_patient
from parotid_seg.scan.label_set import LARGEST_VALUE
from parotid_seg.scan.volume import Voxels

MOST_SAMPLES = 1 << 18
"""Number of examined voxels: those of a regular lattice, so that the result is reproducible."""
LEAST_TISSUE = 100
"""Fewest voxels of tissue among the examined ones for a scan of a patient; the 243 scans: 900 or more."""
SHIFTED_RANGE = (-130.0, 180.0)
"""Range of soft tissue outside which a scan is refused instead of flagged."""
LEAST_GAIN = 0.08
"""Gain in log-likelihood per voxel for which a smaller scale counts, over the best scale in the range. The 243 scans:
at most 0.02; scaled by 0.5: 0.15 or more."""
LEAST_DARK = 0.01
"""Least share of the tissue that is darker than soft tissue, such as fat. The 243 scans: 0.12 or more."""
DARK = 80.0
"""Intensities so far below soft tissue count as darker."""
BELOW_AIR = -1250
MOST_BELOW_AIR = 0.01
"""Most share of all voxels except padding that lie below air. The 243 scans: none."""
BUMP = (700, 1300)
BUMP_BELOW = (300, 700)
MOST_BUMP = 2.0
"""Denser bone is rarer: most voxels of the first range for each of the second. The 243 scans: at most 1.3."""
CLIPPED_LOW, CLIPPED_HIGH = -600, 1100
"""A scan counts as clipped if its lowest or highest value is shared by many voxels and lies within these."""
LEAST_SAME = 0.005
"""Share of the voxels with one tissue value from which it is flagged. The 243 scans: none."""
NEEDED_LOW = -200
"""If a scan is clipped above this value, air counts as tissue."""
LEAST_MIRRORED = 0.12
"""Log-likelihood per voxel by which inverted intensities must fit better. The 243 scans: at most 0.05."""
INTERCEPT, INTERCEPT_ERROR = 1024, 70
"""The usual rescale intercept, and the tolerance of an estimate of it, as soft tissue varies between scans."""
LEAST_IN_PART = 300
"""Fewest examined voxels of tissue for a part of the body to be checked."""
MOST_UNEVEN = 32.0
"""Most difference of soft tissue between parts of the body, in HU. 191 of the 243 scans: at most 21; with a table, head
rest or arms painted beside 31 of them at most 24."""

Spacing = tuple[float, float, float]


@dataclass(frozen=True)
class Appearance:
    """Features of a scan's histogram. Intensities are HU if the scan is in HU.

    Attributes:
        lowest, highest: of the examined voxels.
        constants: values of whole regions: padding, clipped values.
        tissue: share of the voxels above `TISSUE`, without constants.
        soft, fat: intensities of soft tissue and fat.
        scale: width of the histogram; 1 in HU.
        gain: log-likelihood per voxel of this fit over the best fit of a CT in HU.
        mirrored_gain: log-likelihood per voxel of inverted intensities over the best fit of the original ones.
        dark: share of the tissue that is darker than soft tissue.
        below_air: share of the voxels below air, without constants.
        bump: voxels with the intensity of dense bone for each with that of light bone.
    """

    lowest: float
    highest: float
    constants: tuple[int, ...]
    tissue: float
    soft: float
    fat: float
    scale: float
    gain: float
    mirrored_gain: float
    dark: float
    below_air: float
    bump: float


def check_hounsfield(voxels: Voxels, spacing_mm: Spacing) -> tuple[Flag, ...]:
    """Flags on the intensities of a CT; none if they appear to be HU.

    Args:
        voxels: intensities (D, H, W).
        spacing_mm: of slices, rows and columns.

    Raises:
        ScanError: if they are not HU, or show no patient.
    """
    samples, step_mm = examined(voxels, spacing_mm)
    histogram = histogram_of(samples)
    appearance = appearance_of(histogram)
    if appearance is None:
        raise ScanError(_without_tissue(histogram))
    fault = _fault(appearance)
    if fault:
        raise ScanError(f"intensities are not HU: {fault}{_cause(histogram)}")
    spread = unevenness(samples, step_mm, appearance.constants)
    uneven = (Flag(FlagCode.HU_UNEVEN, value=spread),) if spread > MOST_UNEVEN else ()
    return (*_flags(appearance), *_same_valued(histogram, appearance), *uneven)


def appearance_of(histogram: Counts) -> Appearance | None:
    """Features of a histogram with bins of one unit from `LOW` to `HIGH`; None if it shows no tissue."""
    at = np.flatnonzero(histogram)
    lowest, highest = at[0] + LOW, at[-1] + LOW
    constants = constant_values(histogram)
    tissue_counts = histogram.copy()
    tissue_counts[constants - LOW] = 0
    if tissue_counts[TISSUE - LOW :].sum() < LEAST_TISSUE:  # a drawing, not a scan: it consists of a few values
        tissue_counts = histogram
    above = tissue_counts[TISSUE - LOW :].sum()
    if above < LEAST_TISSUE:
        return None
    values = np.arange(LOW, HIGH)
    scale, offset, gain, best = best_fit(binned_shares(tissue_counts))
    soft = SOFT * scale + offset
    *_, mirrored = best_fit(binned_shares(moved(tissue_counts, -1.0, 0.0)))
    dark = tissue_counts[values < soft - DARK].sum()
    rarer = max(1.0, count_between(tissue_counts, BUMP_BELOW))
    return Appearance(
        lowest=float(lowest),
        highest=float(highest),
        constants=tuple(map(int, constants)),
        tissue=float(above / tissue_counts.sum()),
        soft=soft,
        fat=FAT * scale + offset,
        scale=scale,
        gain=gain,
        mirrored_gain=mirrored - best,
        dark=float(dark / above),
        below_air=float(tissue_counts[: BELOW_AIR - LOW].sum() / tissue_counts.sum()),
        bump=float(count_between(tissue_counts, BUMP) / rarer),
    )


def _fault(appearance: Appearance) -> str:
    """Why the intensities cannot be HU; empty if they can."""
    near = f"soft tissue is at {appearance.soft:.0f} and fat at {appearance.fat:.0f}, expected about 40 and -100"
    clipped_at = _clipped(appearance)[0]
    label_map = "; is it a label map?" if appearance.lowest >= 0 and appearance.highest <= LARGEST_VALUE else ""
    reasons = (
        (
            appearance.below_air > MOST_BELOW_AIR,
            f"{appearance.below_air:.0%} of them lie below {BELOW_AIR}, expected air at -1000",
        ),
        (appearance.bump > MOST_BUMP, f"more voxels lie between {BUMP[0]} and {BUMP[1]} than dense bone explains"),
        (not SHIFTED_RANGE[0] <= appearance.soft <= SHIFTED_RANGE[1], near),
        (
            appearance.dark < LEAST_DARK and not any(-1100 <= value <= -900 for value in appearance.constants),
            f"found {appearance.lowest:g} to {appearance.highest:g}, expected fat near -100 or air near -1000"
            f"{label_map}",
        ),
        (appearance.dark >= LEAST_DARK and appearance.scale < SCALE_RANGE[0] and appearance.gain > LEAST_GAIN, near),
        (
            clipped_at is not None and clipped_at > NEEDED_LOW,
            f"clipped at {clipped_at}, expected values down to {NEEDED_LOW} at least: air counts as tissue otherwise",
        ),
    )
    return next((words for holds, words in reasons if holds), "")


def _flags(appearance: Appearance) -> tuple[Flag, ...]:
    """Flags on doubtful intensities that may be HU."""
    flags = []
    if not SOFT_RANGE[0] <= appearance.soft <= SOFT_RANGE[1]:
        flags.append(Flag(FlagCode.HU_SHIFTED, value=appearance.soft))
    elif appearance.scale > SCALE_RANGE[1]:
        flags.append(Flag(FlagCode.HU_SPREAD, value=appearance.scale))
    elif appearance.dark < LEAST_DARK:
        flags.append(Flag(FlagCode.HU_UNKNOWN))
    elif appearance.mirrored_gain > LEAST_MIRRORED:
        flags.append(Flag(FlagCode.HU_INVERTED))
    ends = _clipped(appearance)
    if ends != (None, None):
        detail = " and ".join(str(end) for end in ends if end is not None)
        flags.append(Flag(FlagCode.HU_CLIPPED, detail=detail))
    return tuple(flags)


def _same_valued(histogram: Counts, appearance: Appearance) -> tuple[Flag, ...]:
    """A flag on whole regions with one tissue value, which look like tissue to the model."""
    counts = {
        value: histogram[value - LOW] for value in appearance.constants if TISSUE < value not in _clipped(appearance)
    }
    share = sum(counts.values()) / histogram.sum()
    if share < LEAST_SAME or histogram[TISSUE - LOW :].sum() - sum(counts.values()) < LEAST_TISSUE:
        return ()
    return (Flag(FlagCode.SAME_VALUED, value=float(share), detail=" and ".join(map(str, counts))),)


def _clipped(appearance: Appearance) -> tuple[int | None, int | None]:
    """The lowest and the highest value, each if many voxels share it and a CT in HU has values beyond it."""
    low, high = int(appearance.lowest), int(appearance.highest)
    return (
        low if low in appearance.constants and low > CLIPPED_LOW else None,
        high if high in appearance.constants and high < CLIPPED_HIGH else None,
    )


def unevenness(samples: NDArray[np.int32], step_mm: Spacing, constants: tuple[int, ...]) -> float:
    """Largest difference of soft tissue between parts of the body, in intensities.

    Front and back of the patient, left and right, and three rings with equal numbers of voxels are compared. The
    outermost ring is mostly fat, in some patients entirely, so it counts only if it is brighter than the inner one, as
    with cupping.

    Args:
        samples, step_mm: see `examined`.
        constants: values that are not tissue, see `Appearance`.
    """
    tissue = samples > TISSUE
    for value in constants:
        tissue &= samples != value
    tissue = of_patient(tissue, step_mm[1:])
    slices, rows, columns = np.nonzero(tissue)
    values = samples[tissue]
    if len(values) < LEAST_IN_PART:
        return 0.0
    across, along = (_standardised(each, slices) for each in (rows, columns))
    radius = across**2 + along**2
    ends = np.quantile(radius, [1 / 3, 2 / 3])
    inner, middle, outer = (_soft_of(values[np.digitize(radius, ends) == ring]) for ring in range(3))
    front, back, right, left = (_soft_of(values[each]) for each in (across < 0, across >= 0, along < 0, along >= 0))
    differences = (abs(front - back), abs(right - left), abs(inner - middle), outer - inner)
    return float(np.nanmax([0.0, *differences]))


def _standardised(places: NDArray[np.intp], slices: NDArray[np.intp]) -> Counts:
    """Positions of voxels relative to the middle of the tissue in their slice, in standard deviations."""
    count = np.maximum(np.bincount(slices), 1)
    middle = np.bincount(slices, places) / count
    variance = np.bincount(slices, (places - middle[slices]) ** 2) / count
    return (places - middle[slices]) / np.sqrt(np.maximum(variance, 1.0))[slices]


def _soft_of(values: NDArray[np.int32]) -> float:
    """Intensity of soft tissue among some voxels of tissue; NaN for too few voxels."""
    if len(values) < LEAST_IN_PART:
        return np.nan
    return soft_tissue_of(np.bincount((values.clip(FIRST, LAST - 1) - FIRST) // BIN, minlength=(LAST - FIRST) // BIN))


def _cause(histogram: Counts) -> str:
    """The change of the intensities whose inverse gives HU, if there is one; the text begins with a semicolon."""
    for scale, words in ((1.0, ""), (0.5, "scaled by 0.5"), (2.0, "scaled by 2"), (-1.0, "inverted")):
        upright = moved(histogram, 1 / scale, 0.0)
        for offset in likely_offsets(upright):
            undone = appearance_of(moved(upright, 1.0, -offset))
            if undone is None or undone.scale < SCALE_RANGE[0] or _fault(undone) or _flags(undone):
                continue
            shift = round((offset + undone.soft - SOFT) * scale, -1)
            if abs(abs(shift) - INTERCEPT) <= INTERCEPT_ERROR:
                shift = float(np.copysign(INTERCEPT, shift))
            changes = [words] if words else []
            if abs(shift) >= 100:
                changes.append(f"shifted by about {shift:+.0f}")
            hint = "is the rescale intercept missing?" if abs(shift) > 800 and scale == 1 else ""
            return f"; they look like HU {' and '.join(changes)}{'; ' if hint else ''}{hint}" if changes else ""
    return ""


def _without_tissue(histogram: Counts) -> str:
    """Why a scan that shows no tissue in HU is refused."""
    at = np.flatnonzero(histogram)
    found = f"intensities from {at[0] + LOW} to {at[-1] + LOW}"
    return f"{found} show no patient: expected tissue above {TISSUE} HU{_cause(histogram)}"


def examined(voxels: Voxels, spacing_mm: Spacing) -> tuple[NDArray[np.int32], Spacing]:
    """Every n-th voxel along each axis, (d, h, w), as whole numbers from `LOW` to `HIGH`, and their distances in mm."""
    steps = [1, 1, 1]
    while np.prod([-(-size // step) for size, step in zip(voxels.shape, steps, strict=True)]) > MOST_SAMPLES:
        longest = max(range(3), key=lambda axis: voxels.shape[axis] / steps[axis])
        steps[longest] += 1
    samples = voxels[:: steps[0], :: steps[1], :: steps[2]]
    slices, rows, columns = (step * mm for step, mm in zip(steps, spacing_mm, strict=True))
    return np.rint(np.clip(samples, LOW, HIGH - 1)).astype(np.int32), (slices, rows, columns)
