"""Is the packaged model worth adapting with ten patients of one's own? Both answers, on locked patients.

    python benchmarks/training/ten_patients.py Dataset101_OpenKBP --out FILE.json

Ten training patients of OpenKBP stand for a user's own, in two data sets:

- unlike: made unlike the packaged model's training data: resampled to other voxels, sharpened and noisier, contours
  grown by 2 mm. There is something to learn.
- ordinary: as they are. There is nothing to learn that the packaged model does not know.

In each, the packaged model is adapted by `train --init packaged --preset few` (eight patients for training, two for
validation), exported, and compared with the packaged model on validation patients of OpenKBP, made in the same way and
locked as "test". The packaged model was trained on the ten, and on all 31 validation patients but the six in `UNSEEN`,
with their clinical contours. `train` refuses to lock scans that the packaged model was trained on, so the six are the
locked patients of "ordinary". Of "unlike" all 31 are: their contours and voxels are new to the packaged model. It may
still segment the 25 better than scans that it never saw, which counts against the adapted model, so the comparison is
also made on the six alone.
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

from parotid_seg.export.export_options import ExportOptions
from parotid_seg.export.verified_export import export
from parotid_seg.files import write_text
from parotid_seg.models import DEFAULT_MODEL
from parotid_seg.runtime.compare import ComparisonRecord, compare
from parotid_seg.runtime.engines.load import load_backend
from parotid_seg.runtime.pipeline.infer_options import InferOptions
from parotid_seg.runtime.pipeline.run import infer
from parotid_seg.train.settings import load_config
from parotid_seg.train.stages import train

UNSEEN = ("pt_204", "pt_206", "pt_211", "pt_218", "pt_227", "pt_235")
"""Patients that the packaged model was not trained on (results/2026-11-24-training/second-splits.json)."""
SETS = ("unlike", "ordinary")
OWN, OWN_VALIDATION = 10, 2
SPACING_MM = (2.0, 2.0, 3.0)
GROWN_MM = 2.0
SHARPER, NOISE_HU = 0.7, 20.0
"""Weight of the difference to a smoothed image that is added, and standard deviation of the noise."""


def unlike(image: nibabel.Nifti1Image, labels: nibabel.Nifti1Image, seed: int) -> list[nibabel.Nifti1Image]:
    """A scan and its label map on other voxels, sharper, noisier, and with contours grown by `GROWN_MM`."""
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
        beyond = ndimage.distance_transform_edt(~inside, spacing) - ndimage.distance_transform_edt(inside, spacing)
        near = ndimage.zoom(beyond.astype(np.float32), factors, order=1, grid_mode=True, mode="nearest") <= GROWN_MM
        grown[near & (grown == 0)] = value
    affine = image.affine.copy()
    affine[:3, :3] = image.affine[:3, :3] * (np.array(image.shape) / voxels.shape)
    affine[:3, 3] += image.affine[:3, :3] @ (0.5 * np.array(image.shape) / voxels.shape - 0.5)
    whole = np.clip(np.rint(sharp), -1024, 3071).astype(np.int16)
    return [nibabel.Nifti1Image(each, affine) for each in (whole, grown)]


def make_data(source: Path, out: Path, own: Sequence[str], locked: Sequence[str], change: bool) -> None:
    """A data set of a user's own patients and of locked ones, changed by `unlike` or as they are."""
    if (out / "splits.json").exists():
        return
    for name in ("imagesTr", "labelsTr"):
        (out / name).mkdir(parents=True)
    for number, case in enumerate((*own, *locked)):
        paths = [Path("imagesTr") / f"{case}_0000.nii.gz", Path("labelsTr") / f"{case}.nii.gz"]
        if not change:
            for path in paths:
                (out / path).symlink_to((source / path).resolve())
            continue
        scan, labels = (nibabel.load(source / path) for path in paths)
        for path, made in zip(paths, unlike(scan, labels, number), strict=True):
            nibabel.save(made, out / path)
    description = json.loads((source / "dataset.json").read_text())
    kept = {name: description[name] for name in ("channel_names", "labels", "file_ending")}
    write_text(json.dumps(kept), out / "dataset.json")
    lists = {"train": own[OWN_VALIDATION:], "validation": own[:OWN_VALIDATION], "test": locked}
    write_text(json.dumps({name: list(cases) for name, cases in lists.items()}), out / "splits.json")


def locked_only(folder: Path, out: Path, locked: Sequence[str]) -> Path:
    """A folder of links to the files of locked patients."""
    out.mkdir(parents=True)
    for case in locked:
        for path in folder.glob(f"{case}[_.]*"):
            (out / path.name).symlink_to(path.resolve())
    return out


def decide(data: Path, work: Path, locked: Sequence[str], config: Path | None, verify: Path | None) -> dict[str, Any]:
    """Adapt the packaged model to a data set and compare the two on its locked patients."""
    run, seconds, started = work / "run", {}, time.perf_counter()
    train(load_config("few", config, init="packaged"), data, run, device="cpu", report=print)
    seconds["train"], started = time.perf_counter() - started, time.perf_counter()
    adapted = work / "adapted.onnx"
    export(run / "best.pt", adapted, ExportOptions(verify=verify), report=print)
    seconds["export"], started = time.perf_counter() - started, time.perf_counter()
    scans = locked_only(data / "imagesTr", work / "scans", locked)
    labels = locked_only(data / "labelsTr", work / "labels", locked)
    masks = {"packaged": work / "packaged", "adapted": work / "adapted"}
    for model, name in ((DEFAULT_MODEL, "packaged"), (adapted, "adapted")):
        infer([scans], masks[name], partial(load_backend, model, "onnxruntime", "cpu"), InferOptions(report=False))
    seconds["segment"] = time.perf_counter() - started
    unseen = [case for case in locked if case in UNSEEN]
    verdicts = {"locked patients": summary(compare(masks["packaged"], masks["adapted"], labels))}
    if 0 < len(unseen) < len(locked):
        some = {name: locked_only(folder, work / f"unseen-{name}", unseen) for name, folder in masks.items()}
        some["labels"] = locked_only(labels, work / "unseen-labels", unseen)
        verdicts["unseen"] = summary(compare(some["packaged"], some["adapted"], some["labels"]))
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {
        "comparison": verdicts,
        "validation_dsc": {
            f"epoch {each['epoch']:g}": each["validation_dsc"] for each in records if "validation_dsc" in each
        },
        "seconds": {name: round(value, 1) for name, value in seconds.items()},
    }


def summary(result: ComparisonRecord) -> dict[str, Any]:
    """The verdict (A is the packaged model, B the adapted one) and the figures of both glands together."""
    figures = {
        each.figure: {name: getattr(each, name) for name in ("mean_a", "mean_b", "difference", "low", "high", "better")}
        for each in result.differences
        if each.structure == result.differences[-1].structure
    }
    return {
        "verdict": result.verdict,
        "better": {"A": "packaged", "B": "adapted", None: None}[result.better],
        "patients": len(result.patients),
        "no_mask": {"packaged": result.missing["a"], "adapted": result.missing["b"]},
        "figures": figures,
    }


def ten_patients(
    source: Path, work: Path, most_locked: int, config: Path | None, verify: Path | None
) -> dict[str, Any]:
    """The record of both data sets."""
    splits = json.loads((source / "splits.json").read_text())
    drawn = np.random.default_rng(0).permutation(sorted(splits["train"]))
    own, everyone = drawn[:OWN].tolist(), sorted(splits["validation"])[:most_locked]
    results = {}
    for name in SETS:
        locked = everyone if name == "unlike" else [case for case in everyone if case in UNSEEN]
        make_data(source, work / name / "data", own, locked, change=name == "unlike")
        results[name] = decide(work / name / "data", work / name, locked, config, verify)
        for patients, found in results[name]["comparison"].items():
            print(f"{name}, {patients}: {found['verdict']}")
    measured = {"date": date.today().isoformat(), **machine_and_versions(), "torch": torch.__version__}
    return {**measured, "own": own, "locked": everyone, **results}


def main() -> None:
    """Parse the arguments, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--locked", type=int, default=1000, help="most locked patients")
    parser.add_argument("--work", type=Path, help="new folder for all files, or one with data of an earlier run")
    parser.add_argument("--config", type=Path, help="settings over those of --preset few")
    parser.add_argument("--verify", type=Path, help="scans for the export's proof; default: the example")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        work = arguments.work or Path(folder)
        record = ten_patients(arguments.data, work, arguments.locked, arguments.config, arguments.verify)
    write_text(json.dumps(record, indent=1) + "\n", arguments.out)


if __name__ == "__main__":
    main()
