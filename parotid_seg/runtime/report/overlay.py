"""A picture of a scan with its mask: axial, coronal and sagittal slices through the glands."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

from parotid_seg.files import atomic_write
from parotid_seg.scan.boxes import label_boxes
from parotid_seg.scan.codes import COLOURS
from parotid_seg.scan.intensity import Window
from parotid_seg.scan.volume import Mask, Volume

FIELD_MM = 210.0
"""Side of the square that a view shows, unless the structures need more."""
AROUND_MM = 15.0
"""What is shown around structures that need more."""
PX_PER_MM = 2.0
MARGIN_PX = 10


def draw_overlay(
    volume: Volume, window: Window, mask: Mask, volumes_ml: dict[str, float], title: str, path: Path
) -> None:
    """Write a PNG: an axial and a coronal slice through the glands, and a sagittal one through each gland.

    A slice is the one that shows most of every structure, however unequal they are; where no slice meets all, those
    that are not met have one of their own. Each view reaches around all structures. Of several channels the first is
    shown. Radiological display: the patient's right is on the left of axial and coronal slices.

    Args:
        volume: the scan.
        window: the first channel's intensities that become black and white.
        mask: labels (D, H, W).
        volumes_ml: volume of each structure by name, in the order of its label values.
        title: printed above.
        path: the .png file; it appears only once it is complete.

    Raises:
        OutputError: if it cannot be written.
    """
    shown, places = volume.voxels[0], _places(mask)
    everywhere = np.concatenate(places) if places else np.array([np.array(mask.shape) // 2])
    low, high = everywhere.min(axis=0), everywhere.max(axis=0)
    middle, extent = (low + high) // 2, (high - low + 1) * volume.spacing_mm
    field_mm = max(FIELD_MM, float(extent.max()) + 2 * AROUND_MM)
    dz, dy, dx = volume.spacing_mm
    z, y, x = len(mask) - 1 - int(middle[0]), int(middle[1]), int(middle[2])
    views = [("axial", shown[at], mask[at], (y, x), dy, dx) for at in _best_slices(places, 0, middle)]
    views += [("coronal", shown[::-1, at], mask[::-1, at], (z, x), dz, dx) for at in _best_slices(places, 1, middle)]
    for place in places:
        (at,) = _best_slices([place], 2, middle)
        name = list(volumes_ml)[mask[tuple(place[0])] - 1].replace("_", " ")
        views.append((f"sagittal, {name}", shown[::-1, :, at], mask[::-1, :, at], (z, y), dz, dy))
    panels = [
        (
            name,
            _panel(*_crop(np.asarray(image), labels, centre, row_mm, column_mm, field_mm), window, row_mm, column_mm),
        )
        for name, image, labels, centre, row_mm, column_mm in views
    ]
    panel_height = max(panel.height for _, panel in panels)
    width_px = max(sum(panel.width + MARGIN_PX for _, panel in panels) + MARGIN_PX, 720)
    canvas = Image.new("RGB", (width_px, panel_height + 74), (16, 18, 22))
    draw = ImageDraw.Draw(canvas)
    font, small = ImageFont.load_default(18), ImageFont.load_default(14)
    draw.text((MARGIN_PX, 8), title, fill=(235, 235, 235), font=font)
    x = MARGIN_PX + int(draw.textlength(title, font=font)) + 24
    for index, (name, size) in enumerate(volumes_ml.items()):
        text = f"{name.replace('_', ' ')} {size:.1f} ml"
        draw.text((x, 9), text, fill=COLOURS[index % len(COLOURS)], font=font)
        x += int(draw.textlength(text, font=font)) + 24
    x = MARGIN_PX
    for name, panel in panels:
        canvas.paste(panel, (x, 40))
        draw.text((x, 40 + panel_height + 6), name, fill=(170, 176, 184), font=small)
        x += panel.width + MARGIN_PX
    with atomic_write(path) as partial:
        canvas.save(partial, format="PNG", compress_level=1)  # a third of the time, a tenth larger


def _places(mask: Mask) -> list[NDArray[np.intp]]:
    """Of each structure that was found its voxels (N, 3), without a look at the rest of a large scan."""
    boxes = enumerate(label_boxes(mask, int(mask.max())), start=1)
    return [np.argwhere(mask[box] == value) + [side.start for side in box] for value, box in boxes if box is not None]


def _best_slices(places: Sequence[NDArray[np.intp]], axis: int, middle: NDArray[np.intp]) -> list[int]:
    """The slice across an axis that shows most of all structures, each measured by its own largest section; then one
    for each structure that it does not meet. The middle one if there is no structure.

    Args:
        places: voxels of each structure (N, 3).
        axis: of the volume.
        middle: of all structures.
    """
    if not places:
        return [int(middle[axis])]
    length = 1 + max(int(place[:, axis].max()) for place in places)
    sections = np.array([np.bincount(place[:, axis], minlength=length) for place in places], dtype=np.float64)
    sections /= sections.max(axis=1, keepdims=True)
    met = (sections > 0).sum(axis=0)
    score = np.where(met == met.max(), sections.min(axis=0) if met.max() == len(places) else sections.sum(axis=0), -1.0)
    best = int(score.argmax())
    unmet = [int(each.argmax()) for each in sections if each[best] == 0]
    return list(dict.fromkeys([best, *unmet]))


def _crop(
    image: NDArray[np.generic],
    labels: Mask,
    centre: tuple[int, int],
    row_mm: float,
    column_mm: float,
    field_mm: float,
) -> tuple[NDArray[np.generic], Mask]:
    """The field around the glands, as far as the scan reaches."""
    kept = tuple(
        slice(max(0, round(middle - field_mm / 2 / spacing)), round(middle + field_mm / 2 / spacing) + 1)
        for middle, spacing in zip(centre, (row_mm, column_mm), strict=True)
    )
    return image[kept], labels[kept]


def _panel(image: NDArray[np.generic], labels: Mask, window: Window, row_mm: float, column_mm: float) -> Image.Image:
    """A slice at true proportions, outlines drawn on it."""
    height_mm, width_mm = image.shape[0] * row_mm, image.shape[1] * column_mm
    size = (max(1, round(width_mm * PX_PER_MM)), max(1, round(height_mm * PX_PER_MM)))
    grey = np.clip((image.astype(np.float32) - window[0]) / (window[1] - window[0]), 0, 1) * 255
    scaled = Image.fromarray(grey.astype(np.uint8)).resize(size, Image.Resampling.BICUBIC)
    pixels = np.stack([np.asarray(scaled)] * 3, axis=-1)
    for value in range(1, int(labels.max()) + 1):
        share = Image.fromarray((labels == value).astype(np.float32)).resize(size, Image.Resampling.BILINEAR)
        inside = np.asarray(share) > 0.5
        outline = inside & ~ndimage.binary_erosion(inside, iterations=2)
        pixels[outline] = COLOURS[(value - 1) % len(COLOURS)]
    return Image.fromarray(pixels)
