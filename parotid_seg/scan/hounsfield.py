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

import functools
from dataclasses import dataclass

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from parotid_seg.errors import ScanError
from parotid_seg.flags import Flag, FlagCode
from parotid_seg.scan.volume import Voxels

Counts = NDArray[np.float64]

MOST_SAMPLES = 1 << 18
"""Voxels that are examined: those of a regular lattice, so that the same scan always gives the same answer."""
LOW, HIGH = -4096, 8192
"""Range of the histogram of one unit a bin; what lies beyond is in its outermost bins."""
FIRST, LAST, BIN = -1200, 2000, 10
"""Range and width of the bins that are compared with the template."""
SCALES = np.exp(np.arange(-0.96, 0.97, 0.06))
"""Scales that are tried; 1 is among them."""
LARGEST_OFFSET = 400
"""Offsets up to this are tried in both directions, in steps of a bin."""
UNEXPLAINED = 0.07
"""Share of the voxels that the template leaves free to have any value."""
MOST_AIR = 0.25
"""Air and what is nearly air count as this share of the tissue at most: most of it lies around the patient."""

TISSUE = -300
"""Fat is near -100 HU and soft tissue near 40: with partial volume, tissue lies above this."""
SOFT, FAT = 20.0, -113.0
"""Where the template has soft tissue and fat: the medians of the 243 scans."""
LEAST_TISSUE = 100
"""Fewer voxels of tissue among those examined show no patient; the 243 scans: 900 or more."""
SOFT_RANGE = (-45.0, 90.0)
"""Where soft tissue of a CT in HU lies; the 243 scans: -21 to 41. A contrast agent adds 20 to 40."""
SHIFTED_RANGE = (-130.0, 180.0)
"""Beyond it a scan is refused, not flagged."""
SCALE_RANGE = (0.74, 1.55)
"""Scales of a CT in HU, or of a noisy one, whose peaks are wide. Some low-noise scans reach 0.57 because their fat is
hardly seen; they are told from scaled ones by `LEAST_GAIN`."""
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
    constants = _constants(histogram)
    kept = histogram.copy()
    kept[constants - LOW] = 0
    if kept[TISSUE - LOW :].sum() < LEAST_TISSUE:  # a drawing, not a scan: all of it has the same few values
        kept = histogram
    above = kept[TISSUE - LOW :].sum()
    if above < LEAST_TISSUE:
        return None
    values = np.arange(LOW, HIGH)
    scale, offset, gain, best = _best_fit(_binned(kept))
    soft = SOFT * scale + offset
    *_, mirrored = _best_fit(_binned(_moved(kept, -1.0, 0.0)))
    dark = kept[values < soft - DARK].sum()
    rarer = max(1.0, _between(kept, BUMP_BELOW))
    return Appearance(
        lowest=float(lowest),
        highest=float(highest),
        constants=tuple(map(int, constants)),
        tissue=float(above / kept.sum()),
        soft=soft,
        fat=FAT * scale + offset,
        scale=scale,
        gain=gain,
        mirrored_gain=mirrored - best,
        dark=float(dark / above),
        below_air=float(kept[: BELOW_AIR - LOW].sum() / kept.sum()),
        bump=float(_between(kept, BUMP) / rarer),
    )


def _fault(found: Appearance) -> str:
    """Why the intensities cannot be HU; empty if they can."""
    near = f"soft tissue is at {found.soft:.0f} and fat at {found.fat:.0f}, expected about 40 and -100"
    clipped_at = _clipped(found)[0]
    reasons = (
        (
            found.below_air > MOST_BELOW_AIR,
            f"{found.below_air:.0%} of them lie below {BELOW_AIR}, expected air at -1000",
        ),
        (found.bump > MOST_BUMP, f"tissue lies between {BUMP[0]} and {BUMP[1]}, expected dense bone only"),
        (not SHIFTED_RANGE[0] <= found.soft <= SHIFTED_RANGE[1], near),
        (
            found.dark < LEAST_DARK and not _air_is_constant(found),
            f"found {found.lowest:g} to {found.highest:g}, expected fat near -100 or air near -1000",
        ),
        (found.dark >= LEAST_DARK and found.scale < SCALE_RANGE[0] and found.gain > LEAST_GAIN, near),
        (
            clipped_at is not None and clipped_at > NEEDED_LOW,
            f"clipped at {clipped_at}, expected values down to {NEEDED_LOW} at least: air counts as tissue otherwise",
        ),
    )
    return next((words for holds, words in reasons if holds), "")


def _flags(found: Appearance) -> tuple[Flag, ...]:
    """What is doubtful about intensities that may be HU."""
    flags = []
    if not SOFT_RANGE[0] <= found.soft <= SOFT_RANGE[1]:
        flags.append(Flag(FlagCode.HU_SHIFTED, value=found.soft))
    elif found.scale > SCALE_RANGE[1]:
        flags.append(Flag(FlagCode.HU_SPREAD, value=found.scale))
    elif found.dark < LEAST_DARK:
        flags.append(Flag(FlagCode.HU_UNKNOWN))
    elif found.mirrored_gain > LEAST_MIRRORED:
        flags.append(Flag(FlagCode.HU_INVERTED))
    ends = _clipped(found)
    if ends != (None, None):
        detail = " and ".join(str(end) for end in ends if end is not None)
        flags.append(Flag(FlagCode.HU_CLIPPED, detail=detail))
    return tuple(flags)


def _same_valued(histogram: Counts, found: Appearance) -> tuple[Flag, ...]:
    """A flag on whole regions of one value that tissue has, too: the model sees tissue there."""
    counts = {value: histogram[value - LOW] for value in found.constants if TISSUE < value not in _clipped(found)}
    share = sum(counts.values()) / histogram.sum()
    if share < LEAST_SAME or histogram[TISSUE - LOW :].sum() - sum(counts.values()) < LEAST_TISSUE:
        return ()
    return (Flag(FlagCode.SAME_VALUED, value=float(share), detail=" and ".join(map(str, counts))),)


def _air_is_constant(found: Appearance) -> bool:
    """Whether the air around the patient was set to a number that is air in HU."""
    return any(-1100 <= value <= -900 for value in found.constants)


def _clipped(found: Appearance) -> tuple[int | None, int | None]:
    """The lowest and the highest value, each if many voxels share it and a CT in HU goes on beyond it."""
    low, high = int(found.lowest), int(found.highest)
    return (
        low if low in found.constants and low > CLIPPED_LOW else None,
        high if high in found.constants and high < CLIPPED_HIGH else None,
    )


def _uneven(samples: NDArray[np.int32], found: Appearance) -> tuple[Flag, ...]:
    """A flag if soft tissue lies elsewhere in one part of the body than in another."""
    spread = unevenness(samples, found.constants)
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
    bins = (values.clip(FIRST, LAST - 1) - FIRST) // BIN
    binned = np.bincount(bins, minlength=(LAST - FIRST) // BIN) / len(values)
    scales = np.flatnonzero((SCALES - SCALE_RANGE[0]) * (SCALES - SCALE_RANGE[1]) <= 0)
    found = _log_templates()[scales] @ binned
    at, shift = np.unravel_index(int(found.argmax()), found.shape)
    return float(SOFT * SCALES[scales[at]] + BIN * shift - LARGEST_OFFSET)


def _cause(histogram: Counts) -> str:
    """What was done to the intensities, if undoing it gives HU; it begins with a semicolon."""
    for scale, words in ((1.0, ""), (0.5, "scaled by 0.5"), (2.0, "scaled by 2"), (-1.0, "inverted")):
        upright = _moved(histogram, 1 / scale, 0.0)
        for offset in _likely_offsets(upright):
            undone = appearance_of(_moved(upright, 1.0, -offset))
            if undone is None or undone.scale < SCALE_RANGE[0] or _fault(undone) or _flags(undone):
                continue
            shift = round((offset + undone.soft - SOFT) * scale, -1)
            if abs(abs(shift) - INTERCEPT) <= INTERCEPT_ERROR:
                shift = float(np.copysign(INTERCEPT, shift))
            done = [words] if words else []
            if abs(shift) >= 100:
                done.append(f"shifted by about {shift:+.0f}")
            hint = "is the rescale intercept missing?" if abs(shift) > 800 and scale == 1 else ""
            return f"; they look like HU {' and '.join(done)}{'; ' if hint else ''}{hint}" if done else ""
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
    whole: NDArray[np.int32] = np.rint(np.clip(samples, LOW, HIGH - 1)).astype(np.int32)
    return whole


def histogram_of(samples: NDArray[np.int32]) -> Counts:
    """Number of examined voxels for each intensity from `LOW` to `HIGH`."""
    return np.bincount((samples - LOW).ravel(), minlength=HIGH - LOW).astype(np.float64)


def _constants(histogram: Counts) -> NDArray[np.intp]:
    """Values that many voxels have, and their neighbours have not: no noise, so no image."""
    sums = np.concatenate([[0.0], np.cumsum(histogram)])
    at = np.arange(len(histogram))
    around = sums[np.minimum(at + 51, len(histogram))] - sums[np.maximum(at - 50, 0)]
    return np.flatnonzero((histogram >= 0.002 * histogram.sum()) & (histogram >= 0.3 * around)) + LOW


def _moved(histogram: Counts, scale: float, offset: float) -> Counts:
    """The histogram of scaled and shifted intensities."""
    at = np.flatnonzero(histogram)
    moved = np.rint((at + LOW) * scale + offset).astype(np.int64) - LOW
    counts: Counts = np.bincount(moved.clip(0, len(histogram) - 1), histogram[at], len(histogram)).astype(np.float64)
    return counts


def _between(histogram: Counts, ends: tuple[int, int]) -> float:
    return float(histogram[ends[0] - LOW : ends[1] - LOW].sum())


def _binned(histogram: Counts) -> Counts:
    """Shares in the bins that are compared with the template, with little of the air."""
    binned = histogram[FIRST - LOW : LAST - LOW].reshape(-1, BIN).sum(axis=1)
    air = (TISSUE - FIRST) // BIN
    most = MOST_AIR * binned[air:].sum()
    if binned[:air].sum() > most:
        binned[:air] *= most / binned[:air].sum()
    shares: Counts = binned / max(1.0, binned.sum())
    return shares


def _template(intensity: Counts) -> Counts:
    """Density of a head and neck CT in HU: its components were fitted to the mean of the 243 scans."""

    def peak(centre: float, width: float) -> Counts:
        values: Counts = np.exp(-0.5 * ((intensity - centre) / width) ** 2) / (width * np.sqrt(2 * np.pi))
        return values

    air = ((intensity > -1020) & (intensity < -150)) / 870
    dense = np.where(intensity > 60, np.exp(-(intensity - 60).clip(0) / 300), 0.0) / 300
    density: Counts = 0.14 * air + 0.06 * peak(-30, 50) + 0.22 * peak(FAT, 28) + 0.43 * peak(SOFT, 22) + 0.15 * dense
    return density


@functools.cache
def _log_templates() -> NDArray[np.float64]:
    """Log-likelihoods (scales, offsets, bins)."""
    bins, steps = (LAST - FIRST) // BIN, LARGEST_OFFSET // BIN
    centres = FIRST + BIN * (np.arange(-steps, bins + steps) + 0.5) - 0.5
    tables = []
    for scale in SCALES:
        density = sliding_window_view(_template(centres / scale), bins)[::-1]  # the first has the lowest offset
        density = density / density.sum(axis=1, keepdims=True)
        tables.append(np.log((1 - UNEXPLAINED) * density + UNEXPLAINED / bins))
    return np.stack(tables)


def _best_fit(binned: Counts) -> tuple[float, float, float, float]:
    """Scale and offset of the template that fits best, its gain over the best fit in HU, and its log-likelihood."""
    found = _log_templates() @ binned
    offsets = np.arange(-LARGEST_OFFSET, LARGEST_OFFSET + 1, BIN)
    at, shift = np.unravel_index(int(found.argmax()), found.shape)
    soft = SOFT * SCALES[:, None] + offsets
    in_hu = (soft >= SOFT_RANGE[0]) & (soft <= SOFT_RANGE[1])
    in_hu &= ((SCALES - SCALE_RANGE[0]) * (SCALES - SCALE_RANGE[1]) <= 0)[:, None]
    best = float(found[at, shift])
    return float(SCALES[at]), float(offsets[shift]), best - float(found[in_hu].max()), best


def _likely_offsets(histogram: Counts) -> tuple[float, float]:
    """Offsets at which a whole histogram may be HU: where the template fits best, and where the commonest is air."""
    kept = histogram.copy()
    kept[_constants(histogram) - LOW] = 0
    binned = kept[: (HIGH - LOW) // BIN * BIN].reshape(-1, BIN).sum(axis=1)
    centres = np.arange(FIRST, LAST, BIN, dtype=np.float64) + (BIN - 1) / 2
    template = np.log1p(1e4 * _template(centres))
    fits = sliding_window_view(np.sqrt(binned), len(template)) @ template
    return float(LOW + BIN * int(fits.argmax()) - FIRST), float(LOW + BIN * int(binned.argmax()) + 1000)
