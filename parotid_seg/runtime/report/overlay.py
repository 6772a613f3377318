"""Draws the picture of a case: outlines on the scan, for both sides together and for each structure from end to end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from parotid_seg.files import atomic_write
from parotid_seg.scan.codes import COLOURS
from parotid_seg.scan.components import Box, label_boxes
from parotid_seg.scan.intensity import Window
from parotid_seg.scan.labels import plain_name, side_of
from parotid_seg.scan.volume import Mask, Volume

T = TypeVar("T", int, float)

FIELD_MM, WHOLE_FIELD_MM = 110.0, 210.0
"""Least side of the square that a view of one structure, and of all of them, shows. The largest contoured glands are
about 80 mm long."""
AROUND_MM = 8.0
"""Margin around structures that need a larger square."""
PANEL_PX = 240
GAP_PX = 4
TITLE_PX = 24
SCALE_MM = 20
TICK_PX = 14
MOST_STRUCTURES = 6
"""Most columns of a picture. If there are more structures, the first ones are shown."""
INK = (236, 238, 242)
PAPER = (16, 18, 22)
SAVED_AS = {
    ".png": {"format": "PNG", "compress_level": 1},  # a third of the time, a tenth larger
    ".webp": {"format": "WEBP", "quality": 80, "method": 1},
}

EDGES = {"axial": ("A", "P", "R", "L"), "coronal": ("S", "I", "R", "L"), "sagittal": ("S", "I", "A", "P")}
"""Letters at the upper, lower, left and right edge of each view: the patient's left is on the viewer's right."""


@dataclass(frozen=True)
class _View:
    """One panel.

    Attributes:
        plane: a key of `EDGES`.
        at: index of the shown slice, row or column.
        centre: slice, row and column of the panel's middle.
        field_mm: side of the square.
        name: written into the panel.
        marked: slices to mark at the edge of a coronal or sagittal view.
    """

    plane: str
    at: int
    centre: tuple[int, int, int]
    field_mm: float
    name: str
    marked: tuple[int, ...] = ()


def draw_case(
    volume: Volume,
    window: Window,
    mask: Mask,
    names: Sequence[str],
    volumes_ml: Mapping[str, float],
    title: str,
    reference: Mask | None = None,
) -> Image.Image:
    """Draw a case.

    The first row shows all structures, in an axial and a coronal slice. Below is a column for each structure that was
    found: its first, middle and last axial slice, then a coronal and a sagittal one through its middle, with marks at
    those three slices. Each view is a square around the whole structure, of equal size for all structures, with the
    outlines of all structures, letters for the patient's directions and a scale. Radiological display: the patient's
    right is on the left, in views and in the order of the columns.

    Args:
        volume: the scan; the first channel is shown.
        window: the first channel's intensities that are shown as black and white.
        mask: labels (D, H, W).
        names: label names by value, background first.
        volumes_ml: volume of each structure by name.
        title: printed above.
        reference: another mask with the same labels, outlined in white; the views show both from end to end.
    """
    shown = mask if reference is None else np.where(mask > 0, mask, reference)
    boxes = label_boxes(shown, len(names) - 1)
    columns = _columns(boxes, names)
    pages = max(2, len(columns))
    rows = 1 + (5 if columns else 0)
    step = PANEL_PX + GAP_PX
    sheet = Image.new("RGB", (pages * step + GAP_PX, TITLE_PX + rows * step + (TITLE_PX if columns else 0)), PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((GAP_PX + 2, 3), title, fill=INK, font=_font(15))
    overview = _whole(shown, [box for _, box in columns], volume.spacing_mm)
    placed = [(view, GAP_PX + place * step, TITLE_PX) for place, view in enumerate(overview)]
    field_mm = _field(FIELD_MM, [box for _, box in columns], volume.spacing_mm)
    for place, (value, box) in enumerate(columns):
        left, top = GAP_PX + place * step, TITLE_PX + step
        heading = f"{plain_name(names[value])} {volumes_ml.get(names[value], 0.0):.1f} ml"
        draw.text((left + 2, top + 3), heading, fill=_colour(value), font=_font(15))
        views = _views(shown, value, box, field_mm)
        placed += [(view, left, top + TITLE_PX + row * step) for row, view in enumerate(views)]
    for view, left, top in placed:
        sheet.paste(_panel(volume, window, mask, view, reference), (left, top))
        _letter(draw, view, left, top, volume)
    return sheet


def save_picture(picture: Image.Image, path: Path) -> None:
    """Write a picture completely or not at all, in the format of its suffix, a key of `SAVED_AS`.

    Raises:
        OutputError: if it cannot be written.
    """
    with atomic_write(path) as partial:
        picture.save(partial, **SAVED_AS[path.suffix])  # type: ignore[arg-type]


def _columns(boxes: Sequence[Box | None], names: Sequence[str]) -> list[tuple[int, Box]]:
    """Values and boxes of the structures found: right ones, those without a side, left ones."""

    def from_the_right(column: tuple[int, Box]) -> int:
        side = side_of(names[column[0]])
        return (side == "left") - (side == "right")

    structures = [(value, box) for value, box in enumerate(boxes, start=1) if box]
    return sorted(structures, key=from_the_right)[:MOST_STRUCTURES]


def _field(least_mm: float, boxes: Sequence[Box], spacing_mm: Sequence[float]) -> float:
    """Side of a square that holds each of the boxes from all directions."""
    extents = [(side.stop - side.start) * step for box in boxes for side, step in zip(box, spacing_mm, strict=True)]
    return max(least_mm, max(extents, default=0.0) + 2 * AROUND_MM)


def _whole(mask: Mask, boxes: Sequence[Box], spacing_mm: Sequence[float]) -> list[_View]:
    """An axial and a coronal view of all structures, in the slices that show most structures, then most voxels."""
    low = [min((box[axis].start for box in boxes), default=0) for axis in range(3)]
    high = [max((box[axis].stop for box in boxes), default=size) for axis, size in enumerate(mask.shape)]
    around: Box = (slice(low[0], high[0]), slice(low[1], high[1]), slice(low[2], high[2]))
    z, y, x = ((side.start + side.stop - 1) // 2 for side in around)
    field_mm = _field(WHOLE_FIELD_MM, [around] if boxes else [], spacing_mm)
    part = mask[around] > 0
    slice_at = _best(part.sum(axis=(1, 2)), [box[0] for box in boxes], low[0])
    row_at = _best(part.sum(axis=(0, 2)), [box[1] for box in boxes], low[1])
    return [
        _View("axial", slice_at, (z, y, x), field_mm, f"{slice_at + 1}/{len(mask)}"),
        _View("coronal", row_at, (z, y, x), field_mm, "", (slice_at,)),
    ]


def _best(voxels: NDArray[np.intp], spans: Sequence[slice], start: int) -> int:
    """The position within most spans, and of several the one with most voxels; the middle if there are none.

    Args:
        voxels: of all structures, at each place from `start` on.
        spans: of each structure.
        start: the first place.
    """
    if not spans:
        return start + len(voxels) // 2
    places = np.arange(len(voxels)) + start
    within = np.sum([(places >= span.start) & (places < span.stop) for span in spans], axis=0)
    return start + int(np.lexsort((voxels, within))[-1])


def _views(mask: Mask, value: int, box: Box, field_mm: float) -> list[_View]:
    """The five views of a structure. Its middle is the median of its voxels, so every view shows it."""
    voxels = np.argwhere(mask[box] == value)
    z, y, x = (int(np.median(voxels[:, axis])) + box[axis].start for axis in range(3))
    middle = tuple((side.start + side.stop - 1) // 2 for side in box)
    slices = {"first": box[0].start, "middle": z, "last": box[0].stop - 1}
    centre = (middle[0], middle[1], middle[2])
    axial = [_View("axial", at, centre, field_mm, f"{name} {at + 1}/{len(mask)}") for name, at in slices.items()]
    marked = tuple(slices.values())
    across = (("coronal", y), ("sagittal", x))
    return [*axial, *(_View(plane, at, centre, field_mm, "", marked) for plane, at in across)]


def _panel(volume: Volume, window: Window, mask: Mask, view: _View, reference: Mask | None) -> Image.Image:
    """A square of a slice at true proportions, outlines drawn on it; black where the scan ends. The head is up."""
    steps_mm, centre = _in_plane(view, volume.spacing_mm), _in_plane(view, view.centre)
    image = _section(volume.voxels[0], view)
    if view.plane != "axial":
        centre = (len(image) - 1 - centre[0], centre[1])
    reach = [round(view.field_mm / 2 / step) for step in steps_mm]
    shown = [slice(max(0, at - far), max(0, at + far + 1)) for at, far in zip(centre, reach, strict=True)]
    row, column = (side.start - at + far for side, at, far in zip(shown, centre, reach, strict=True))
    part = image[shown[0], shown[1]]
    grey = np.zeros((2 * reach[0] + 1, 2 * reach[1] + 1), np.uint8)
    inside = (slice(row, row + part.shape[0]), slice(column, column + part.shape[1]))
    grey[inside] = np.clip((part.astype(np.float32) - window[0]) / (window[1] - window[0]), 0, 1) * 255
    size = (PANEL_PX, PANEL_PX)
    pixels = np.repeat(np.asarray(Image.fromarray(grey).resize(size, Image.Resampling.BICUBIC))[..., None], 3, axis=2)
    for each, colour, width in ((mask, None, 2), (reference, INK, 1)):
        if each is None:
            continue
        marks = _section(each, view)[shown[0], shown[1]]
        structures = np.zeros_like(grey)
        structures[inside] = marks
        for value in np.flatnonzero(np.bincount(marks.ravel()))[1:] if marks.any() else ():
            share = Image.fromarray(np.where(structures == value, 255, 0).astype(np.uint8))
            filled = inner = np.asarray(share.resize(size, Image.Resampling.BILINEAR)) > 127
            for _ in range(width):
                inner = _shrunk(inner)
            pixels[filled & ~inner] = colour or _colour(int(value))
    return Image.fromarray(pixels)


def _section(volume: NDArray[Any], view: _View) -> NDArray[Any]:
    """The section of a volume (D, H, W) in a view: rows downwards, columns to the viewer's right."""
    index: dict[str, Any] = {
        "axial": view.at,
        "coronal": (slice(None, None, -1), view.at),
        "sagittal": (slice(None, None, -1), slice(None), view.at),
    }
    return np.asarray(volume[index[view.plane]])


def _in_plane(view: _View, values: tuple[T, T, T]) -> tuple[T, T]:
    """The values for rows and columns of a view, from those for slices, rows and columns of a volume."""
    z, y, x = values
    return {"axial": (y, x), "coronal": (z, x), "sagittal": (z, y)}[view.plane]


def _shrunk(area: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """An area without the pixels at its edge."""
    inner = area.copy()
    inner[1:] &= area[:-1]
    inner[:-1] &= area[1:]
    inner[:, 1:] &= area[:, :-1]
    inner[:, :-1] &= area[:, 1:]
    return inner


def _letter(draw: ImageDraw.ImageDraw, view: _View, left: int, top: int, volume: Volume) -> None:
    """The view's name, the patient's directions, marks of slices and a scale, within the panel."""
    middle, end = PANEL_PX // 2, PANEL_PX - 5
    up, down, before, after = EDGES[view.plane]
    slices_shown = 2 * round(view.field_mm / 2 / volume.spacing_mm[0]) + 1
    for at in view.marked:
        y = top + middle - round((at - view.centre[0]) * PANEL_PX / slices_shown)
        draw.line((left + 1, y, left + TICK_PX, y), fill=INK, width=1)
        draw.line((left + PANEL_PX - TICK_PX, y, left + PANEL_PX - 2, y), fill=INK, width=1)
    length = round(SCALE_MM * PANEL_PX / view.field_mm)
    right, bottom = left + PANEL_PX - 8, top + PANEL_PX - 8
    for text, x, y, anchor in (
        (f"{view.plane} {view.name}".strip(), left + 5, top + 5, "la"),
        (up, left + PANEL_PX - 5, top + 5, "ra"),
        (down, left + middle, top + end, "md"),
        (before, left + TICK_PX + 4, top + middle, "lm"),
        (after, left + PANEL_PX - TICK_PX - 4, top + middle, "rm"),
        (f"{SCALE_MM} mm", right, bottom - 6, "rd"),
    ):
        _write(draw, text, (x, y), anchor)
    draw.line((right - length, bottom, right, bottom), fill=PAPER, width=4)
    draw.line((right - length, bottom, right, bottom), fill=INK, width=2)


def _write(draw: ImageDraw.ImageDraw, text: str, at: tuple[int, int], anchor: str) -> None:
    """Write text that is readable on any background, including bone."""
    x0, y0, x1, y1 = draw.textbbox(at, text, font=_font(13), anchor=anchor)
    draw.rectangle((x0 - 2, y0 - 1, x1 + 2, y1 + 1), fill=PAPER)
    draw.text(at, text, fill=INK, font=_font(13), anchor=anchor)


def _colour(value: int) -> tuple[int, int, int]:
    return COLOURS[(value - 1) % len(COLOURS)]


@cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
