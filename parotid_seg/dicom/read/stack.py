"""Joins images of one series into volumes (parallel, in order, evenly spaced and complete), or states why not.

Only positions and orientations count; file names and instance numbers are not reliable.
"""

from __future__ import annotations

import hashlib
import itertools
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from parotid_seg.dicom.read.frame import DISTINGUISHING, Frame
from parotid_seg.dicom.read.groups import MODALITIES
from parotid_seg.dicom.read.layout import check_size
from parotid_seg.dicom.read.values import NotAnImage, Unusable
from parotid_seg.files import open_input
from parotid_seg.wording import by_axes, counted

SAME_MM = 0.01
"""Most mm between images at one position."""
UNEVEN_MM = 0.1
"""Most mm that a slice may lie off an evenly spaced stack: scanners round positions, at worst to a tenth of a mm."""
UNEVEN = 0.2
"""The same as a share of the slice distance; the smaller limit counts."""
SAME_DIRECTION = 1e-3
"""Most difference between unit vectors of parallel slices: 0.06 degrees."""
SAME_SPACING = 1e-3
"""Most relative difference of the voxel spacing within a stack."""
FEWEST_SLICES = 5
"""Fewest slices of each volume of a series with several; fewer are stray images."""
MOST_GROUPS = 20
"""Most orientations and sizes of one series."""
OF_ACQUISITIONS = tuple(DISTINGUISHING.index(each) for each in ("acquisition", "event"))
"""Attributes that reveal two interleaved acquisitions, which together look like one even stack."""
NUMBERED = {"kernel": "kernel", "event": "acquisition", "started": "acquisition"}
"""Attributes whose values are free text; in a volume's name a number replaces the text."""
ALIKE_GAPS = 3
"""Equal gaps in a row that mean a second slice distance rather than missing slices."""
MOST_NAMED = 3
"""Most positions in a message."""


@dataclass(frozen=True, eq=False)
class Stack:
    """Images that form one volume.

    Attributes:
        frames: in the order of their position along their normal.
        affine: (4, 4), from (slice, row, column, 1) to x, y, z in mm (LPS).
        part: see `Series.part`.
    """

    frames: tuple[Frame, ...]
    affine: NDArray[np.float64]
    part: str


def stacks_of(frames: Iterable[Frame]) -> tuple[list[Stack], list[Frame]]:
    """The volumes of one series.

    Images that differ in size, spacing or orientation form several volumes if each is complete. So do images at the
    same positions, and overlapping stacks, if acquisition, temporal position, echo, b-value, stack, image type, kernel
    or thickness distinguishes them.

    Returns:
        The volumes, and the images that are skipped as copies of others.

    Raises:
        Unusable: if any image does not fit in.
        NotAnImage: if there are a few images in each of several planes.
    """
    groups = _by_plane(sorted(frames, key=lambda each: (each.slice.path, each.slice.frame or 0)))
    if len(groups) > 1 and all(len(group) < FEWEST_SLICES for group in groups):
        raise NotAnImage(f"{sum(map(len, groups))} images in {len(groups)} planes, as of a localizer")
    if len(groups) > 1 and min(map(len, groups)) < FEWEST_SLICES:
        raise Unusable(_differences(groups))
    stacks, copies = [], []
    for number, group in enumerate(groups, start=1):
        distinct, extra = _without_copies(group)
        _check_identity(distinct)
        copies += extra
        plane = f"plane-{number}" if len(groups) > 1 else ""
        stacks += [_stack(part, "-".join(filter(None, (plane, name)))) for part, name in _parts(distinct)]
    return stacks, copies


def _by_plane(frames: Sequence[Frame]) -> list[list[Frame]]:
    """Images by size, spacing, orientation and frame of reference."""
    groups: list[list[Frame]] = []
    for frame in frames:
        group = next((each for each in groups if _same_plane(frame, each[0])), None)
        if group is not None:
            group.append(frame)
        elif len(groups) == MOST_GROUPS:
            raise Unusable(f"images of more than {MOST_GROUPS} orientations or sizes")
        else:
            groups.append([frame])
    return groups


def _same_plane(a: Frame, b: Frame) -> bool:
    return (
        a.size == b.size
        and a.frame_of_reference_uid == b.frame_of_reference_uid
        and all(abs(x - y) <= SAME_SPACING * y for x, y in zip(a.spacing, b.spacing, strict=True))
        and all(abs(x - y) <= SAME_DIRECTION for x, y in zip(a.orientation, b.orientation, strict=True))
    )


def _differences(groups: Sequence[Sequence[Frame]]) -> str:
    """How images of one series differ."""
    firsts = [group[0] for group in groups]
    differing = [
        name
        for name, values in (
            ("size", {each.size for each in firsts}),
            ("spacing", {each.spacing for each in firsts}),
            ("orientation", {each.orientation for each in firsts}),
            ("frame of reference", {each.frame_of_reference_uid for each in firsts}),
        )
        if len(values) > 1
    ]
    counts = ", ".join(
        f"{len(group)} of {group[0].size[0]} x {group[0].size[1]} at {by_axes(group[0].spacing)} mm"
        for group in sorted(groups, key=len, reverse=True)[:MOST_NAMED]
    )
    odd = min(groups, key=len)[0].slice.path.name
    return f"its images differ in {' and '.join(differing)}: {counts} (such as {odd})"


def _without_copies(frames: Sequence[Frame]) -> tuple[list[Frame], list[Frame]]:
    """Images without copies, and the copies: same position, same numbers, same content as an earlier image."""
    originals: list[Frame] = []
    copies: list[Frame] = []
    alike = defaultdict(list)
    for frame in frames:
        place = tuple(round(each / SAME_MM) for each in frame.position)
        alike[place, frame.distinguishing, frame.scaling, frame.slice.frame].append(frame)
    hashes: dict[Path, str] = {}
    for group in alike.values():
        seen = set()
        for frame in group:
            path = frame.slice.path
            if len(group) > 1 and path not in hashes:
                hashes[path] = _hash_pixels(path, frame.pixels_at)
            (copies if hashes.get(path) in seen else originals).append(frame)
            seen.add(hashes.get(path))
    return originals, copies


def _hash_pixels(path: Path, at: int) -> str:
    """Hash of a file from where its pixels begin."""
    try:
        with open_input(path) as file:
            file.seek(at)
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        raise Unusable(f"{path.name} cannot be read") from None


def _check_identity(frames: Sequence[Frame]) -> None:
    uses = Counter((frame.slice.sop_instance_uid, frame.slice.frame) for frame in frames)
    shared = sum(count for count in uses.values() if count > 1)
    if shared:
        raise Unusable(f"{shared} different images share their SOPInstanceUID with another")


def _parts(frames: Sequence[Frame]) -> list[tuple[Sequence[Frame], str]]:
    """Images by volume, each volume with the attribute that distinguishes it; all images if they are one volume.

    There are several volumes if positions recur, or if acquisitions overlap: separate stacks that extend into each
    other, as when a part of a scan was repeated.
    """
    places, most = _recurring(frames)
    if places and most == len(frames):
        raise NotAnImage(f"{most} images at one position, expected a stack of slices")
    reason = f"up to {most} images at one position (at {places} positions), and no number tells them apart"
    attributes = tuple(range(len(DISTINGUISHING)))
    if not places:
        uneven = _why_uneven(frames)
        if uneven is None and MODALITIES[frames[0].slice.sop_class_uid] != "CT":
            return [(frames, "")]  # interleaved MR acquires every second slice first and may number both passes
        attributes, reason = (OF_ACQUISITIONS, "") if uneven is None else (attributes, uneven)
    varied = [index for index in attributes if len({frame.distinguishing[index] for frame in frames}) > 1]
    for count in range(1, min(len(varied), 3) + 1):
        for indices in itertools.combinations(varied, count):
            by_values = defaultdict(list)
            for frame in frames:
                by_values[tuple(frame.distinguishing[index] for index in indices)].append(frame)
            parts = list(by_values.values())
            if any(_recurring(part)[0] for part in parts) or not (places or _overlap(parts)):
                continue
            wrong = next(filter(None, map(_why_no_volume, parts)), None)
            if wrong is None:
                return [(part, _name(indices, values, number)) for number, (values, part) in
                        enumerate(by_values.items(), 1)]  # fmt: skip
            if reason and count == 1:
                reason = f"{len(parts)} volumes in one series; by {DISTINGUISHING[indices[0]]} {wrong}"
    if reason:
        raise Unusable(reason)
    return [(frames, "")]


def _why_uneven(frames: Sequence[Frame]) -> str | None:
    """Why images at different positions form no volume; None if they do."""
    try:
        _stack(frames, "")
    except NotAnImage:
        raise
    except Unusable as error:
        return error.reason
    return None


def _why_no_volume(part: Sequence[Frame]) -> str | None:
    """Why a part of a series forms no volume; None if it does."""
    if len(part) < FEWEST_SLICES:
        return f"one has {len(part)} images only, expected at least {FEWEST_SLICES}"
    return _why_uneven(part)


def _overlap(parts: Sequence[Sequence[Frame]]) -> bool:
    """Whether each of several stacks extends into another, so that they are not one stack acquired in parts."""
    first = parts[0][0]
    ends = sorted((float(heights.min()), float(heights.max())) for heights in (_heights(part, first) for part in parts))
    highest = ends[0][1]
    for low, high in ends[1:]:
        if low >= highest - SAME_MM:
            return False
        highest = max(highest, high)
    return len(parts) > 1


def _recurring(frames: Sequence[Frame]) -> tuple[int, int]:
    """Number of positions with several images, and the most images at one position."""
    heights = np.sort(_heights(frames))
    starts = np.flatnonzero(np.diff(heights, prepend=-np.inf) > SAME_MM)
    sizes = np.diff(starts, append=len(heights))
    return int(np.count_nonzero(sizes > 1)), int(sizes.max())


def _name(indices: Sequence[int], values: Sequence[str], number: int) -> str:
    """A volume's name from the numbers that distinguish it; text from the file is not repeated."""
    if any(DISTINGUISHING[index] in ("stack", "kind") for index in indices) or not all(values):
        return str(number)
    for index in indices:
        if DISTINGUISHING[index] in NUMBERED:
            return f"{NUMBERED[DISTINGUISHING[index]]}-{number}"
    return "-".join(
        f"{DISTINGUISHING[index]}-{re.sub('[^0-9a-z]+', '-', value).strip('-')}"
        for index, value in zip(indices, values, strict=True)
    )


def _stack(frames: Sequence[Frame], part: str) -> Stack:
    """Ordered images as a volume.

    Raises:
        Unusable: unless they are evenly spaced along one line.
    """
    if len(frames) < 2:
        raise NotAnImage("a single image, expected a stack of slices")
    check_size(len(frames), *frames[0].size)
    heights = _heights(frames)
    order = np.argsort(heights, kind="stable")
    heights, positions = heights[order], np.array([frames[index].position for index in order])
    _check_even(heights)
    normal = _normal(frames[0])
    last = len(frames) - 1
    step = (positions[-1] - positions[0]) / last
    aside = step - normal * (step @ normal)
    if np.linalg.norm(aside) * last <= UNEVEN_MM:  # rounding, no tilted gantry
        step = step - aside
    off_mm = float(np.linalg.norm(positions - positions[0] - np.outer(np.arange(last + 1), step), axis=1).max())
    if off_mm > _tolerance(heights):
        raise Unusable(f"slices are shifted against each other by up to {off_mm:.2f} mm, expected them in line")
    row, column = np.array(frames[0].orientation).reshape(2, 3)
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 3] = step, positions[0]
    affine[:3, 1], affine[:3, 2] = column * frames[0].spacing[0], row * frames[0].spacing[1]
    return Stack(tuple(frames[index] for index in order), affine, part)


def _check_even(heights: NDArray[np.float64]) -> None:
    """Raise Unusable unless rising positions along the normal are evenly spaced, with the missing or uneven ones."""
    steps = np.diff(heights)
    one = float(np.median(steps[steps < 1.5 * steps.min()]))
    off = heights - np.linspace(heights[0], heights[-1], len(heights))
    if np.abs(off).max() <= _tolerance(heights):
        return
    counts = np.rint(steps / one).astype(np.int64)
    allowed = min(UNEVEN_MM, UNEVEN * one)
    fitting = (np.abs(steps - counts * one) <= counts * allowed).all()
    if fitting and (counts > 1).any() and not _is_second_distance(counts):
        gaps = np.flatnonzero(counts > 1)
        places = [heights[gap] + one * number for gap in gaps for number in range(1, min(counts[gap], MOST_NAMED + 2))]
        missing = int((counts - 1).sum())
        named = [f"{place:.2f}" for place in places[:MOST_NAMED]] + (["..."] if missing > MOST_NAMED else [])
        what = f"{counted(missing, 'slice')} missing"
        raise Unusable(f"{what}, at {', '.join(named)} mm along the slices' normal (spacing {one:.4g} mm)")
    ordered = np.sort(steps)
    distances = np.split(ordered, np.flatnonzero(np.diff(ordered) > allowed) + 1)
    if len(distances) > MOST_NAMED:
        raise Unusable(f"uneven: slices lie {steps.min():.4g} to {steps.max():.4g} mm apart, expected one distance")
    if len(distances) == 1:
        raise Unusable(
            f"uneven: slices lie {steps.min():.4g} to {steps.max():.4g} mm apart, and up to {np.abs(off).max():.2f} mm "
            "from where slices of one distance would lie"
        )
    found = " and ".join(f"{each.mean():.4g} mm ({len(each)} times)" for each in distances)
    two = next(filter(None, (_two_stacks(heights, float(each.mean()), allowed) for each in distances)), "")
    raise Unusable(f"uneven: slices lie {found} apart, expected one distance{two}")


def _is_second_distance(counts: NDArray[np.int64]) -> bool:
    """Whether gaps are too regular for missing slices: several equal ones in a row, or gaps almost everywhere.

    Args:
        counts: distance of each slice from the next, as a multiple of the smallest distance.
    """
    runs = (sum(1 for _ in run) for count, run in itertools.groupby(counts.tolist()) if count > 1)
    return max(runs, default=0) >= ALIKE_GAPS or int(np.count_nonzero(counts > 1)) * 2 > len(counts)


def _two_stacks(heights: NDArray[np.float64], distance: float, allowed: float) -> str:
    """A remark if slices are two stacks of equal distance that overlap; empty if not."""
    off = np.mod(heights - heights[0], distance)
    first = np.minimum(off, distance - off) <= allowed
    parts = heights[first], heights[~first]
    for part in parts:
        if len(part) < FEWEST_SLICES or np.abs(np.diff(part) - distance).max() > allowed:
            return ""
    return (
        f"; like two acquisitions of {len(parts[0])} and {len(parts[1])} slices that overlap, and no number tells which"
    )


def _tolerance(heights: NDArray[np.float64]) -> float:
    return min(UNEVEN_MM, UNEVEN * float(heights[-1] - heights[0]) / (len(heights) - 1))


def _normal(frame: Frame) -> NDArray[np.float64]:
    row, column = np.array(frame.orientation).reshape(2, 3)
    normal = np.cross(row, column)
    return np.asarray(normal / np.linalg.norm(normal))


def _heights(frames: Sequence[Frame], like: Frame | None = None) -> NDArray[np.float64]:
    """Positions in mm along the normal of the first image, or of another."""
    return np.array([frame.position for frame in frames]) @ _normal(like or frames[0])
