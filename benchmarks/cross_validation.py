"""Five-fold cross-validation of training recipes over all labelled patients: the figure that recipes are chosen by.

    python benchmarks/cross_validation.py DATA RECIPE.toml ... --runs DIR --minutes 150    trains what is missing
    python benchmarks/cross_validation.py --report                                         prints the tables

A recipe is a configuration file of `parotid-seg train`; its name is the file's name without ".toml". The patients of
`train` and `validation` in DATA/splits.json are dealt into folds once, by a fixed seed; the test patients take no part.
The model of a fold is the moving average of the weights at the end of its schedule, so nothing is chosen on the
patients that were held out. Trainings resume where they were cut. `benchmarks/results/cross-validation/` keeps the
folds, and for each recipe the scores of every held-out patient and their masks. A recipe with `soft_share` needs the
soft labels of `distil.py`. A recipe whose `init` is the name of another recipe starts from the model of that recipe and
fold in the folder --runs.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import os
import platform
import time
import tomllib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from parotid_seg.files import write_text
from parotid_seg.metrics import bootstrap_mean, score_case
from parotid_seg.scan.components import keep_largest_components
from parotid_seg.scan.nifti import NiftiScan, read_mask, read_nifti, write_mask
from parotid_seg.scan.volume import Mask
from parotid_seg.system import versions_of
from parotid_seg.train.data.data_set import SOFT_FOLDER

RESULTS = Path(__file__).parent / "results" / "cross-validation"
FOLDS = 5
FOLD_SEED = 191


def deal_folds(patients: Sequence[str]) -> list[list[str]]:
    """Patients in `FOLDS` groups whose sizes differ by one at most, drawn by a fixed seed from their sorted names."""
    names = sorted(patients)
    order = np.random.default_rng(FOLD_SEED).permutation(len(names))
    return [sorted(names[index] for index in order[fold::FOLDS]) for fold in range(FOLDS)]


def split_for(fold: int, data: Path, results: Path) -> tuple[list[str], list[str]]:
    """The patients that a fold holds out, and all others; all folds are written to `results`."""
    splits = json.loads((data / "splits.json").read_text())
    folds = deal_folds([*splits["train"], *splits["validation"]])
    results.mkdir(parents=True, exist_ok=True)
    write_text(json.dumps(folds, indent=1) + "\n", results / "folds.json")
    return folds[fold], sorted(name for other in folds if other is not folds[fold] for name in other)


def make_fold_data(
    data: Path, folder: Path, held_out: Sequence[str], train: Sequence[str], soft: Path | None = None
) -> None:
    """A data set of links to `data`, with a fold's patients in its splits.json, and with the soft labels in `soft`."""
    folder.mkdir(parents=True, exist_ok=True)
    for entry in data.iterdir():
        link = folder / entry.name
        if entry.name != "splits.json" and not link.is_symlink():
            link.symlink_to(entry.resolve())
    if soft is not None and not (folder / SOFT_FOLDER).is_symlink():
        (folder / SOFT_FOLDER).symlink_to(soft.resolve(strict=True))
    write_text(json.dumps({"train": list(train), "validation": list(held_out)}), folder / "splits.json")


def train_fold(
    recipe: Path,
    data: Path,
    fold: int,
    runs: Path,
    results: Path,
    soft: str = SOFT_FOLDER,
    minutes: float = math.inf,
    device: str = "cpu",
) -> bool:
    """Train, or go on with, the model of one fold, and score it when it is done.

    Args:
        recipe: the configuration file.
        data: the whole data set.
        fold: which patients are held out.
        runs: folder for checkpoints and decoded scans.
        results: folder for folds, scores and masks.
        soft: folder in `runs` with each fold's soft labels, for a recipe with `soft_share`.
        minutes: stop after the first epoch that ends later.
        device: "cpu", where one core is used, or "cuda".

    Returns:
        Whether the fold is done.
    """
    import torch

    torch.set_num_threads(1)
    from parotid_seg.train.settings import load_config
    from parotid_seg.train.stages import train

    held_out, rest = split_for(fold, data, results)
    (results / recipe.stem).mkdir(parents=True, exist_ok=True)
    run = runs / recipe.stem / f"fold-{fold}"
    config = load_config("compact", recipe)
    if (earlier_run := runs / config.init / f"fold-{fold}" / "best.pt").exists():
        config = dataclasses.replace(config, init=str(earlier_run))
    soft_labels = runs / soft / f"fold-{fold}" if config.segment.soft_share else None
    make_fold_data(data, run / "data", held_out, rest, soft_labels)
    config = dataclasses.replace(  # validated once, at the end; last.pt is scored, whatever best.pt is
        config, segment=dataclasses.replace(config.segment, validate_every=config.segment.epochs)
    )
    done = train(
        config,
        run / "data",
        run,
        device=device,
        resume=(run / "last.pt").exists(),
        max_minutes=minutes if math.isfinite(minutes) else None,
        cache=runs / "cache",
        report=lambda line: print(f"{time.strftime('%H:%M:%S')}  {recipe.stem} fold {fold}: {line}", flush=True),
    )
    if done:
        result = {"recipe": recipe.stem, "settings": tomllib.loads(recipe.read_text()), "fold": fold}
        result |= result_of(run, data, held_out, results / recipe.stem / "masks", device)
        write_text(json.dumps(result, indent=1) + "\n", results / recipe.stem / f"fold-{fold}.json")
    return done


def result_of(run: Path, data: Path, held_out: Sequence[str], masks: Path, device: str) -> dict[str, Any]:
    """Figures of a finished training, and the scores of its held-out patients, whose masks are written."""
    records = records_of(run / "metrics.jsonl")
    earlier = [record for path in run.glob("*/metrics.jsonl") for record in records_of(path)]
    return {
        "train_minutes": round(sum(record.get("train_seconds", 0) for record in [*earlier, *records]) / 60, 1),
        "training_loss": records[-1]["loss"],
        **environment(device),
        "patients": score_fold(run / "last.pt", data, held_out, masks, device),
    }


def records_of(path: Path) -> list[dict[str, Any]]:
    """The records of a stage's epochs."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def score_fold(checkpoint: Path, data: Path, patients: Sequence[str], masks: Path, device: str) -> dict[str, Any]:
    """Segment held-out patients with torch, and `score` them."""
    import torch

    from parotid_seg.scan.intensity import fixed_windows, in_windows
    from parotid_seg.train.checkpoint import load_checkpoint
    from parotid_seg.train.supervised import segment_volume

    trained = load_checkpoint(checkpoint)
    net = trained.network().to(device)
    fixed = fixed_windows(trained.channels, trained.config.window_hu)

    def segment(_: str, scan: NiftiScan) -> Mask:
        volume, windows = in_windows(scan.volume, trained.channels, fixed)
        return segment_volume(net, volume, windows, trained.config.grid, torch.device(device))

    return score(segment, trained.labels, data, patients, masks)


def score(
    segment: Callable[[str, NiftiScan], Mask], labels: Sequence[str], data: Path, patients: Sequence[str], masks: Path
) -> dict[str, Any]:
    """Segment held-out patients, clean and keep the masks, and score each gland (DSC, HD95 in mm, volumes in ml).

    Args:
        segment: gives the mask (D, H, W) of a patient's scan.
        labels: of its masks, background first.
        data: data set in nnU-Net's raw layout.
        patients: the held-out ones.
        masks: folder for their masks.
    """
    masks.mkdir(parents=True, exist_ok=True)
    scores: dict[str, Any] = {}
    for name in patients:
        scan = read_nifti(data / "imagesTr" / f"{name}_0000.nii.gz")
        reference, _ = read_mask(data / "labelsTr" / f"{name}.nii.gz", like=scan)
        mask = keep_largest_components(segment(name, scan), labels)
        write_mask(mask, scan, masks / f"{name}.nii.gz")
        scored = score_case(mask, reference, scan.volume.spacing_mm, labels)
        scores[name] = {
            label: {
                figure: round(value, 4) if math.isfinite(value) else None
                for figure, value in dataclasses.asdict(gland).items()
                if figure in ("dsc", "hd95_mm", "volume_ml", "reference_ml")
            }
            for label, gland in scored.labels.items()
            if gland.reference_ml
        }
    return scores


def environment(device: str = "cpu") -> dict[str, Any]:
    """Versions and machine that made a figure."""
    import torch

    versions = versions_of(("parotid-seg", "torch", "timm", "numpy"))
    cpu = next((line.split(":")[1].strip() for line in _cpu_lines() if line.startswith("model name")), "unknown")
    gpu = {} if device == "cpu" else {"gpu": torch.cuda.get_device_name(device)}
    return {"versions": versions, "python": platform.python_version(), "cpu": cpu, **gpu, "date": time.strftime("%F")}


def _cpu_lines() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []


def results_of(recipe: Path) -> dict[int, dict[str, Any]]:
    """What a recipe's finished folds gave, by fold."""
    found = (json.loads(path.read_text()) for path in sorted(recipe.glob("fold-*.json")))
    return {each["fold"]: each for each in found}


def mean_dsc(patient: dict[str, Any]) -> float:
    """A patient's mean DSC over the glands."""
    return float(np.mean([gland["dsc"] for gland in patient.values()]))


def report(results: Path) -> str:
    """Each recipe on its finished folds, and the paired difference to `present` on the folds that both have."""
    recipes = {path.name: results_of(path) for path in sorted(results.iterdir()) if path.is_dir()}
    recipes = {name: folds for name, folds in recipes.items() if folds}
    reference = recipes.get("present", {})
    lines = [
        "| recipe | folds | patients | mean DSC (95 % interval over patients) | median | 22 ml and less | HD95, mm "
        "| minus present, points | core-minutes a fold |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, folds in recipes.items():
        patients = {case: scores for fold in folds.values() for case, scores in fold["patients"].items()}
        glands = [gland for scores in patients.values() for gland in scores.values()]
        small = [gland["dsc"] for gland in glands if gland["reference_ml"] <= 22]
        hd95 = [gland["hd95_mm"] for gland in glands if gland["hd95_mm"] is not None]
        dsc = [mean_dsc(scores) for scores in patients.values()]
        mean, low, high = bootstrap_mean(dsc)
        pairs = [
            100 * (mean_dsc(scores) - mean_dsc(reference[index]["patients"][case]))
            for index, fold in folds.items()
            if index in reference
            for case, scores in fold["patients"].items()
        ]
        difference = "{:+.2f} ({:+.2f} to {:+.2f})".format(*bootstrap_mean(pairs)) if pairs else ""
        minutes = [fold["train_minutes"] for fold in folds.values() if fold["train_minutes"] is not None]
        lines.append(
            f"| {name} | {', '.join(map(str, sorted(folds)))} | {len(patients)} | {mean:.4f} ({low:.4f} to {high:.4f}) "
            f"| {np.median(dsc):.4f} | {np.mean(small):.4f} ({len(small)} glands) | {np.mean(hd95):.2f} "
            f"| {'' if name == 'present' else difference} | {f'{np.mean(minutes):.0f}' if minutes else ''} |"
        )
    return "\n".join(lines) + "\n"


def report_by_size(results: Path) -> str:
    """Each recipe by quarters of the glands, smallest first: is the DSC lost in the amount, or in the place?

    The last column is the mean DSC if the smaller of mask and contour lay within the larger one: what the difference of
    their volumes alone costs.
    """
    lines = [
        "| recipe | contours, ml | mean DSC | volume of the mask / of the contour: median (middle half) "
        "| mean DSC if one contained the other |",
        "|---|---|---|---|---|",
    ]
    for path in sorted(each for each in results.iterdir() if each.is_dir()):
        glands = [
            (gland["reference_ml"], gland["volume_ml"], gland["dsc"])
            for fold in results_of(path).values()
            for scores in fold["patients"].values()
            for gland in scores.values()
        ]
        for quarter in np.array_split(np.array(sorted(glands)), 4) if glands else []:
            contour, mask, dsc = quarter.T
            low, middle, high = np.quantile(mask / contour, (0.25, 0.5, 0.75))
            contained = 2 * np.minimum(contour, mask) / (contour + mask)
            lines.append(
                f"| {path.name} | {contour.min():.1f} to {contour.max():.1f} | {dsc.mean():.3f} "
                f"| {middle:.2f} ({low:.2f} to {high:.2f}) | {contained.mean():.3f} |"
            )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Train missing folds, or print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, nargs="?", help="data set in nnU-Net's raw layout with splits.json")
    parser.add_argument("recipes", type=Path, nargs="*", metavar="RECIPE.toml")
    parser.add_argument("--runs", type=Path, help="folder for checkpoints and decoded scans")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder for folds, scores and masks")
    parser.add_argument("--soft", default=SOFT_FOLDER, help="folder in RUNS with the soft labels of `distil.py`")
    parser.add_argument("--folds", default="0,1,2,3,4", help="which folds, in the order of their turn")
    parser.add_argument("--minutes", type=float, default=math.inf, help="stop then; the next call goes on")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--report", action="store_true", help="print the tables of what is finished")
    arguments = parser.parse_args()
    if arguments.report:
        print(report(arguments.results), report_by_size(arguments.results), sep="\n", end="")
        return
    if not (arguments.data and arguments.recipes and arguments.runs):
        parser.error("expected DATA, at least one RECIPE.toml and --runs, or --report")
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    end = time.monotonic() + 60 * arguments.minutes
    for fold in map(int, arguments.folds.split(",")):
        for recipe in arguments.recipes:
            if (arguments.results / recipe.stem / f"fold-{fold}.json").exists():
                continue
            left = (end - time.monotonic()) / 60
            folders = (arguments.runs, arguments.results, arguments.soft)
            if not train_fold(recipe, arguments.data, fold, *folders, left, arguments.device):
                return


if __name__ == "__main__":
    main()
