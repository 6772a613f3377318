"""Pictures of a training run: its curves, and what the model draws on validation patients."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np
from numpy.typing import NDArray

from parotid_seg.scan.volume import Mask
from parotid_seg.train.dataset import Patient

matplotlib.use("Agg")
import matplotlib.pyplot as plt

FIELD_MM = 280.0
COLOURS = ("tab:orange", "tab:cyan", "tab:green", "tab:pink", "tab:olive", "tab:purple", "tab:red")


def draw_curves(metrics: Path, picture: Path) -> None:
    """Loss and validation DSC over the epochs of a `metrics.jsonl`."""
    records = [json.loads(line) for line in metrics.read_text().splitlines()]
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
    left.plot([record["epoch"] for record in records], [record["loss"] for record in records])
    left.set(xlabel="epoch", ylabel="training loss (CE + Dice)")
    validated = [record for record in records if "validation_dsc" in record]
    for name in sorted({key for record in validated for key in record if key.startswith("validation_dsc")}):
        label = name.removeprefix("validation_dsc").strip("_").replace("_", " ") or "mean"
        right.plot([record["epoch"] for record in validated], [record[name] for record in validated], ".-", label=label)
    right.set(xlabel="epoch", ylabel="validation DSC")
    if validated:
        right.legend()
    for axes in (left, right):
        axes.grid(alpha=0.3)
    figure.savefig(picture, dpi=110)
    plt.close(figure)


def draw_samples(
    patients: Sequence[Patient], masks: Mapping[str, Mask], dsc: NDArray[np.float64], picture: Path, count: int = 8
) -> None:
    """Axial slices through the glands of patients from the worst to the best; reference white, prediction coloured.

    Of several channels the first is shown, in its window.
    """
    order = np.argsort(dsc)[np.unique(np.linspace(0, len(dsc) - 1, count).round().astype(int))]
    columns = min(4, len(order))
    rows = -(-len(order) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(3.2 * columns, 3.4 * rows), layout="constrained", squeeze=False)
    for panel in axes.ravel():
        panel.axis("off")
    for panel, index in zip(axes.ravel(), order, strict=False):
        patient = patients[index]
        areas = np.count_nonzero(patient.labels, axis=(1, 2))
        at = int(np.argmax(areas)) if areas.any() else len(areas) // 2
        aspect = patient.volume.spacing_mm[1] / patient.volume.spacing_mm[2]
        low, high = patient.windows[0]
        panel.imshow(patient.volume.voxels[0, at], cmap="gray", vmin=low, vmax=high, aspect=aspect)
        for value in range(1, int(max(patient.labels.max(), masks[patient.name].max())) + 1):
            for mask, colour in ((patient.labels, "white"), (masks[patient.name], COLOURS[(value - 1) % len(COLOURS)])):
                if (mask[at] == value).any():
                    panel.contour(mask[at] == value, levels=[0.5], colors=colour, linewidths=1)
        row, column = (
            middle / spacing for middle, spacing in zip(patient.centre_mm, patient.volume.spacing_mm[1:], strict=True)
        )
        half_height, half_width = (FIELD_MM / 2 / spacing for spacing in patient.volume.spacing_mm[1:])
        panel.set(xlim=(column - half_width, column + half_width), ylim=(row + half_height, row - half_height))
        panel.set_title(f"{patient.name}: DSC {dsc[index]:.3f}", fontsize=9)
    figure.savefig(picture, dpi=110)
    plt.close(figure)
