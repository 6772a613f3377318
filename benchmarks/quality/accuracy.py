"""Accuracy of a model on labelled scans it was not trained on: table with intervals, and the worst cases drawn."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from parotid_seg.files import write_text
from parotid_seg.models import DEFAULT_MODEL
from parotid_seg.runtime import evaluation_record
from parotid_seg.runtime.engines.load import load_backend
from parotid_seg.runtime.evaluation import Evaluation, evaluate
from parotid_seg.runtime.pipeline.infer_options import InferOptions
from parotid_seg.runtime.pipeline.run import infer
from parotid_seg.scan.labels import from_the_right, side_of
from parotid_seg.scan.nifti import read_mask, read_nifti

FIGURES = {
    "dsc": "DSC",
    "surface_dsc_2mm": "surface DSC at 2 mm",
    "hd95_mm": "HD95, mm",
    "hd_mm": "HD, mm",
    "apl_mm": "added path length, mm",
    "volume_error_ml": "volume error, ml",
    "iou": "IoU",
    "accuracy": "accuracy (recall)",
}
FIELD_MM = 230.0
CASES_A_ROW = 5


def table(result: Evaluation) -> str:
    """Means with 95 % intervals as a Markdown table."""
    columns = ("glands", "parotid_left", "parotid_right")
    lines = ["| figure | both glands | left | right |", "|---|---|---|---|"]
    for figure, name in FIGURES.items():
        cells = []
        for column in columns:
            mean = result.means[f"{column} {figure}"]
            missed = f", {mean.missed} infinite" if mean.missed else ""
            cells.append(f"{mean.mean:.3f} ({mean.low:.3f} to {mean.high:.3f}), median {mean.median:.3f}{missed}")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    for figure in ("mpa", "macc", "miou"):
        mean = result.means[figure]
        lines.append(f"| {figure.upper()} (whole scan) | {mean.mean:.4f} ({mean.low:.4f} to {mean.high:.4f}) | | |")
    return "\n".join(lines) + "\n"


def provenance(run: Path) -> str:
    """What made the masks, from their run.json: model, engine, versions and machine."""
    made = json.loads(run.read_text())
    versions = ", ".join(f"{name} {version}" for name, version in made["versions"].items())
    machine, ran = made["machine"], made["ran"]
    return (
        f"Model sha256 {made['model']['sha256']}; {ran['backend']} on {ran['device']}, {ran['precision']}; {versions}; "
        f"Python {machine['python']}, {machine['system']}, {machine['cores']} cores; {made['ended'][:10]}.\n"
    )


def case_table(result: Evaluation) -> str:
    """DSC of every case from the worst to the best."""
    lines = ["| case | DSC left | DSC right | HD95 left, mm | HD95 right, mm |", "|---|---|---|---|---|"]
    for name in worst_first(result):
        glands = list(result.cases[name].labels.values())
        scores = [*(f"{gland.dsc:.3f}" for gland in glands), *(f"{gland.hd95_mm:.1f}" for gland in glands)]
        lines.append(f"| {name} | {' | '.join(scores)} |")
    return "\n".join(lines) + "\n"


def worst_first(result: Evaluation) -> list[str]:
    """Case names by rising mean DSC."""
    return sorted(result.cases, key=lambda name: np.mean([gland.dsc for gland in result.cases[name].labels.values()]))


def draw_cases(names: list[str], result: Evaluation, scans: Path, references: Path, masks: Path, picture: Path) -> None:
    """For each case an axial and a coronal slice: reference white, prediction coloured."""
    rows, columns = 2 * -(-len(names) // CASES_A_ROW), min(CASES_A_ROW, len(names))
    size = (2.6 * columns, 2.7 * rows)
    figure = Figure(size, layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    for panel in axes.ravel():
        panel.axis("off")
    for index, name in enumerate(names):
        axial, coronal = axes[2 * (index // CASES_A_ROW) :, index % CASES_A_ROW][:2]
        scan = read_nifti(scans / f"{name}_0000.nii.gz")
        reference, _ = read_mask(references / f"{name}.nii.gz", like=scan)
        mask, _ = read_mask(masks / f"{name}.nii.gz", like=scan)
        z, y, x = np.argwhere(reference > 0).mean(axis=0).round().astype(int)
        dz, dy, dx = scan.volume.spacing_mm
        views = (np.s_[z], (y, x), (dy, dx)), (np.s_[:, y], (z, x), (dz, dx))
        for panel, (cut, (row, col), (row_mm, col_mm)) in zip((axial, coronal), views, strict=True):
            panel.imshow(scan.volume.voxels[0][cut], cmap="gray", vmin=-200, vmax=300, aspect=row_mm / col_mm)
            for value, colour in ((1, "orange"), (2, "deepskyblue")):
                for labels, line in ((reference, "white"), (mask, colour)):
                    if (labels[cut] == value).any():
                        panel.contour(labels[cut] == value, levels=[0.5], colors=line, linewidths=1)
            half_row, half_col = FIELD_MM / 2 / row_mm, FIELD_MM / 2 / col_mm
            upwards = -1 if panel is coronal else 1
            panel.set(xlim=(col - half_col, col + half_col), ylim=(row + upwards * half_row, row - upwards * half_row))
        glands = result.cases[name].labels
        dsc = ", ".join(f"{side_of(each)} {glands[each].dsc:.2f}" for each in from_the_right(glands))
        axial.set_title(f"{name}\nDSC {dsc}", fontsize=9)
    figure.savefig(picture, dpi=90)


def main() -> None:
    """Segment, score, draw and write everything to one folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scans", type=Path, required=True, help="folder with CASE_0000.nii.gz")
    parser.add_argument("--references", type=Path, required=True, help="folder with CASE.nii.gz")
    parser.add_argument("--model", type=Path, default=DEFAULT_MODEL)
    parser.add_argument("--backend", default="onnxruntime", help="the engine; see parotid-seg infer")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--worst", type=int, default=10, help="cases to draw")
    arguments = parser.parse_args()
    masks = arguments.out / "masks"
    options = InferOptions(pictures=False, report=False)
    summary = infer([arguments.scans], masks, lambda: load_backend(arguments.model, arguments.backend), options)
    if summary.failed:
        raise SystemExit(f"{summary.failed} scans could not be segmented; see {masks / 'summary.csv'}")
    result = evaluate(masks, arguments.references)
    scores = evaluation_record.record_of(result), evaluation_record.rows_of(result)
    evaluation_record.write(*scores, arguments.out / "scores.json")
    write_text(f"{provenance(masks / 'run.json')}\n{table(result)}\n{case_table(result)}", arguments.out / "scores.md")
    names = worst_first(result)[: arguments.worst]
    draw_cases(names, result, arguments.scans, arguments.references, masks, arguments.out / "worst.png")


if __name__ == "__main__":
    main()
