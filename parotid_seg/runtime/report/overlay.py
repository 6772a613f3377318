"""Draws the picture of a case: outlines on the scan, for all structures together and for each from end to end."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont, WebPImagePlugin

from parotid_seg.files import write_bytes
from parotid_seg.runtime.report.png import png_of
from parotid_seg.runtime.report.sheet import GAP_PX, MOST_STRUCTURES, PANEL_PX, SLICES, TITLE_PX, corner, sheet_size
from parotid_seg.scan.codes import ALL_ROIS, Rois
from parotid_seg.scan.components import Box, label_boxes
from parotid_seg.scan.intensity import Window
from parotid_seg.scan.labels import from_the_right, without_accents
from parotid_seg.scan.volume import Mask, Volume

T = TypeVar("T", int, float, slice)
Colour = tuple[int, int, int]

FIELD_MM, WHOLE_FIELD_MM = 80.0, 210.0
"""Least side of the square that a view of one structure, and of all of them, shows. The largest contoured glands are
about 80 mm long."""
AROUND_MM = 8.0
"""Margin around structures that need a larger square."""
SCALE_MM, LONG_SCALE_MM = 20, 100
"""Length of the bar in a view, and in a projection of more than twice that."""
TICK_PX = 12
THINNED = 96
"""About as many slices, rows and columns are used for projections."""
MARGIN_VOXELS = 2
"""Voxels around a view that its pixels at the edge are interpolated from."""
INK = (236, 238, 242)
PAPER = (16, 18, 22)
HALO_PX = 2
WEBP = {"format": WebPImagePlugin.WebPImageFile.format, "quality": 80, "method": 1}
"""Pillow imports the modules of all formats when it writes one whose module has not been imported."""

EDGES = {"axial": ("A", "R", "L"), "coronal": ("S", "R", "L"), "sagittal": ("S", "A", "P")}
"""Letters at the upper, left and right edge of each view: the patient's left is on the viewer's right."""


@dataclass(frozen=True)
class _View:
    """A section of the scan in one panel.

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


class _DrawnStructure(NamedTuple):
    """A structure that was found."""

    value: int
    name: str
    colour: Colour
    box: Box


def draw_case(
    volume: Volume,
    window: Window,
    mask: Mask,
    names: Sequence[str],
    volumes_ml: Mapping[str, float],
    title: str,
    *,
    rois: Rois = ALL_ROIS,
    reference: Mask | None = None,
) -> Image.Image:
    """Draw a case.

    The first row shows where on the scan the structures are: projections of the whole scan with a box around each, from
    the front and from the side, and all structures in an axial and a coronal slice. Below is a row for each structure
    that was found: five axial slices from its lower to its upper end, then a coronal and a sagittal one through its
    middle, with marks at those five. Each of these is a square around the whole structure, of equal size for all of
    them. Sections have the outlines of all structures, letters for the patient's directions and a scale. Radiological
    display: the patient's right is on the left in views, and comes first.

    Args:
        volume: the scan; the first channel is shown.
        window: the first channel's intensities that are shown as black and white.
        mask: labels (D, H, W).
        names: label names by value, background first.
        volumes_ml: volume of each structure by name.
        title: printed above.
        rois: the user's names and colours of structures.
        reference: another mask with the same labels, outlined in white; the views show both from end to end.
    """
    shown = mask if reference is None else np.where(mask > 0, mask, reference)
    structures = _structures(shown, names, rois)
    boxes = [each.box for each in structures]
    sheet = Image.new("RGB", sheet_size(len(structures)), PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((GAP_PX + 2, 3), _in_font(title), fill=INK, font=_font(15))
    thinned = _thinned(volume.voxels[0], window)
    for column, plane in enumerate(("coronal", "sagittal")):
        place, across_mm = corner(0, column), _across(volume, plane)
        sheet.paste(_projection(thinned, volume, plane, structures), place)
        _letter(sheet, plane, place, f"{plane} projection", across_mm)
    placed = [(view, corner(0, column)) for column, view in enumerate(_whole(shown, boxes, volume.spacing_mm), start=2)]
    field_mm = _field(FIELD_MM, boxes, volume.spacing_mm)
    for row, each in enumerate(structures, start=1):
        left, top = corner(row, 0)
        heading = f"{rois.shown_name(each.name)} {volumes_ml.get(each.name, 0.0):.1f} ml"
        draw.text((left + 2, top - TITLE_PX + 3), _in_font(heading), fill=each.colour, font=_font(15))
        placed += [(view, corner(row, column)) for column, view in enumerate(_views(shown, each, field_mm))]
    colours = {value: rois.colour_of(name, value) for value, name in enumerate(names) if value}
    for view, place in placed:
        sheet.paste(_panel(volume, window, view, [(mask, colours, 2), (reference, {}, 1)]), place)
        _mark(draw, view, place, volume.spacing_mm[0])
        _letter(sheet, view.plane, place, view.name, view.field_mm)
    return sheet


def save_picture(picture: Image.Image, path: Path) -> None:
    """Write a picture completely or not at all, as PNG or WebP by its suffix.

    Raises:
        OutputError: if it cannot be written.
    """
    write_bytes(png_of(picture) if path.suffix == ".png" else webp_of(picture), path)


def webp_of(picture: Image.Image) -> bytes:
    """A picture as the content of a lossy WebP file."""
    content = io.BytesIO()
    picture.save(content, **WEBP)  # type: ignore[arg-type]
    return content.getvalue()


def _structures(mask: Mask, names: Sequence[str], rois: Rois) -> list[_DrawnStructure]:
    """The structures of a mask, the patient's right ones first."""
    found = {
        names[value]: _DrawnStructure(value, names[value], rois.colour_of(names[value], value), box)
        for value, box in enumerate(label_boxes(mask, len(names) - 1), start=1)
        if box
    }
    return [found[name] for name in from_the_right(found)][:MOST_STRUCTURES]


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
        _View("axial", slice_at, (z, y, x), field_mm, f"axial {slice_at + 1}/{len(mask)}"),
        _View("coronal", row_at, (z, y, x), field_mm, "coronal", (slice_at,)),
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


def _views(mask: Mask, structure: _DrawnStructure, field_mm: float) -> list[_View]:
    """The views of a structure: slices evenly from its first to its last, fewer if it has fewer, and two across.

    The middle of these two is the median of its voxels, so they show it.
    """
    box = structure.box
    voxels = np.argwhere(mask[box] == structure.value)
    y, x = (int(np.median(voxels[:, axis])) + box[axis].start for axis in (1, 2))
    slices = np.unique(voxels[:, 0]) + box[0].start
    chosen = [int(slices[round(at)]) for at in np.linspace(0, len(slices) - 1, min(SLICES, len(slices)))]
    ends = {chosen[-1]: "upper end ", chosen[0]: "lower end "} if len(chosen) > 1 else {}
    middle = tuple((side.start + side.stop - 1) // 2 for side in box)
    centre = (middle[0], middle[1], middle[2])
    axial = [_View("axial", at, centre, field_mm, f"{ends.get(at, '')}{at + 1}/{len(mask)}") for at in chosen]
    across = (("coronal", y), ("sagittal", x))
    views = [_View(plane, at, centre, field_mm, plane, tuple(chosen)) for plane, at in across]
    return [*axial, *views]


def _thinned(voxels: NDArray[Any], window: Window) -> NDArray[Any]:
    """Every nth slice, row and column of a scan, clipped to a window; what projections are made from."""
    every = tuple(slice(None, None, max(1, size // THINNED)) for size in voxels.shape)
    thinned: NDArray[Any] = voxels[every].astype(np.float32)
    return np.clip(thinned, *window, out=thinned) - np.float32(window[0])


def _projection(
    thinned: NDArray[Any], volume: Volume, plane: str, structures: Sequence[_DrawnStructure]
) -> Image.Image:
    """A square with a projection of the whole scan at true proportions, and a box around each structure."""
    axis = {"coronal": 1, "sagittal": 2}[plane]
    thick = thinned.mean(axis=axis)[::-1]
    grey = Image.fromarray((thick * (255 / max(float(thick.max()), 1e-6))).astype(np.uint8))
    voxels_px = [step * PANEL_PX / _across(volume, plane) for step in _in_plane(plane, volume.spacing_mm)]
    height, width = (
        max(1, round(count * px)) for count, px in zip(_in_plane(plane, volume.shape), voxels_px, strict=True)
    )
    left, top = (PANEL_PX - width) // 2, (PANEL_PX - height) // 2
    panel = Image.new("RGB", (PANEL_PX, PANEL_PX))
    panel.paste(grey.resize((width, height), Image.Resampling.BILINEAR), (left, top))
    draw = ImageDraw.Draw(panel)
    for each in structures:
        rows, columns = _in_plane(plane, each.box)
        x = [left + at * voxels_px[1] for at in (columns.start, columns.stop)]
        y = [top + height - at * voxels_px[0] for at in (rows.stop, rows.start)]
        draw.rectangle((x[0] - 1, y[0] - 1, x[1], y[1]), outline=each.colour, width=2)
    return panel


def _across(volume: Volume, plane: str) -> float:
    """Side in mm of the square that holds the whole scan in a plane."""
    sizes = zip(_in_plane(plane, volume.shape), _in_plane(plane, volume.spacing_mm), strict=True)
    return max(count * step for count, step in sizes)


def _panel(
    volume: Volume, window: Window, view: _View, outlined: Sequence[tuple[Mask | None, Mapping[int, Colour], int]]
) -> Image.Image:
    """A square of a slice at true proportions, outlines drawn on it; black where the scan ends. The head is up.

    Args:
        volume, window, view: what is shown.
        outlined: masks, the colours of their labels (light for others), and the width of the line.
    """
    steps_mm, centre = _in_plane(view.plane, volume.spacing_mm), _in_plane(view.plane, view.centre)
    image = _section(volume.voxels[0], view)
    if view.plane != "axial":
        centre = (len(image) - 1 - centre[0], centre[1])
    half = [view.field_mm / 2 / step for step in steps_mm]
    reach = [math.ceil(each) + MARGIN_VOXELS for each in half]
    shown = [slice(max(0, at - far), max(0, at + far + 1)) for at, far in zip(centre, reach, strict=True)]
    row, column = (side.start - at + far for side, at, far in zip(shown, centre, reach, strict=True))
    part = image[shown[0], shown[1]]
    grey = np.zeros((2 * reach[0] + 1, 2 * reach[1] + 1), np.uint8)
    inside = (slice(row, row + part.shape[0]), slice(column, column + part.shape[1]))
    grey[inside] = np.clip((part.astype(np.float32) - window[0]) / (window[1] - window[0]), 0, 1) * 255
    size = (PANEL_PX, PANEL_PX)
    middle = [each + 0.5 for each in reach]  # of the central voxel
    square = (middle[1] - half[1], middle[0] - half[0], middle[1] + half[1], middle[0] + half[0])
    scaled = Image.fromarray(grey).resize(size, Image.Resampling.BICUBIC, box=square)
    pixels = np.repeat(np.asarray(scaled)[..., None], 3, axis=2)
    for each, colours, width in outlined:
        if each is None:
            continue
        marks = _section(each, view)[shown[0], shown[1]]
        structures = np.zeros_like(grey)
        structures[inside] = marks
        for value in np.flatnonzero(np.bincount(marks.ravel()))[1:] if marks.any() else ():
            share = Image.fromarray(np.where(structures == value, 255, 0).astype(np.uint8))
            filled = inner = np.asarray(share.resize(size, Image.Resampling.BILINEAR, box=square)) > 127
            for _ in range(width):
                inner = _shrunk(inner)
            pixels[filled & ~inner] = colours.get(int(value), INK)
    return Image.fromarray(pixels)


def _section(volume: NDArray[Any], view: _View) -> NDArray[Any]:
    """The section of a volume (D, H, W) in a view: rows downwards, columns to the viewer's right."""
    index: dict[str, Any] = {
        "axial": view.at,
        "coronal": (slice(None, None, -1), view.at),
        "sagittal": (slice(None, None, -1), slice(None), view.at),
    }
    return np.asarray(volume[index[view.plane]])


def _in_plane(plane: str, values: tuple[T, T, T]) -> tuple[T, T]:
    """The values for rows and columns of a plane, from those for slices, rows and columns of a volume."""
    z, y, x = values
    return {"axial": (y, x), "coronal": (z, x), "sagittal": (z, y)}[plane]


def _shrunk(area: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """An area without the pixels at its edge."""
    inner = area.copy()
    inner[1:] &= area[:-1]
    inner[:-1] &= area[1:]
    inner[:, 1:] &= area[:, :-1]
    inner[:, :-1] &= area[:, 1:]
    return inner


def _mark(draw: ImageDraw.ImageDraw, view: _View, place: tuple[int, int], slice_mm: float) -> None:
    """Marks at the edges of a coronal or sagittal view, where its marked slices are."""
    left, top = place
    for at in view.marked:
        y = top + PANEL_PX // 2 - round((at - view.centre[0]) * slice_mm * PANEL_PX / view.field_mm)
        for begin, end in ((left + 1, left + TICK_PX), (left + PANEL_PX - TICK_PX, left + PANEL_PX - 2)):
            draw.line((begin, y, end, y), fill=PAPER, width=3)
            draw.line((begin, y, end, y), fill=INK, width=1)


def _letter(sheet: Image.Image, plane: str, place: tuple[int, int], name: str, field_mm: float) -> None:
    """A view's name, the patient's directions and a scale, within the panel."""
    left, top = place
    up, before, after = EDGES[plane]
    scale_mm = LONG_SCALE_MM if field_mm > 2 * LONG_SCALE_MM and "projection" in name else SCALE_MM
    right, bottom = left + PANEL_PX - 7, top + PANEL_PX - 7
    for text, x, y, anchor in (
        (name, left + 5, top + 4, "la"),
        (up, left + PANEL_PX - 6, top + 4, "ra"),
        (before, left + TICK_PX + 3, top + PANEL_PX // 2, "lm"),
        (after, left + PANEL_PX - TICK_PX - 3, top + PANEL_PX // 2, "rm"),
        (f"{scale_mm} mm", right, bottom - 5, "rd"),
    ):
        letters, right_by, down_by = _letters(text, anchor)
        sheet.paste(letters, (x + right_by, y + down_by), letters)
    length, draw = round(scale_mm * PANEL_PX / field_mm), ImageDraw.Draw(sheet)
    draw.line((right - length - 1, bottom, right + 1, bottom), fill=PAPER, width=4)
    draw.line((right - length, bottom, right, bottom), fill=INK, width=2)


@lru_cache(1000)
def _letters(text: str, anchor: str) -> tuple[Image.Image, int, int]:
    """Text with a dark rim, which is readable on bone, and how far it begins to the right and below of its anchor."""
    font = _font(13)
    left, top, right, bottom = (round(each) for each in font.getbbox(text, anchor=anchor, stroke_width=HALO_PX))
    letters = Image.new("RGBA", (right - left + 1, bottom - top + 1))
    ImageDraw.Draw(letters).text(
        (-left, -top), text, fill=INK, font=font, anchor=anchor, stroke_width=HALO_PX, stroke_fill=PAPER
    )
    return letters, left, top


def _in_font(text: str) -> str:
    """Text in characters that the font has: without accents, and "?" for letters of other alphabets."""
    return "".join(sign if sign.isascii() or sign in "°±" else "?" for sign in without_accents(text))


@cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
