"""Is a CT in Hounsfield units? Decided by where fat, soft tissue and air lie, not by the smallest value.

Values that fill whole regions (padding, air set to one number) are taken out of the scan's histogram. What is left is
compared with a template of the head and neck: air inside the body, fat, soft tissue, and dense tissue with bone. The
template is laid over the histogram at every scale and offset of a grid, and the most likely pair tells where soft
tissue lies and how wide the histogram is: in HU the scale is near 1 and the offset near 0. The field of view, padding
and what is around the patient do not matter, and a tight crop without air can be judged, too.

Every limit below was set from the 243 scans of the OpenKBP data set, as they are and after changes that leave HU as
they are (crops, air around the patient, noise, resampling), with a margin: benchmarks/hounsfield.py measures them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from parotid_seg.errors import ScanError
from parotid_seg.flags import Flag, FlagCode
from parotid_seg.scan.hu_template import (
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
from parotid_seg.scan.volume import Voxels

MOST_SAMPLES = 1 << 18
"""Voxels that are examined: those of a regular lattice, so that the same scan always gives the same answer."""
LEAST_TISSUE = 100
"""Fewer voxels of tissue among those examined show no patient; the 243 scans: 900 or more."""
SHIFTED_RANGE = (-130.0, 180.0)
"""Beyond it a scan is refused, not flagged."""
LEAST_GAIN = 0.08
"""A smaller scale counts if it explains a voxel better by this log-likelihood than any in the range. The 243 scans:
0.02 at most; scaled by 0.5: 0.15 or more."""
LEAST_DARK = 0.01
"""Share of the tissue that is darker than soft tissue, which fat is. The 243 scans: 0.12 or more."""
DARK = 80.0
"""So far below soft tissue begins what is darker."""
BELOW_AIR = -1250
MOST_BELOW_AIR = 0.01
"""Share of all voxels but padding that lie below air. The 243 scans: none."""
BUMP = (700, 1300)
BUMP_BELOW = (300, 700)
MOST_BUMP = 2.0
"""Bone gets rarer the denser it is: voxels of the first range for each of the second. The 243 scans: 1.3 at most."""
CLIPPED_LOW, CLIPPED_HIGH = -600, 1100
"""Lowest and highest values that many voxels share show that a scan was clipped if they lie within these."""
LEAST_SAME = 0.005
"""Share of the voxels that have one and the same value of tissue, from which it is flagged. The 243 scans: none."""
NEEDED_LOW = -200
"""Clipped above it, air counts as tissue."""
LEAST_MIRRORED = 0.12
"""Log-likelihood of a voxel by which inverted intensities must fit better. The 243 scans: 0.05 at most."""
INTERCEPT, INTERCEPT_ERROR = 1024, 70
"""The usual rescale intercept, and how far an estimate may lie off it: soft tissue is not at one place in all scans."""
LEAST_IN_PART = 300
"""A part of the body with fewer voxels of tissue among those examined is not judged."""
MOST_UNEVEN = 35.0
"""Soft tissue of one part of the body less that of another, in HU. The 243 scans: 21 at most."""


@dataclass(frozen=True)
class Appearance:
    """What a scan's histogram shows. Intensities are HU if the scan is in HU.

    Attributes:
        lowest, highest: of the voxels examined.
        constants: values that whole regions have: padding, clipped values.
        tissue: share of the voxels, but for those, that lie above `TISSUE`.
        soft, fat: where soft tissue and fat lie.
        scale: width of the histogram; 1 in HU.
        gain: log-likelihood of a voxel at these over the best that a CT in HU can have.
        mirrored_gain: log-likelihood of a voxel if the intensities are inverted, over the best upright.
        dark: share of the tissue that is darker than soft tissue.
        below_air: share of the voxels, but for constants, that lie below air.
        bump: voxels of the intensity of dense bone for each of that of light bone.
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


def check_hounsfield(voxels: Voxels) -> tuple[Flag, ...]:
    """Flags on the intensities of a CT; none if they are HU as far as that shows.

    Args:
        voxels: intensities (D, H, W).

    Raises:
        ScanError: if they are not HU, or show no patient.
    """
    samples = examined(voxels)
    histogram = histogram_of(samples)
    appearance = appearance_of(histogram)
    if appearance is None:
        raise ScanError(_without_tissue(histogram))
    fault = _fault(appearance)
    if fault:
        raise ScanError(f"intensities are not HU: {fault}{_cause(histogram)}")
    return (*_flags(appearance), *_same_valued(histogram, appearance), *_uneven(samples, appearance))


def appearance_of(histogram: Counts) -> Appearance | None:
    """What a histogram of one unit a bin from `LOW` to `HIGH` shows; None if it shows no tissue."""
    at = np.flatnonzero(histogram)
    lowest, highest = at[0] + LOW, at[-1] + LOW
    constants = constant_values(histogram)
    tissue_counts = histogram.copy()
    tissue_counts[constants - LOW] = 0
    if tissue_counts[TISSUE - LOW :].sum() < LEAST_TISSUE:  # a drawing, not a scan: all of it has the same few values
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
    reasons = (
        (
            appearance.below_air > MOST_BELOW_AIR,
            f"{appearance.below_air:.0%} of them lie below {BELOW_AIR}, expected air at -1000",
        ),
        (appearance.bump > MOST_BUMP, f"tissue lies between {BUMP[0]} and {BUMP[1]}, expected dense bone only"),
        (not SHIFTED_RANGE[0] <= appearance.soft <= SHIFTED_RANGE[1], near),
        (
            appearance.dark < LEAST_DARK and not _air_is_constant(appearance),
            f"found {appearance.lowest:g} to {appearance.highest:g}, expected fat near -100 or air near -1000",
        ),
        (appearance.dark >= LEAST_DARK and appearance.scale < SCALE_RANGE[0] and appearance.gain > LEAST_GAIN, near),
        (
            clipped_at is not None and clipped_at > NEEDED_LOW,
            f"clipped at {clipped_at}, expected values down to {NEEDED_LOW} at least: air counts as tissue otherwise",
        ),
    )
    return next((words for holds, words in reasons if holds), "")


def _flags(appearance: Appearance) -> tuple[Flag, ...]:
    """What is doubtful about intensities that may be HU."""
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
    """A flag on whole regions of one value that tissue has, too: the model sees tissue there."""
    counts = {
        value: histogram[value - LOW] for value in appearance.constants if TISSUE < value not in _clipped(appearance)
    }
    share = sum(counts.values()) / histogram.sum()
    if share < LEAST_SAME or histogram[TISSUE - LOW :].sum() - sum(counts.values()) < LEAST_TISSUE:
        return ()
    return (Flag(FlagCode.SAME_VALUED, value=float(share), detail=" and ".join(map(str, counts))),)


def _air_is_constant(appearance: Appearance) -> bool:
    """Whether the air around the patient was set to a number that is air in HU."""
    return any(-1100 <= value <= -900 for value in appearance.constants)


def _clipped(appearance: Appearance) -> tuple[int | None, int | None]:
    """The lowest and the highest value, each if many voxels share it and a CT in HU goes on beyond it."""
    low, high = int(appearance.lowest), int(appearance.highest)
    return (
        low if low in appearance.constants and low > CLIPPED_LOW else None,
        high if high in appearance.constants and high < CLIPPED_HIGH else None,
    )


def _uneven(samples: NDArray[np.int32], appearance: Appearance) -> tuple[Flag, ...]:
    """A flag if soft tissue lies elsewhere in one part of the body than in another."""
    spread = unevenness(samples, appearance.constants)
    return (Flag(FlagCode.HU_UNEVEN, value=spread),) if spread > MOST_UNEVEN else ()


def unevenness(samples: NDArray[np.int32], constants: tuple[int, ...]) -> float:
    """How far soft tissue of one part of the body lies from that of another, in intensities.

    Compared are front and back, left and right, and three rings of as many voxels each. The outermost ring is mostly
    fat, and of some patients all of it, so it counts only where it is brighter than the inner one, as cupping makes it.

    Args:
        samples: the voxels examined (d, h, w).
        constants: values that are no tissue, see `Appearance`.
    """
    tissue = samples > TISSUE
    for value in constants:
        tissue &= samples != value
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
    """Places of voxels relative to the middle of the tissue in their slice, in standard deviations."""
    count = np.maximum(np.bincount(slices), 1)
    middle = np.bincount(slices, places) / count
    variance = np.bincount(slices, (places - middle[slices]) ** 2) / count
    return (places - middle[slices]) / np.sqrt(np.maximum(variance, 1.0))[slices]


def _soft_of(values: NDArray[np.int32]) -> float:
    """Where soft tissue lies among some voxels of tissue; NaN of few voxels."""
    if len(values) < LEAST_IN_PART:
        return np.nan
    return soft_tissue_of(np.bincount((values.clip(FIRST, LAST - 1) - FIRST) // BIN, minlength=(LAST - FIRST) // BIN))


def _cause(histogram: Counts) -> str:
    """What was done to the intensities, if undoing it gives HU; it begins with a semicolon."""
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


def examined(voxels: Voxels) -> NDArray[np.int32]:
    """Every n-th voxel along each axis, (d, h, w), as whole numbers from `LOW` to `HIGH`."""
    steps = [1, 1, 1]
    while np.prod([-(-size // step) for size, step in zip(voxels.shape, steps, strict=True)]) > MOST_SAMPLES:
        longest = max(range(3), key=lambda axis: voxels.shape[axis] / steps[axis])
        steps[longest] += 1
    samples = voxels[:: steps[0], :: steps[1], :: steps[2]]
    integers: NDArray[np.int32] = np.rint(np.clip(samples, LOW, HIGH - 1)).astype(np.int32)
    return integers
