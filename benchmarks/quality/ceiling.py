"""How much of what a model lacks is the contours' own noise: models against contours, and against each other.

    python benchmarks/quality/ceiling.py DATA MODEL.pt MODEL.pt ... --out FILE.json

Models that agree with each other far better than with the contours, and whose average is no better than one of them,
do not fail by chance; what is missing is in the contours or is a habit they share. Uses the validation patients.
"""

from __future__ import annotations

import argparse
import json
import time
from itertools import combinations
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from parotid_seg.contract import Grid
from parotid_seg.files import write_text
from parotid_seg.metrics import bootstrap_mean, dice
from parotid_seg.scan.chunks import Chunk, crop_to_grid, cut
from parotid_seg.scan.components import keep_largest_components
from parotid_seg.scan.volume import Mask
from parotid_seg.system import versions_of
from parotid_seg.train.checkpoint import load_checkpoint
from parotid_seg.train.data.data_set import open_data_set
from parotid_seg.train.data.patients import Patient, load_patients
from parotid_seg.train.network import ParotidNet, mixed_precision

AVERAGE = "average of all"


@torch.no_grad()
def shares(net: ParotidNet, chunk: Chunk) -> Tensor:
    """(S, C, H, W) softmax at native voxels; 0 outside the grid."""
    inputs = {name: torch.from_numpy(array) for name, array in chunk.inputs.items()}
    images = net.to_grid(*(inputs[name] for name in ("slices", "window", "rows", "columns", "neighbours")))
    with mixed_precision(torch.device("cpu")):
        logits = net.unet(images.contiguous(memory_format=torch.channels_last))
    softmax = logits.float().softmax(dim=1)
    native: Tensor = net.from_grid(softmax, *(inputs[name] for name in ("slices_back", "rows_back", "columns_back")))
    return native


def masks(nets: dict[str, ParotidNet], patient: Patient, grid: Grid, labels: tuple[str, ...]) -> dict[str, Mask]:
    """Cleaned masks of every model and of their average."""
    found = {name: np.zeros(patient.volume.shape, np.uint8) for name in (*nets, AVERAGE)}
    covered = crop_to_grid(patient.volume, patient.windows, grid)
    for chunk in cut(covered, grid, 32):
        by_model = {name: shares(net, chunk) for name, net in nets.items()}
        by_model[AVERAGE] = torch.stack(list(by_model.values())).mean(dim=0)
        for name, scores in by_model.items():
            found[name][chunk.slices, covered.rows, covered.columns] = scores.argmax(dim=1).numpy()
    return {name: keep_largest_components(mask, labels) for name, mask in found.items()}


def agreement(first: Mask, second: Mask, labels: tuple[str, ...]) -> float:
    """Mean DSC over the structures that one of the masks shows; NaN if there is none."""
    shown = [value for value in range(1, len(labels)) if (first == value).any() or (second == value).any()]
    return float(np.mean([dice(first == value, second == value) for value in shown])) if shown else float("nan")


def main() -> None:
    """Segment, compare, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="data set in nnU-Net's raw layout")
    parser.add_argument("models", type=Path, nargs="+", help="checkpoints of one grid and the data set's labels")
    parser.add_argument("--cache", type=Path, required=True, help="folder for decoded scans")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    checkpoints = {str(path): load_checkpoint(path) for path in arguments.models}
    config = next(iter(checkpoints.values())).config
    data = open_data_set(arguments.data, "segment", None)
    different = [
        name for name, each in checkpoints.items() if (each.config.grid, each.labels) != (config.grid, data.labels)
    ]
    if different:
        parser.error(f"{different[0]}: made with another grid or other labels")
    nets = {name: checkpoint.network() for name, checkpoint in checkpoints.items()}
    by_pair: dict[str, list[float]] = {}
    for patient in load_patients(data, data.validation, arguments.cache, config.window_hu):
        found = masks(nets, patient, config.grid, data.labels)
        for name, mask in found.items():
            by_pair.setdefault(f"{name} and contours", []).append(agreement(mask, patient.labels, data.labels))
        for first, second in combinations(nets, 2):
            by_pair.setdefault(f"{first} and {second}", []).append(agreement(found[first], found[second], data.labels))
    figures = {}
    for pair, of_patients in by_pair.items():
        dsc = [value for value in of_patients if np.isfinite(value)]
        mean, low, high = bootstrap_mean(dsc)
        figures[pair] = {"mean": mean, "low": low, "high": high, "median": float(np.median(dsc)), "patients": dsc}
        print(f"{pair}: mean DSC {mean:.3f} ({low:.3f} to {high:.3f}), median {np.median(dsc):.3f}")
    versions = versions_of(("parotid-seg", "torch", "numpy"))
    content = {"versions": versions, "date": time.strftime("%F"), "agreement": figures}
    write_text(json.dumps(content, indent=1) + "\n", arguments.out)


if __name__ == "__main__":
    main()
