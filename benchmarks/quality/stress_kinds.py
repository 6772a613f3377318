"""Kinds of scans that a model was not made for, each made from a real CT at three strengths; see stress.py.

A kind changes a `Scan`: voxels, contours, and the size of the voxels. Lengths are in mm, intensities in HU. Rows run to
the patient's back and columns to the left, slices upwards.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

NO_DATA = -1024
"""HU outside the patient's outline in OpenKBP."""
LEFT, RIGHT = 1, 2


@dataclass(frozen=True)
class Scan:
    """A scan with its contours.

    Attributes:
        hu: (D, H, W), int16.
        contours: labels (D, H, W), uint8.
        spacing_mm: of slices, rows and columns.
        rng: for what is random; the same for a patient and kind at all strengths.
    """

    hu: NDArray[np.int16]
    contours: NDArray[np.uint8]
    spacing_mm: tuple[float, float, float]
    rng: np.random.Generator

    @property
    def body(self) -> NDArray[np.bool_]:
        """Where there is data."""
        return self.hu > NO_DATA

    def middle(self, label: int | None = None) -> NDArray[np.float64]:
        """The centre of a gland, or of all, in voxels."""
        chosen = self.contours > 0 if label is None else self.contours == label
        middle: NDArray[np.float64] = np.argwhere(chosen).mean(axis=0)
        return middle

    def off_mm(self, middle: NDArray[np.float64]) -> list[NDArray[np.float64]]:
        """Distances from a place along the three axes, each with the shape to be combined with the others."""
        shapes = ((-1, 1, 1), (1, -1, 1), (1, 1, -1))
        return [
            ((np.arange(size) - at) * mm).reshape(shape)
            for size, at, mm, shape in zip(self.hu.shape, middle, self.spacing_mm, shapes, strict=True)
        ]

    def sigma(self, fwhm_mm: float) -> list[float]:
        """Standard deviations in voxels of a Gaussian in the plane."""
        return [0.0, *(fwhm_mm / 2.355 / mm for mm in self.spacing_mm[1:])]

    def with_hu(self, hu: NDArray[Any], where: NDArray[np.bool_] | None = None) -> Scan:
        """With other intensities, in the body unless told otherwise."""
        changed = np.where(self.body if where is None else where, np.clip(np.rint(hu), NO_DATA, 3071), self.hu)
        return replace(self, hu=changed.astype(np.int16))


Change = Callable[[Scan, Any], Scan]


@dataclass(frozen=True)
class Kind:
    """A kind of stress.

    Attributes:
        change: makes it.
        strengths: three, from weak to strong.
        words: each strength in words.
    """

    change: Change
    strengths: tuple[Any, Any, Any]
    words: tuple[str, str, str]


def contrast_agent(scan: Scan, added: float) -> Scan:
    """Glands brighter by so much, other soft tissue by a quarter of it, two vessels beside each gland by four times."""
    soft = np.interp(scan.hu, [-30, 10, 150, 300], [0, 1, 1, 0])
    share = 0.25 + 0.75 * ndimage.gaussian_filter((scan.contours > 0).astype(np.float32), scan.sigma(5))
    centre = scan.middle()[2]
    for label in {LEFT, RIGHT} & set(np.unique(scan.contours)):
        middle = scan.middle(label)
        side = np.sign(middle[2] - centre) or 1.0
        for inwards, backwards in ((16.0, 4.0), (18.0, 18.0)):
            place = middle + np.array([0, backwards / scan.spacing_mm[1], -side * inwards / scan.spacing_mm[2]])
            _, rows, columns = scan.off_mm(place)
            share = np.maximum(share, 4.0 * (rows**2 + columns**2 < 6.0**2))
    return scan.with_hu(scan.hu + added * share * soft)


def metal(scan: Scan, strength: tuple[int, float, float]) -> Scan:
    """Pieces of metal at the teeth with streaks: how many, HU of the streaks, and the height in mm."""
    pieces, streaks, height_mm = strength
    level, row, _ = scan.middle()
    behind = np.flatnonzero(scan.body[int(level)].any(axis=1))[0]
    teeth = np.array([level - 12 / scan.spacing_mm[0], (0.6 * behind + 0.4 * row), scan.middle()[2]])
    hu, near = scan.hu.astype(np.float64), abs(scan.off_mm(teeth)[0]) <= height_mm / 2
    for number in range(pieces):
        aside = (25.0, -25.0, 18.0, -18.0)[number] / scan.spacing_mm[2]
        place = teeth + np.array([0, (0, 1, -3, -4)[number] * 4 / scan.spacing_mm[1], aside])
        _, rows, columns = scan.off_mm(place)
        far, angle = np.hypot(rows, columns), np.arctan2(rows, columns)
        waves = sum(np.sin(n * angle + phase) for n, phase in zip((5, 9, 14), scan.rng.uniform(0, 6.3, 3), strict=True))
        hu = np.where(near, hu + streaks * waves / 1.5 * np.exp(-far / 70.0), hu)
        hu = np.where(near & (far < 5.0), 3071, hu)
    return scan.with_hu(hu)


def noise(scan: Scan, deviation: float) -> Scan:
    """White noise."""
    return scan.with_hu(scan.hu + scan.rng.normal(0, deviation, scan.hu.shape))


def blur(scan: Scan, fwhm_mm: float) -> Scan:
    """A Gaussian in the plane."""
    return scan.with_hu(ndimage.gaussian_filter(scan.hu.astype(np.float32), scan.sigma(fwhm_mm)))


def thick_slices(scan: Scan, thickness_mm: float) -> Scan:
    """Each slice the mean of so many that it is about as thick; contours where most of these have them."""
    count = max(2, round(thickness_mm / scan.spacing_mm[0]))
    depth = len(scan.hu) // count
    hu = scan.hu[: depth * count].reshape(depth, count, *scan.hu.shape[1:]).mean(axis=1)
    parts = scan.contours[: depth * count].reshape(depth, count, *scan.hu.shape[1:])
    contours = np.zeros(hu.shape, np.uint8)
    for label in (LEFT, RIGHT):
        contours[(parts == label).mean(axis=1) >= 0.5] = label
    spacing_mm = (count * scan.spacing_mm[0], *scan.spacing_mm[1:])
    return replace(scan, hu=hu.round().astype(np.int16), contours=contours, spacing_mm=spacing_mm)


def sharp_kernel(scan: Scan, strength: float) -> Scan:
    """Edges and noise raised: so many times the difference to the scan smoothed by 8 mm is added."""
    hu = scan.hu.astype(np.float32)
    return scan.with_hu(hu + strength * (hu - ndimage.gaussian_filter(hu, scan.sigma(8))))


def cone_beam(scan: Scan, strength: float) -> Scan:
    """Cupping of 60 HU, tissue darker by 40 HU, contrast lower by 8 %, noise of 30 HU, all this many times."""
    _, row, column = np.argwhere(scan.hu > -200).mean(axis=0)
    _, rows, columns = scan.off_mm(np.array([0, row, column]))
    radius = np.hypot(rows, columns) / 90.0
    hu = scan.hu * (1 - 0.08 * strength) - 40 * strength + 60 * strength * (radius.clip(0, 1.2) ** 2 - 0.5)
    return scan.with_hu(hu + scan.rng.normal(0, 30 * strength, hu.shape))


def magnetic(scan: Scan, scale: float) -> Scan:
    """The signal of a T1-weighted MR for each kind of tissue, with noise, on a scale."""
    tissue = [-1024, -300, -150, -100, -50, 0, 40, 70, 150, 300, 800, 3071]
    signal = [5, 5, 300, 700, 600, 300, 250, 260, 350, 150, 40, 20]
    noise = scan.rng.normal(0, 12, (2, *scan.hu.shape))
    magnitude = scale * np.hypot(np.interp(scan.hu, tissue, signal) + noise[0], noise[1])
    return scan.with_hu(magnitude, np.ones(scan.hu.shape, bool))


def removed_gland(scan: Scan, strength: tuple[float, float]) -> Scan:
    """The outer part of the left gland replaced: share of it, and by what HU."""
    share, hu = strength
    gland = scan.contours == LEFT
    middle = np.quantile(np.nonzero(gland)[2], 1 - share)
    gone = gland & (np.arange(scan.hu.shape[2]) >= middle)
    instead = hu + 12 * ndimage.gaussian_filter(scan.rng.normal(0, 2, scan.hu.shape), 0.7)
    soft = ndimage.gaussian_filter(gone.astype(np.float32), 0.6)
    changed = np.where(gone, instead, (1 - soft) * scan.hu + soft * instead)
    return replace(scan.with_hu(changed), contours=np.where(gone, 0, scan.contours).astype(np.uint8))


def child(scan: Scan, scale: float) -> Scan:
    """A head whose lengths are so many times an adult's."""
    one, two, three = (scale * mm for mm in scan.spacing_mm)
    return replace(scan, spacing_mm=(one, two, three))


def head_cut_off(scan: Scan, above_mm: float) -> Scan:
    """The scan ends so far above the lowest slice of the glands."""
    lowest = np.flatnonzero((scan.contours > 0).any(axis=(1, 2)))[0]
    stop = max(4, int(lowest + above_mm / scan.spacing_mm[0]))
    return replace(scan, hu=scan.hu[:stop], contours=scan.contours[:stop])


def turned(scan: Scan, degrees: float) -> Scan:
    """Turned about the patient's long axis."""
    square = scan.spacing_mm[1] / scan.spacing_mm[2]
    angle = np.deg2rad(degrees)
    matrix = np.array([[np.cos(angle), -np.sin(angle) / square], [np.sin(angle) * square, np.cos(angle)]])
    middle = np.array([(size - 1) / 2 for size in scan.hu.shape[1:]])
    whole = np.eye(3)
    whole[1:, 1:] = matrix
    offset = np.array([0, *(middle - matrix @ middle)])
    hu = ndimage.affine_transform(scan.hu, whole, offset, order=1, cval=NO_DATA)
    contours = ndimage.affine_transform(scan.contours, whole, offset, order=0)
    return replace(scan, hu=hu, contours=contours)


def wrong_axes(scan: Scan, which: str) -> Scan:
    """Contents that lie otherwise than the file says; each voxel keeps its contour."""
    if which == "axes swapped":
        slices, rows, columns = scan.spacing_mm
        hu, contours = scan.hu.transpose(0, 2, 1), scan.contours.transpose(0, 2, 1)
        return replace(scan, hu=hu, contours=contours, spacing_mm=(slices, columns, rows))
    axis = {"upside down": 0, "front to back": 1, "left to right": 2}[which]
    return replace(scan, hu=np.flip(scan.hu, axis), contours=np.flip(scan.contours, axis))


def mirrored(scan: Scan, axes: tuple[int, ...]) -> Scan:
    """Left and right exchanged, alone or with another axis: each voxel keeps its contour."""
    return replace(scan, hu=np.flip(scan.hu, axes), contours=np.flip(scan.contours, axes))


def bolus(scan: Scan, strength: tuple[float, float, tuple[int, ...]]) -> Scan:
    """Material on the cheek: thickness in mm, at least a voxel, HU, and on which sides."""
    thick_mm, hu, sides = strength
    thick_mm = max(thick_mm, *scan.spacing_mm[1:])
    outside = ~ndimage.binary_fill_holes(scan.body)
    far = ndimage.distance_transform_edt(outside, sampling=scan.spacing_mm)
    on = np.zeros(scan.hu.shape, bool)
    centre = scan.middle()[2]
    for label in sides:
        middle = scan.middle(label)
        slices, rows, columns = scan.off_mm(middle)
        outwards = columns * (1 if middle[2] > centre else -1) > -25
        on |= (far > 0) & (far <= thick_mm) & (abs(slices) < 45) & (abs(rows) < 50) & outwards
    return scan.with_hu(hu + scan.rng.normal(0, 12, scan.hu.shape), on)


def narrow_view(scan: Scan, share: float) -> Scan:
    """No data beyond a plane that cuts off so much of the left gland."""
    columns = np.nonzero(scan.contours == LEFT)[2]
    inside = np.arange(scan.hu.shape[2]) <= np.quantile(columns, 1 - share)
    hu = np.where(inside, scan.hu, NO_DATA).astype(np.int16)
    return replace(scan, hu=hu, contours=np.where(inside, scan.contours, 0).astype(np.uint8))


def surroundings(scan: Scan, what: str) -> Scan:
    """A table, a head rest, or arms beside the head, and air with noise around.

    Slices with less than a tenth of the largest outline stay as they are: beyond the patient OpenKBP's scans are blank
    but for remnants.
    """
    grain = scan.rng.normal(0, 15, scan.hu.shape)
    areas = scan.body.sum(axis=(1, 2), keepdims=True)
    free = ~scan.body & (areas >= areas.max() / 10)
    hu = np.where(free, -1000 + grain, scan.hu)
    level = int(scan.middle()[0])
    rows_of_head = np.flatnonzero(scan.body[level].any(axis=1))
    at = np.array([level, rows_of_head[-1] + 10 / scan.spacing_mm[1], scan.middle()[2]])
    slices, rows, columns = scan.off_mm(at)
    if what in ("table", "head rest"):
        hu = np.where(free & (abs(rows - 15) < 8) & (abs(columns) < 200), -120 + grain, hu)
    if what == "head rest":
        hu = np.where(free & (abs(slices) < 80) & (abs(rows) < 45) & (abs(columns) < 110), -600 + grain, hu)
    if what == "arms":
        for side in (-1, 1):
            arm = np.hypot(rows + 90, columns + side * 135) < 38
            bone = np.hypot(rows + 90, columns + side * 135) < 11
            hu = np.where(free & arm, 45 + grain, hu)
            hu = np.where(free & bone, 700 + 5 * grain, hu)
    return replace(scan, hu=hu.clip(NO_DATA, 3071).round().astype(np.int16))


BOTH = (LEFT, RIGHT)
KINDS: dict[str, Kind] = {
    "contrast agent": Kind(contrast_agent, (25.0, 50.0, 100.0), ("glands +25 HU", "+50 HU", "+100 HU")),
    "metal": Kind(
        metal,
        ((1, 250.0, 6.0), (2, 500.0, 15.0), (4, 900.0, 30.0)),
        ("1 piece, streaks 250 HU", "2, 500 HU", "4, 900 HU"),
    ),
    "noise": Kind(noise, (40.0, 80.0, 160.0), ("40 HU", "80 HU", "160 HU")),
    "blur": Kind(blur, (8.0, 14.0, 20.0), ("FWHM 8 mm", "14 mm", "20 mm")),
    "thick slices": Kind(thick_slices, (6.0, 9.0, 12.0), ("6 mm", "9 mm", "12 mm")),
    "sharp kernel": Kind(sharp_kernel, (0.5, 1.5, 4.0), ("edges +50 %", "+150 %", "+400 %")),
    "cone beam": Kind(cone_beam, (0.5, 1.0, 2.0), ("half", "usual", "double")),
    "MR as CT": Kind(magnetic, (0.1, 0.3, 1.0), ("scale 0.1", "0.3", "1")),
    "gland removed": Kind(
        removed_gland,
        ((0.5, -100.0), (1.0, -100.0), (1.0, 50.0)),
        ("outer half, fat instead", "all, fat", "all, muscle"),
    ),
    "child": Kind(child, (0.85, 0.7, 0.55), ("lengths 0.85", "0.7", "0.55")),
    "head cut off": Kind(
        head_cut_off, (30.0, 12.0, -20.0), ("30 mm above the glands' lower end", "12 mm above", "20 mm below")
    ),
    "turned": Kind(turned, (10.0, 25.0, 60.0), ("10 degrees", "25", "60")),
    "wrong axes": Kind(
        wrong_axes,
        ("upside down", "front to back", "axes swapped"),
        ("upside down", "front to back", "rows and columns swapped"),
    ),
    "mirrored": Kind(mirrored, ((2,), (1, 2), (0, 2)), ("left to right", "and front to back", "and upside down")),
    "bolus": Kind(
        bolus,
        ((4.0, 0.0, (LEFT,)), (10.0, -50.0, BOTH), (20.0, 30.0, BOTH)),
        ("4 mm, 0 HU, left", "10 mm, -50 HU, both", "20 mm, 30 HU, both"),
    ),
    "narrow view": Kind(narrow_view, (0.15, 0.4, 0.8), ("15 % of the left gland", "40 %", "80 %")),
    "surroundings": Kind(surroundings, ("table", "head rest", "arms"), ("table", "and head rest", "arms")),
}
"""By name."""
