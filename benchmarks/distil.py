"""Soft labels of an ensemble, to train the compact network on: the mean scores of the networks of one fold.

    python benchmarks/distil.py DATA --runs DIR --fold 0 --recipes present
    python benchmarks/cross_validation.py DATA benchmarks/recipes/soft.toml --runs DIR --folds 0
    python benchmarks/distil.py DATA --runs DIR --fold 0 --recipes present --score 0.5

The ensemble is the compact networks of some recipes (`cross_validation.py`) and 3-D networks (`teacher.py`), all of
them trained on the same fold in the same folder DIR. Their mean scores on the fold's training patients and on the scans
of DATA/imagesUn become DIR/softTr/fold-N/CASE_000L.nii.gz, as `parotid-seg train` reads them from a data set's softTr.
No network of the ensemble has seen the held-out patients, and no soft labels are made of them. Scans with files are not
computed again.

With --masks the soft labels are instead masks in a folder, 1 inside and 0 outside, by networks that had not seen the
patients; scans without a mask get none:

    python benchmarks/distil.py DATA --runs DIR --fold 0 --name softTr-masks \
        --masks benchmarks/results/cross-validation/teacher/masks
    python benchmarks/cross_validation.py DATA benchmarks/recipes/soft-masks.toml --runs DIR --soft softTr-masks \
        --folds 0

The networks of the other folds were trained on the held-out patients of --fold, whose contours so have an influence on
other patients' soft labels.

With --score, the ensemble segments the held-out patients instead: a voxel belongs to a gland if its mean score is above
the given one. The DSC and the masks lie where `cross_validation.py` puts those of a recipe, under the name "ensemble"
with that score.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
import numpy as np
import torch
from cross_validation import RESULTS, environment, score, split_for
from numpy.typing import NDArray
from teacher import NAME, Locator, load_averaged, mask_of, scores_of

from parotid_seg.files import make_folder, write_text
from parotid_seg.models import DEFAULT_MODEL
from parotid_seg.runtime.engines.load import load_backend
from parotid_seg.scan.chunks import crop_to_grid, cut
from parotid_seg.scan.intensity import fixed_windows, in_windows
from parotid_seg.scan.nifti import NiftiScan, read_mask, read_nifti, write_mask
from parotid_seg.scan.volume import Mask
from parotid_seg.train.checkpoint import load_checkpoint
from parotid_seg.train.data.data_set import SOFT_FOLDER
from parotid_seg.train.data.patients import SHARE_OF_ALL
from parotid_seg.train.network import mixed_precision

CPU = torch.device("cpu")
BATCH = 32
Scores = NDArray[np.float32]


class Compact:
    """A compact network whose scores are wanted instead of labels.

    Args:
        checkpoint: of `parotid-seg train`.
    """

    def __init__(self, checkpoint: Path) -> None:
        self.name = f"{checkpoint.parents[1].name}/{checkpoint.parent.name}"
        self.trained = load_checkpoint(checkpoint)
        self.net = self.trained.network()

    @torch.no_grad()
    def scores(self, scan: NiftiScan) -> Scores:
        """Scores (structures, D, H, W) at the scan's voxels; 0 outside the network's field of view."""
        trained, net = self.trained, self.net
        fixed = fixed_windows(trained.channels, trained.config.window_hu)
        volume, windows = in_windows(scan.volume, trained.channels, fixed)
        covered = crop_to_grid(volume, windows, trained.config.grid)
        scores = np.zeros((len(trained.labels) - 1, *volume.shape), np.float32)
        for chunk in cut(covered, trained.config.grid, BATCH):
            inputs = {name: torch.from_numpy(array) for name, array in chunk.inputs.items()}
            images = net.to_grid(*(inputs[name] for name in ("slices", "window", "rows", "columns", "neighbours")))
            with mixed_precision(CPU):
                logits = net.unet(images.contiguous(memory_format=torch.channels_last))
            back = (inputs[name] for name in ("slices_back", "rows_back", "columns_back"))
            shares = net.from_grid(logits.float(), *back).softmax(dim=1)[:, 1:]
            scores[:, chunk.slices, covered.rows, covered.columns] = shares.movedim(0, 1).numpy()
        return scores


class Teacher:
    """The 3-D network.

    Args:
        file: of a finished training.
        locator: finds the glands.
    """

    def __init__(self, file: Path, locator: Locator) -> None:
        self.name = f"{file.parents[1].name}/{file.parent.name}"
        self.net, self.locator = load_averaged(file), locator

    def scores(self, scan: NiftiScan) -> Scores | None:
        """Scores (structures, D, H, W) at the scan's voxels; None if a gland is not found."""
        prepared = self.locator.prepared(scan)
        centres = self.locator.centres(prepared)
        return None if None in centres else scores_of(self.net, prepared, centres)


def write_soft_labels(scores: Scores, scan: NiftiScan, folder: Path, name: str) -> None:
    """Write the scores (structures, D, H, W) of a scan as the soft labels of a data set."""
    for value in range(len(scores), 0, -1):  # the file that says that the scan is done comes last
        levels = (SHARE_OF_ALL * scores[value - 1]).round().astype(np.uint8)
        write_mask(levels, scan, folder / f"{name}_{value:04d}.nii.gz")


def shifted(scores: Scores, least: float) -> Scores:
    """Scores (structures, ...) in which `least` has become 0.5, all shares by the same shift of their logits against
    the background's, so that a network that learns them draws what the ensemble draws above `least`."""
    background, structures = (1 - scores.sum(axis=0)) * least, scores * (1 - least)
    shares: Scores = (structures / (background + structures.sum(axis=0))).astype(np.float32)
    return shares


def make_soft_labels(
    networks: Sequence[Compact | Teacher], scans: Mapping[str, Path], folder: Path, least: float, minutes: float
) -> bool:
    """Write the soft labels that are missing.

    Args:
        networks: the ensemble.
        scans: files by case.
        folder: for the soft labels.
        least: mean score that becomes 0.5.
        minutes: stop then.

    Returns:
        Whether all are done.
    """
    end, started = time.monotonic() + 60 * minutes, time.monotonic()
    for number, (name, path) in enumerate(scans.items(), start=1):
        if (folder / f"{name}_0001.nii.gz").exists():
            continue
        if time.monotonic() > end:
            return False
        scan = read_nifti(path)
        found = [network.scores(scan) for network in networks]
        complete = [scores for scores in found if scores is not None]
        if len(complete) < len(found):
            print(f"{name}: a gland was not found, so there are no soft labels", flush=True)
            continue
        write_soft_labels(shifted(np.mean(complete, axis=0, dtype=np.float32), least), scan, folder, name)
        print(f"{name}: {number} of {len(scans)}, {time.monotonic() - started:.0f} s", flush=True)
    return True


def use_masks(masks: Path, scans: Mapping[str, Path], folder: Path, labels: Sequence[str]) -> None:
    """Write masks as soft labels.

    Args:
        masks: their folder.
        scans: files by case; those without a mask are left out.
        folder: for the soft labels.
        labels: of the masks, background first.
    """
    for name, path in scans.items():
        if not (file := masks / f"{name}.nii.gz").exists():
            print(f"{name}: there is no mask, so there are no soft labels", flush=True)
            continue
        scan = read_nifti(path)
        mask, _ = read_mask(file, like=scan)
        glands = np.stack([mask == value for value in range(1, len(labels))])
        write_soft_labels(glands.astype(np.float32), scan, folder, name)


def score_ensemble(
    networks: Sequence[Compact | Teacher], labels: Sequence[str], data: Path, fold: int, recipe: Path, least: float
) -> None:
    """Segment the held-out patients of a fold, and write scores and masks.

    Args:
        networks: the ensemble; a network that does not find both glands of a scan is left out of its mean.
        labels: of the masks.
        data: data set in nnU-Net's raw layout.
        fold: whose held-out patients.
        recipe: folder of the ensemble's results, beside those of all recipes.
        least: mean score above which a voxel belongs to a gland.
    """
    held_out, _ = split_for(fold, data, recipe.parent)

    def segment(_: str, scan: NiftiScan) -> Mask:
        found = [scores for network in networks if (scores := network.scores(scan)) is not None]
        return mask_of(np.mean(found, axis=0, dtype=np.float32), least)

    content = {
        "recipe": recipe.name,
        "settings": {"networks": [network.name for network in networks], "least_score": least},
        "fold": fold,
        "train_minutes": None,
        **environment(),
        "patients": score(segment, labels, data, held_out, recipe / "masks"),
    }
    write_text(json.dumps(content, indent=1) + "\n", recipe / f"fold-{fold}.json")


def main() -> None:
    """Write the missing soft labels of one fold, or score the ensemble on its held-out patients."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="data set in nnU-Net's raw layout with splits.json")
    parser.add_argument("--runs", type=Path, required=True, help="folder of the trainings, and for soft labels")
    parser.add_argument("--fold", type=int, default=0, help="whose networks")
    parser.add_argument("--recipes", nargs="+", default=["present"], help="of the compact networks")
    parser.add_argument("--teachers", nargs="+", default=[NAME], help="names of the 3-D networks")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the folds")
    parser.add_argument("--model", type=Path, default=DEFAULT_MODEL, help="finds the glands for the 3-D network")
    parser.add_argument("--score", type=float, metavar="LEAST", help="segment and score the held-out patients instead")
    parser.add_argument("--name", help="of the folder of soft labels (default: softTr) or scores (ensemble-LEAST)")
    parser.add_argument("--least", type=float, default=0.5, help="mean score that becomes 0.5 in the soft labels")
    parser.add_argument("--masks", type=Path, help="make soft labels of the masks in this folder")
    parser.add_argument("--minutes", type=float, default=math.inf, help="stop then; the next call goes on")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    data, runs, fold = arguments.data, arguments.runs, f"fold-{arguments.fold}"
    _, train = split_for(arguments.fold, data, arguments.results)
    scans = {name: data / "imagesTr" / f"{name}_0000.nii.gz" for name in train}
    scans |= {
        path.name.removesuffix("_0000.nii.gz"): path for path in sorted((data / "imagesUn").glob("*_0000.nii.gz"))
    }
    folder = runs / (arguments.name or SOFT_FOLDER) / fold
    locator = Locator(load_backend(arguments.model, "onnxruntime", threads=1))
    if arguments.masks:
        make_folder(folder)
        use_masks(arguments.masks, scans, folder, locator.contract.labels)
        return
    networks: list[Compact | Teacher] = [
        Teacher(runs / name / fold / "last.pt", locator) for name in arguments.teachers
    ]
    networks += [Compact(runs / recipe / fold / "best.pt") for recipe in arguments.recipes]
    if arguments.score is not None:
        recipe = arguments.results / (arguments.name or f"ensemble-{arguments.score:g}")
        score_ensemble(networks, locator.contract.labels, data, arguments.fold, recipe, arguments.score)
        return
    make_folder(folder)
    make_soft_labels(networks, scans, folder, arguments.least, arguments.minutes)


if __name__ == "__main__":
    main()
