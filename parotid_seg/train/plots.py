"""Records and pictures of a training run: its curves, and the model's masks of validation patients."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from parotid_seg.errors import RecordError
from parotid_seg.files import atomic_write, open_to_append, write_text
from parotid_seg.records import read_lines, record_line
from parotid_seg.scan.labels import from_the_right
from parotid_seg.scan.volume import Mask
from parotid_seg.train.data.patients import Patient
from parotid_seg.train.moco import Pair

MARGIN_MM = 15.0
"""Margin around structures."""
MOST_PAIRS, MOST_PATIENTS = 6, 8
"""Most slices, and most patients, in a picture."""
SLICES = 4
"""Slices of each patient."""
FEWEST_FOR_A_LINE = 10
"""Fewest values for a plain line; fewer are also drawn as points, because a line of one value is invisible."""
COLOURS = ("tab:orange", "tab:cyan", "tab:green", "tab:pink", "tab:olive", "tab:purple", "tab:red")


def add_record(record: dict[str, float], metrics: Path) -> None:
    """Append the figures of an epoch to a `metrics.jsonl`; epoch 0 stands for the initial weights."""
    with open_to_append(metrics) as file:
        file.write(record_line(record))


def drop_later_records(metrics: Path, epochs_done: int) -> list[str]:
    """Remove records after a checkpoint: a run that was killed between both repeats that epoch.

    Returns:
        Remarks on invalid lines.
    """
    if not metrics.exists():
        return []
    notes = [f"{each}; not drawn" for each in read_lines(metrics, dict[str, float]) if isinstance(each, RecordError)]
    lines = metrics.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
    of_start = sum(line.startswith('{"epoch": 0.0,') for line in lines[:1])
    write_text("".join(lines[: of_start + epochs_done]), metrics)
    return notes


def draw_curves(metrics: Path, picture: Path, figures: Sequence[tuple[str, str]]) -> None:
    """Draw the figures of a `metrics.jsonl` over the epochs; nothing before the first, and no panel without values.

    Args:
        metrics: the file; invalid lines are skipped.
        picture: the file to make.
        figures: for each panel the prefix of the figures' names, and the axis label.
    """
    parsed = read_lines(metrics, dict[str, float])
    records = [record for record in parsed if isinstance(record, dict) and "epoch" in record]
    names = list(dict.fromkeys(name for record in records for name in record))
    if not any(record["epoch"] > 0 for record in records):
        return
    lines_of = {
        prefix: [name for name in names if name.startswith(prefix) or name.startswith(f"places_{prefix}")]
        for prefix, _ in figures
    }
    drawn = [each for each in figures if lines_of[each[0]]]
    if not drawn:
        return
    size = (5 * len(drawn), 3.6)
    figure = Figure(size, layout="constrained")
    (panels,) = figure.subplots(1, len(drawn), squeeze=False)
    for panel, (prefix, label) in zip(panels, drawn, strict=True):
        lines = lines_of[prefix]
        for name in lines:
            with_figure = [record for record in records if name in record]
            style = ".-" if len(with_figure) < max(len(records), FEWEST_FOR_A_LINE) else "-"
            title = name.removeprefix(prefix).strip("_").replace("_", " ") or "all"
            panel.plot(
                [record["epoch"] for record in with_figure],
                [record[name] for record in with_figure],
                style,
                label=title,
            )
        panel.set(xlabel="epoch", ylabel=label)
        panel.locator_params(axis="x", integer=True)
        panel.xaxis.get_major_locator().set_params(integer=True)
        panel.grid(alpha=0.3)
        if len(lines) > 1:
            panel.legend()
    _save(figure, picture)


def draw_pairs(pair: Pair, picture: Path) -> None:
    """Draw the middle channels of both views of some slices, first above second, with the matched positions."""
    count = min(MOST_PAIRS, len(pair.first))
    figure = Figure((2.4 * count, 5), layout="constrained")
    axes = figure.subplots(2, count, squeeze=False)
    for row, (images, places) in zip(
        axes, ((pair.first, pair.first_places), (pair.second, pair.second_places)), strict=True
    ):
        for index, panel in enumerate(row):
            panel.axis("off")
            panel.imshow(images[index, images.shape[1] // 2].float().cpu(), cmap="gray", vmin=0, vmax=1)
            if places.shape[1]:
                rows, columns = places[index].cpu().unbind(-1)
                panel.scatter(columns, rows, c=range(len(rows)), cmap="hsv", s=8)
    _save(figure, picture)


def draw_samples(
    patients: Sequence[Patient],
    masks: Sequence[Mask],
    scores: NDArray[np.float64],
    labels: Sequence[str],
    picture: Path,
) -> None:
    """Draw a row for each of some patients, from the worst to the best: axial slices around the structures.

    The slices are evenly spaced over the extent of the structures, from the feet upwards. Outlines of the reference are
    white, those of the prediction have the colours of the legend. The first channel is shown, in its window.

    Args:
        patients, masks: as many of each.
        scores: DSC by patient and structure; NaN if undefined.
        labels: names by value, background first.
        picture: the file to make.
    """
    dsc = np.array([np.mean(row[~np.isnan(row)]) if not np.isnan(row).all() else np.nan for row in scores])
    order = np.argsort(dsc)[np.unique(np.linspace(0, len(dsc) - 1, MOST_PATIENTS).round().astype(int))]
    size = (3.2 * SLICES, 1.9 * len(order) + 0.6)
    figure = Figure(size, layout="constrained")
    axes = figure.subplots(len(order), SLICES, squeeze=False)
    for row, index in zip(axes, order, strict=True):
        patient, predicted = patients[index], masks[index]
        _draw_slices(row, patient, predicted, len(labels))
        row[0].set_title(f"{patient.name}: DSC {dsc[index]:.3f}", fontsize=9, loc="left")
    lines = [Line2D([], [], color="white", label="reference")]
    lines += [Line2D([], [], color=_colour(labels.index(name)), label=name) for name in from_the_right(labels[1:])]
    figure.legend(handles=lines, loc="outside lower center", ncols=len(lines), facecolor="dimgray", labelcolor="white")
    _save(figure, picture)


def _draw_slices(panels: Sequence[Any], patient: Patient, predicted: Mask, count: int) -> None:
    """Slices of a patient from the lowest to the highest of the structures, cropped to them."""
    shown = (patient.labels > 0) | (predicted > 0)
    depth, height, width = _extents(shown if shown.any() else np.ones_like(shown))
    dy, dx = patient.volume.spacing_mm[1:]
    low, high = patient.windows[0]
    for panel, at in zip(
        panels, np.linspace(depth[0], depth[1], len(panels) + 2).round().astype(int)[1:-1], strict=True
    ):
        panel.axis("off")
        panel.imshow(patient.volume.voxels[0, at], cmap="gray", vmin=low, vmax=high, aspect=dy / dx)
        for value in range(1, count):
            for mask, colour in ((patient.labels, "white"), (predicted, _colour(value))):
                if (mask[at] == value).any():
                    panel.contour(mask[at] == value, levels=[0.5], colors=colour, linewidths=1)
        panel.set(
            xlim=(width[0] - MARGIN_MM / dx, width[1] + MARGIN_MM / dx),
            ylim=(height[1] + MARGIN_MM / dy, height[0] - MARGIN_MM / dy),
        )
        panel.text(
            0.02, 0.04, f"slice {at + 1}", transform=panel.transAxes, fontsize=7, color="white", backgroundcolor="black"
        )


def _extents(shown: NDArray[np.bool_]) -> list[tuple[int, int]]:
    """The first and the last slice, row and column of the structures in (D, H, W)."""
    places = [np.flatnonzero(shown.any(axis=others)) for others in ((1, 2), (0, 2), (0, 1))]
    return [(int(each[0]), int(each[-1])) for each in places]


def _colour(value: int) -> str:
    return COLOURS[(value - 1) % len(COLOURS)]


def _save(figure: Figure, picture: Path) -> None:
    """Save a figure. Letters that the font lacks become boxes, without a warning."""
    with atomic_write(picture) as partial, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.savefig(partial, dpi=110, format="png")
