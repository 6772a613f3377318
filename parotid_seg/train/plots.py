"""Pictures of a training run: its curves, and what the model draws on validation patients."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from numpy.typing import NDArray

from parotid_seg.files import atomic_write
from parotid_seg.records import read_lines
from parotid_seg.scan.volume import Mask
from parotid_seg.train.moco import Pair
from parotid_seg.train.patients import Patient

matplotlib.use("Agg")
import matplotlib.pyplot as plt

FIELD_MM = 280.0
COLOURS = ("tab:orange", "tab:cyan", "tab:green", "tab:pink", "tab:olive", "tab:purple", "tab:red")


def draw_curves(metrics: Path, picture: Path, figures: Sequence[tuple[str, str]]) -> None:
    """The course of a `metrics.jsonl`'s figures over the epochs.

    Args:
        metrics: the file; lines that are no records are left out.
        picture: the file to make.
        figures: for each panel the prefix of the figures' names, and the axis' label.
    """
    found = read_lines(metrics, dict[str, float])
    records = [record for record in found if isinstance(record, dict) and "epoch" in record]
    names = list(dict.fromkeys(name for record in records for name in record))
    figure, panels = plt.subplots(1, len(figures), figsize=(5 * len(figures), 3.6), layout="constrained")
    for panel, (prefix, label) in zip(panels, figures, strict=True):
        lines = [name for name in names if name.startswith(prefix) or name.startswith(f"places_{prefix}")]
        for name in lines:
            known = [record for record in records if name in record]
            style = ".-" if len(known) < len(records) else "-"
            title = name.removeprefix(prefix).strip("_").replace("_", " ") or "all"
            panel.plot([record["epoch"] for record in known], [record[name] for record in known], style, label=title)
        panel.set(xlabel="epoch", ylabel=label)
        panel.xaxis.get_major_locator().set_params(integer=True)
        panel.grid(alpha=0.3)
        if len(lines) > 1:
            panel.legend()
    with atomic_write(picture) as partial:
        figure.savefig(partial, dpi=110, format="png")
    plt.close(figure)


def draw_pairs(pair: Pair, picture: Path, count: int = 6) -> None:
    """The middle channels of both views of some slices, first above second, and the places matched in them."""
    count = min(count, len(pair.first))
    figure, axes = plt.subplots(2, count, figsize=(2.4 * count, 5), layout="constrained", squeeze=False)
    for row, (images, places) in zip(
        axes, ((pair.first, pair.first_places), (pair.second, pair.second_places)), strict=True
    ):
        for index, panel in enumerate(row):
            panel.axis("off")
            panel.imshow(images[index, images.shape[1] // 2].float().cpu(), cmap="gray", vmin=0, vmax=1)
            if places.shape[1]:
                rows, columns = places[index].cpu().unbind(-1)
                panel.scatter(columns, rows, c=range(len(rows)), cmap="hsv", s=8)
    with atomic_write(picture) as partial:
        figure.savefig(partial, dpi=110, format="png")
    plt.close(figure)


def draw_samples(
    patients: Sequence[Patient], masks: Sequence[Mask], scores: NDArray[np.float64], picture: Path, count: int = 8
) -> None:
    """Axial slices through the glands of patients from the worst to the best; reference white, prediction coloured.

    Of several channels the first is shown, in its window.

    Args:
        patients, masks: as many of each.
        scores: DSC by patient and structure; NaN where there is none.
    """
    dsc = np.array([np.mean(row[~np.isnan(row)]) if not np.isnan(row).all() else np.nan for row in scores])
    order = np.argsort(dsc)[np.unique(np.linspace(0, len(dsc) - 1, count).round().astype(int))]
    columns = min(4, len(order))
    rows = -(-len(order) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(3.2 * columns, 3.4 * rows), layout="constrained", squeeze=False)
    for panel in axes.ravel():
        panel.axis("off")
    for panel, index in zip(axes.ravel(), order, strict=False):
        patient, predicted = patients[index], masks[index]
        areas = np.count_nonzero(patient.labels, axis=(1, 2))
        at = int(np.argmax(areas)) if areas.any() else len(areas) // 2
        aspect = patient.volume.spacing_mm[1] / patient.volume.spacing_mm[2]
        low, high = patient.windows[0]
        panel.imshow(patient.volume.voxels[0, at], cmap="gray", vmin=low, vmax=high, aspect=aspect)
        for value in range(1, int(max(patient.labels.max(), predicted.max())) + 1):
            for mask, colour in ((patient.labels, "white"), (predicted, COLOURS[(value - 1) % len(COLOURS)])):
                if (mask[at] == value).any():
                    panel.contour(mask[at] == value, levels=[0.5], colors=colour, linewidths=1)
        row, column = (
            middle / spacing for middle, spacing in zip(patient.centre_mm, patient.volume.spacing_mm[1:], strict=True)
        )
        half_height, half_width = (FIELD_MM / 2 / spacing for spacing in patient.volume.spacing_mm[1:])
        panel.set(xlim=(column - half_width, column + half_width), ylim=(row + half_height, row - half_height))
        panel.set_title(f"{patient.name}: DSC {dsc[index]:.3f}", fontsize=9)
    with atomic_write(picture) as partial:
        figure.savefig(partial, dpi=110, format="png")
    plt.close(figure)
