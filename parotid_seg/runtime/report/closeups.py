"""The report's picture of a case: each structure from three sides, close up and small."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from parotid_seg.files import atomic_write
from parotid_seg.scan.boxes import Box, label_boxes
from parotid_seg.scan.codes import COLOURS
from parotid_seg.scan.intensity import Window
from parotid_seg.scan.labels import plain_name, side_of
from parotid_seg.scan.volume import Mask, Volume

FIELD_MM = 110.0
"""Side of the square that a view shows, unless a structure needs more; the largest contoured glands are about 80 mm
long."""
AROUND_MM = 8.0
"""What is shown around a structure that needs more."""
PANEL_PX = 240
GAP_PX = 4
TITLE_PX = 24
SCALE_MM = 20
MOST_STRUCTURES = 6
"""Columns of a picture. A model of more structures than that is no longer looked at this closely."""
QUALITY = 80
INK = (236, 238, 242)
PAPER = (16, 18, 22)

EDGES = {"axial": ("A", "P", "R", "L"), "coronal": ("S", "I", "R", "L"), "sagittal": ("S", "I", "A", "P")}
"""What each view has at its upper, lower, left and right edge: the patient's left is on the viewer's right."""


def draw_views(volume: Volume, window: Window, mask: Mask, names: tuple[str, ...], path: Path) -> None:
    """Write a WebP picture: a column for each structure that was found, below each other axial, coronal and sagittal.

    Each view is a slice through the median of the structure's voxels, so that every view meets it, and a square around
    the whole structure, of one size for all (`FIELD_MM`, or what the longest needs), with the outlines of all
    structures, letters for the patient's directions and a scale. Columns stand as a radiologist looks at a patient:
    what is on the right comes first.

    Args:
        volume: the scan; of several channels the first is shown.
        window: the first channel's intensities that become black and white.
        mask: labels (D, H, W).
        names: label names by value, background first.
        path: the .webp file; it appears only once it is complete.

    Raises:
        OutputError: if it cannot be written.
    """
    columns = _columns(label_boxes(mask, len(names) - 1), names)
    extents = [
        (side.stop - side.start) * step for _, box in columns for side, step in zip(box, volume.spacing_mm, strict=True)
    ]
    field_mm = max(FIELD_MM, max(extents, default=0.0) + 2 * AROUND_MM)
    width = max(1, len(columns)) * (PANEL_PX + GAP_PX) + GAP_PX
    sheet = Image.new("RGB", (width, TITLE_PX + len(EDGES) * (PANEL_PX + GAP_PX)), PAPER)
    draw = ImageDraw.Draw(sheet)
    for number, (value, box) in enumerate(columns):
        left = GAP_PX + number * (PANEL_PX + GAP_PX)
        draw.text((left + 2, 3), plain_name(names[value]), fill=COLOURS[(value - 1) % len(COLOURS)], font=_font(15))
        for row, (name, panel) in enumerate(_views(volume, window, mask, value, box, field_mm)):
            top = TITLE_PX + row * (PANEL_PX + GAP_PX)
            sheet.paste(panel, (left, top))
            _letter(draw, name, left, top, field_mm)
    with atomic_write(path) as partial:
        sheet.save(partial, format="WEBP", quality=QUALITY, method=1)


def _columns(boxes: Sequence[Box | None], names: tuple[str, ...]) -> list[tuple[int, Box]]:
    """Values and boxes of what was found: the patient's right structures, those without a side, the left ones."""

    def from_the_right(column: tuple[int, Box]) -> int:
        side = side_of(names[column[0]])
        return (side == "left") - (side == "right")

    found = [(value, box) for value, box in enumerate(boxes, start=1) if box]
    return sorted(found, key=from_the_right)[:MOST_STRUCTURES]


def _views(
    volume: Volume, window: Window, mask: Mask, value: int, box: Box, field_mm: float
) -> list[tuple[str, Image.Image]]:
    """The three views of a structure; the head is up and the nose is up or on the left."""
    places = np.argwhere(mask[box] == value)
    z, y, x = (int(np.median(places[:, axis])) + box[axis].start for axis in range(3))
    middle = [(side.start + side.stop - 1) // 2 for side in box]
    up_z = mask.shape[0] - 1 - middle[0]
    dz, dy, dx = volume.spacing_mm
    shown = volume.voxels[0]
    up = slice(None, None, -1)
    views = (
        ("axial", shown[z], mask[z], (middle[1], middle[2]), (dy, dx)),
        ("coronal", shown[up, y], mask[up, y], (up_z, middle[2]), (dz, dx)),
        ("sagittal", shown[up, :, x], mask[up, :, x], (up_z, middle[1]), (dz, dy)),
    )
    return [
        (name, _panel(np.asarray(image), labels, centre, steps_mm, window, field_mm))
        for name, image, labels, centre, steps_mm in views
    ]


def _panel(
    image: NDArray[np.generic],
    labels: Mask,
    centre: tuple[int, int],
    steps_mm: tuple[float, float],
    window: Window,
    field_mm: float,
) -> Image.Image:
    """A square of a slice around a pixel at true proportions, outlines drawn on it; black where the scan ends."""
    reach = [round(field_mm / 2 / step) for step in steps_mm]
    kept = [slice(max(0, at - far), at + far + 1) for at, far in zip(centre, reach, strict=True)]
    row, column = ((side.start - at + far) for side, at, far in zip(kept, centre, reach, strict=True))
    part, marks = image[kept[0], kept[1]], labels[kept[0], kept[1]]
    grey = np.zeros((2 * reach[0] + 1, 2 * reach[1] + 1), np.uint8)
    inside = (slice(row, row + part.shape[0]), slice(column, column + part.shape[1]))
    grey[inside] = np.clip((part.astype(np.float32) - window[0]) / (window[1] - window[0]), 0, 1) * 255
    structures = np.zeros_like(grey)
    structures[inside] = marks
    size = (PANEL_PX, PANEL_PX)
    pixels = np.repeat(np.asarray(Image.fromarray(grey).resize(size, Image.Resampling.BICUBIC))[..., None], 3, axis=2)
    for value in np.flatnonzero(np.bincount(marks.ravel()))[1:] if marks.any() else ():
        share = Image.fromarray(np.where(structures == value, 255, 0).astype(np.uint8))
        whole = np.asarray(share.resize(size, Image.Resampling.BILINEAR)) > 127
        pixels[whole & ~_shrunk(_shrunk(whole))] = COLOURS[(int(value) - 1) % len(COLOURS)]
    return Image.fromarray(pixels)


def _shrunk(area: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """An area without the pixels at its edge."""
    inner = area.copy()
    inner[1:] &= area[:-1]
    inner[:-1] &= area[1:]
    inner[:, 1:] &= area[:, :-1]
    inner[:, :-1] &= area[:, 1:]
    return inner


def _letter(draw: ImageDraw.ImageDraw, name: str, left: int, top: int, field_mm: float) -> None:
    """The view's name, the patient's directions and a scale, within the panel."""
    middle, end = PANEL_PX // 2, PANEL_PX - 5
    up, down, before, after = EDGES[name]
    text = {"font": _font(13), "fill": INK, "stroke_width": 1, "stroke_fill": PAPER}
    draw.text((left + 5, top + 4), name, anchor="la", **text)  # type: ignore[arg-type]
    for letter, x, y, anchor in (
        (up, middle, 4, "ma"),
        (down, middle, end, "md"),
        (before, 5, middle, "lm"),
        (after, end, middle, "rm"),
    ):
        draw.text((left + x, top + y), letter, anchor=anchor, **text)  # type: ignore[arg-type]
    length = round(SCALE_MM * PANEL_PX / field_mm)
    right, bottom = left + PANEL_PX - 8, top + PANEL_PX - 8
    draw.line((right - length, bottom, right, bottom), fill=INK, width=2)
    draw.text((right, bottom - 5), f"{SCALE_MM} mm", anchor="rd", **text)  # type: ignore[arg-type]


@cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
