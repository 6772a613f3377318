"""Is a model worth adapting with ten patients of one's own? Patients that it has not seen decide.

    python benchmarks/training/ten_patients.py DATA --init RUNS/soft-continued/fold-0/best.pt --out FILE.json

The initial model is one of `cross_validation.py`: made as the packaged model, but without the patients of a fold. Half
of these are locked as "test"; of the other half each draw takes ten, who stand for a user's own (eight for training,
two for validation). They make these data sets:

- unlike: made unlike the initial model's training data: resampled to other voxels, sharpened and noisier, contours
  grown by 2 mm. There is something to learn.
- larger: the same with contours grown by 4 mm.
- ordinary: as they are. There is nothing to learn that the initial model does not know.

In each, the initial model is adapted by `train --preset few`, exported, and compared with itself on the locked patients
by `commission --against`. What is finished in the folder --work is not done again.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
import nibabel
import numpy as np
import torch
from resources import machine_and_versions
from scipy import ndimage

from parotid_seg.commission.commissioning import Order, RunnableModel, commission
from parotid_seg.commission.drift import AGAINST, MASKS
from parotid_seg.commission.labelled import choose
from parotid_seg.commission.limits import read_limits
from parotid_seg.commission.record import AgainstRecord
from parotid_seg.export.export_options import ExportOptions
from parotid_seg.export.verified_export import export
from parotid_seg.files import hash_file, write_text
from parotid_seg.metrics import dice
from parotid_seg.models import DEFAULT_MODEL, PACKAGED
from parotid_seg.runtime.engines.load import load_backend
from parotid_seg.runtime.pipeline.executor import LocalExecutor
from parotid_seg.runtime.pipeline.infer_options import InferOptions
from parotid_seg.train.config import TrainConfig
from parotid_seg.train.settings import load_config
from parotid_seg.train.stages import train

FOLDS = Path(__file__).parents[1] / "results" / "cross-validation" / "folds.json"
SETS = {"unlike": 2.0, "larger": 4.0, "ordinary": None}
"""By how many mm the contours are grown; None for patients as they are."""
OWN, OWN_VALIDATION = 10, 2
SPACING_MM = (2.0, 2.0, 3.0)
SHARPER, NOISE_HU = 0.7, 20.0
"""Weight of the difference to a smoothed image that is added, and standard deviation of the noise."""
SCHEDULE = ("epochs", "images_per_patient", "learning_rate", "average_decay", "initial_share", "calm_epochs")
"""Settings of the stage "segment" that are recorded."""


def unlike(
    image: nibabel.Nifti1Image, labels: nibabel.Nifti1Image, grown_mm: float, seed: int
) -> list[nibabel.Nifti1Image]:
    """A scan and its label map on other voxels, sharper, noisier, and with grown contours."""
    spacing = np.array(image.header.get_zooms()[:3], float)
    factors = spacing / SPACING_MM
    voxels = ndimage.zoom(np.asarray(image.dataobj, np.float32), factors, order=1, grid_mode=True, mode="nearest")
    soft = ndimage.gaussian_filter(voxels, (1.0, 1.0, 0.0))
    noise = np.random.default_rng(seed).normal(0.0, NOISE_HU, voxels.shape)
    sharp = np.where(voxels > -900, voxels + SHARPER * (voxels - soft) + noise, voxels)
    grown = np.zeros(voxels.shape, np.uint8)
    stored = np.asarray(labels.dataobj)
    for value in np.unique(stored[stored > 0]):
        inside = stored == value
        around = tuple(
            slice(max(0, each.start - 8), each.stop + 8) for each in ndimage.find_objects(inside.astype(int))[0]
        )
        near, beyond = inside[around], np.full(inside.shape, 1000.0)
        beyond[around] = ndimage.distance_transform_edt(~near, spacing) - ndimage.distance_transform_edt(near, spacing)
        beyond -= np.sign(beyond) * spacing.mean() / 2  # the border is between the centres of voxels
        mm = ndimage.zoom(beyond.astype(np.float32), factors, order=1, grid_mode=True, mode="nearest")
        grown[(mm <= grown_mm) & (grown == 0)] = value
    affine = image.affine.copy()
    affine[:3, :3] = image.affine[:3, :3] * (np.array(image.shape) / voxels.shape)
    affine[:3, 3] += image.affine[:3, :3] @ (0.5 * np.array(image.shape) / voxels.shape - 0.5)
    whole = np.clip(np.rint(sharp), -1024, 3071).astype(np.int16)
    return [nibabel.Nifti1Image(each, affine) for each in (whole, grown)]


def make_data(source: Path, out: Path, own: Sequence[str], locked: Sequence[str], grown_mm: float | None) -> None:
    """A data set of a user's own patients and of locked ones, changed by `unlike` or as they are."""
    if (out / "splits.json").exists():
        return
    for name in ("imagesTr", "labelsTr"):
        (out / name).mkdir(parents=True, exist_ok=True)
    for number, case in enumerate((*own, *locked)):
        paths = [Path("imagesTr") / f"{case}_0000.nii.gz", Path("labelsTr") / f"{case}.nii.gz"]
        if grown_mm is None:
            for path in paths:
                (out / path).unlink(missing_ok=True)
                (out / path).symlink_to((source / path).resolve())
            continue
        scan, labels = (nibabel.load(source / path) for path in paths)
        for path, made in zip(paths, unlike(scan, labels, grown_mm, number), strict=True):
            nibabel.save(made, out / path)
    description = json.loads((source / "dataset.json").read_text())
    kept = {name: description[name] for name in ("channel_names", "labels", "file_ending")}
    write_text(json.dumps(kept), out / "dataset.json")
    lists = {"train": own[OWN_VALIDATION:], "validation": own[:OWN_VALIDATION], "test": locked}
    write_text(json.dumps({name: list(cases) for name, cases in lists.items()}), out / "splits.json")


def decide(data: Path, work: Path, config: TrainConfig, initial: Path, verify: Path | None) -> dict[str, Any]:
    """Adapt a model to a data set and compare the two on its locked patients.

    Args:
        data: the data set.
        work: folder for the run, the adapted model, and the comparison.
        config: of the run, which starts from the model's checkpoint.
        initial: the model's file.
        verify: scans for the export's proof.
    """
    run, seconds, started = work / "run", {}, time.perf_counter()
    train(config, data, run, device="cpu", resume=(run / "last.pt").exists(), report=partial(print, flush=True))
    seconds["train"], started = time.perf_counter() - started, time.perf_counter()
    adapted = work / "adapted.onnx"
    export(run / "best.pt", adapted, ExportOptions(verify=verify), report=print)
    seconds["export"], started = time.perf_counter() - started, time.perf_counter()
    chosen, out = choose(data), work / "commission"
    order = Order(
        chosen, out, runnable("adapted", adapted), read_limits(None, dose=False), against=runnable("initial", initial)
    )
    against = commission(order).against
    seconds["commission"] = time.perf_counter() - started
    assert against
    masks = {"initial": out / AGAINST, "adapted": out / MASKS}
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {
        **summary(against),
        "volume_ratio": {name: volume_ratio(folder, chosen.references) for name, folder in masks.items()},
        "dsc_of_patients": {name: dsc_of_patients(folder, chosen.references) for name, folder in masks.items()},
        "validation_dsc": {
            f"epoch {each['epoch']:g}": each["validation_dsc"] for each in records if "validation_dsc" in each
        },
        "schedule": {name: getattr(config.segment, name) for name in SCHEDULE},
        "adapted_sha256": hash_file(adapted),
        "seconds": {name: round(value, 1) for name, value in seconds.items()},
        "measured": {"date": date.today().isoformat(), **machine_and_versions(), "torch": torch.__version__},
    }


def runnable(name: str, model: Path) -> RunnableModel:
    """A model file on the CPU."""
    load = partial(load_backend, model, "onnxruntime", "cpu")
    return RunnableModel(name, lambda: LocalExecutor(load, InferOptions(), print))


def volume_ratio(masks: Path, references: Path) -> float:
    """The masks' volume by the references', all glands of the patients with a mask together."""
    paths = sorted(masks.glob("*.nii.gz"))
    made, drawn = (sum(map(volume, each)) for each in (paths, (references / path.name for path in paths)))
    return made / drawn


def dsc_of_patients(masks: Path, references: Path) -> dict[str, float]:
    """Mean DSC of the contoured glands of each patient with a mask."""
    found = {}
    for path in sorted(masks.glob("*.nii.gz")):
        mask, reference = (np.asarray(nibabel.load(each).dataobj) for each in (path, references / path.name))
        values = [value for value in np.unique(reference) if value]
        dsc = np.mean([dice(mask == value, reference == value) for value in values])
        found[path.name.removesuffix(".nii.gz")] = round(float(dsc), 4)
    return found


def volume(path: Path) -> float:
    """Of all structures of a label map, in mm3."""
    image = nibabel.load(path)
    return float(np.count_nonzero(image.dataobj) * np.prod(image.header.get_zooms()))


def summary(against: AgainstRecord) -> dict[str, Any]:
    """The advice, the verdict (A is the initial model, B the adapted one), and the figures of both glands together."""
    result = against.comparison
    figures = {
        each.figure: {name: getattr(each, name) for name in ("mean_a", "mean_b", "difference", "low", "high", "better")}
        for each in result.differences
        if each.structure == result.differences[-1].structure
    }
    return {
        "advice": against.advice,
        "verdict": result.verdict,
        "patients": len(result.patients),
        "no_mask": {"initial": result.missing["a"], "adapted": result.missing["b"]},
        "figures": figures,
    }


def own_patients(pool: Sequence[str], draw: int) -> list[str]:
    """The patients of a draw. The first two draws have none in common."""
    if (start := draw * OWN) + OWN <= len(pool):
        return list(pool[start : start + OWN])
    return [str(each) for each in np.random.default_rng(draw).permutation(pool)[:OWN]]


def ten_patients(wanted: argparse.Namespace, work: Path) -> dict[str, Any]:
    """The record of all wanted sets and draws, with all files in `work`."""
    unseen = sorted(json.loads(wanted.folds.read_text())[wanted.fold])
    mixed = np.random.default_rng(0).permutation(unseen).tolist()
    half = -(-len(mixed) // 2)
    pool, locked = mixed[:half], sorted(mixed[half:])
    initial = DEFAULT_MODEL
    if wanted.init != PACKAGED and not (initial := work / "initial.onnx").exists():
        export(Path(wanted.init), initial, ExportOptions(verify=wanted.verify), report=print)
    results: dict[str, dict[str, Any]] = {}
    for draw in wanted.draws:
        own = own_patients(pool, draw)
        for name in wanted.sets:
            folder = work / name / f"draw-{draw}"
            make_data(wanted.data, folder / "data", own, locked, SETS[name])
            if not (result := folder / "result.json").exists():
                config = load_config("few", wanted.config, init=wanted.init, seed=draw)
                write_text(json.dumps(decide(folder / "data", folder, config, initial, wanted.verify)), result)
            found = {"own": own, **json.loads(result.read_text())}
            results.setdefault(name, {})[f"draw {draw}"] = found
            print(f"{name}, draw {draw}: {found['verdict']}. {found['advice']}", flush=True)
    return {"initial_sha256": hash_file(initial), "locked": locked, **results}


def main() -> None:
    """Parse the arguments, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument(
        "--init", required=True, help="checkpoint that was not trained on the fold's patients, or packaged"
    )
    parser.add_argument("--fold", type=int, default=0, help="which of --folds the initial model has not seen")
    parser.add_argument("--folds", type=Path, default=FOLDS, help="JSON, a list of lists of patients")
    parser.add_argument("--sets", nargs="+", choices=SETS, default=["unlike", "ordinary"])
    parser.add_argument(
        "--draws", nargs="+", type=int, default=[0], help="one training for each in each set; the number is its seed"
    )
    parser.add_argument("--work", type=Path, help="folder for all files, also those of an earlier run")
    parser.add_argument("--config", type=Path, help="settings over those of --preset few")
    parser.add_argument("--verify", type=Path, help="scans for the export's proof; default: the example")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        record = ten_patients(arguments, arguments.work or Path(folder))
    write_text(json.dumps(record, indent=1) + "\n", arguments.out)


if __name__ == "__main__":
    main()
