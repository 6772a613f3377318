"""Draws where an export differs from the trained model: the slices with most changed voxels."""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import ListedColormap
from numpy.typing import NDArray

from parotid_seg.files import atomic_write
from parotid_seg.scan.intensity import Windows
from parotid_seg.scan.volume import Mask, Volume

MOST_SLICES = 6
MARGIN_MM = 15.0
"""Margin around the structures, to which the picture is cropped."""


def draw_difference(volume: Volume, windows: Windows, expected: Mask, found: Mask, title: str, path: Path) -> None:
    """Write a PNG: trained model's outline white, export's orange, changed voxels red. Raises OutputError."""
    changed = np.count_nonzero(expected != found, axis=(1, 2))
    order = np.argsort(changed)[::-1][:MOST_SLICES]
    shown = np.sort(order[changed[order] > 0])
    low, high = map(float, windows[0])
    rows, columns = (
        _span((expected[shown] > 0) | (found[shown] > 0), axis, volume.spacing_mm[axis]) for axis in (1, 2)
    )
    figure, panels = plt.subplots(2, MOST_SLICES // 2, figsize=(12, 6.0), layout="constrained")
    for axes in panels.flat:
        axes.set_axis_off()
    for axes, index in zip(panels.flat, shown, strict=False):
        aspect = volume.spacing_mm[1] / volume.spacing_mm[2]
        axes.imshow(volume.voxels[0, index], cmap="gray", vmin=low, vmax=high, aspect=aspect)
        differs = np.ma.masked_equal(expected[index] != found[index], False)
        axes.imshow(differs, cmap=ListedColormap(["red"]), aspect=aspect, alpha=0.8, interpolation="nearest")
        for mask, colour in ((expected[index] > 0, "white"), (found[index] > 0, "orange")):
            if mask.any():
                axes.contour(mask, [0.5], colors=colour, linewidths=0.9)
        axes.set(xlim=columns, ylim=rows[::-1])
        axes.set_title(f"slice {index}: {changed[index]} voxels changed", fontsize=10)
    figure.suptitle(f"{title}\ntrained model white, export orange, changed red", fontsize=11)
    with atomic_write(path) as partial:
        figure.savefig(partial, dpi=90, format="png")
    plt.close(figure)


def _span(shown: NDArray[np.bool_], axis: int, spacing_mm: float) -> tuple[float, float]:
    """First and last position of the shown structures along an axis, with a margin and within the scan."""
    where = np.flatnonzero(shown.any(axis=tuple({0, 1, 2} - {axis})))
    margin, last = MARGIN_MM / spacing_mm, shown.shape[axis] - 1
    first, stop = (where[0], where[-1]) if where.size else (0, last)
    return max(-0.5, first - margin), min(last + 0.5, stop + margin)
