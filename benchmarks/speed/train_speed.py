"""Images per second of training, ours against a plain loop of the published settings, side by side in one run.

    python benchmarks/speed/train_speed.py DATA --out FILE.json

Both train the network of the preset compact on the same patients with the same batch. The plain loop is what published
code does: fp32, one process with all cores for torch, every slice resampled, rotated, cropped, flipped, jittered and
blurred by PIL, image by image in the data loader's workers. Ours is `parotid-seg train` as it is, one process a core.
Pre-training is counted in slices, each seen in two views.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageFilter
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from parotid_seg.files import write_text
from parotid_seg.system import versions_of
from parotid_seg.train.checkpoint import build_network
from parotid_seg.train.config import ContrastConfig, TrainConfig
from parotid_seg.train.data.data_set import open_data_set
from parotid_seg.train.data.patients import Patient, load_patients
from parotid_seg.train.settings import load_config, merge

STAGES = ("contrast", "segment")


class PlainSlices(Dataset[Any]):
    """Slices with their neighbours as channels, prepared by PIL; twice for contrast, with labels for segmentation."""

    def __init__(self, patients: list[Patient], config: TrainConfig, views: int, images: int) -> None:
        self.patients, self.config, self.views, self.images = patients, config, views, images

    def __len__(self) -> int:
        return self.images

    def __getitem__(self, number: int) -> list[Tensor]:
        rng = np.random.default_rng(number)
        patient = self.patients[int(rng.integers(len(self.patients)))]
        index = int(rng.integers(len(patient.labels)))
        return [array for _ in range(self.views) for array in self._view(patient, index, rng)]

    def _view(self, patient: Patient, index: int, rng: np.random.Generator) -> list[Tensor]:
        grid, spacing = self.config.grid, patient.volume.spacing_mm
        low, high = self.config.window_hu
        angle, flip = rng.uniform(-10, 10), rng.random() < 0.5
        side = rng.uniform(0.6, 1.0) * grid.size * grid.spacing_mm / spacing[1]
        middle = np.array(patient.centre_mm) / spacing[1:] + rng.uniform(-5, 5, 2)
        box = (middle[1] - side / 2, middle[0] - side / 2, middle[1] + side / 2, middle[0] + side / 2)
        contrast, brightness, sigma = rng.uniform(0.8, 1.2), rng.uniform(-0.1, 0.1), rng.uniform(0.1, 1.0)

        def prepared(pixels: np.ndarray, filter_: Image.Resampling) -> Image.Image:
            image = Image.fromarray(pixels).rotate(angle, filter_, center=(middle[1], middle[0]))
            image = image.transform((grid.size, grid.size), Image.Transform.EXTENT, box, filter_)
            return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if flip else image

        channels = []
        for offset_mm in grid.offsets_mm:
            at = int(np.clip(index + round(offset_mm / spacing[0]), 0, len(patient.labels) - 1))
            pixels = (np.clip(patient.volume.voxels[0, at].astype(np.float32), low, high) - low) / (high - low)
            image = prepared((255 * pixels).astype(np.uint8), Image.Resampling.BILINEAR)
            image = image.filter(ImageFilter.GaussianBlur(sigma))
            channels.append(np.clip((np.asarray(image, np.float32) / 255 - 0.5) * contrast + 0.5 + brightness, 0, 1))
        labels = np.array(prepared(np.asarray(patient.labels[index]), Image.Resampling.NEAREST), dtype=np.int64)
        return [torch.from_numpy(np.stack(channels)), torch.from_numpy(labels)][: 1 if self.views == 2 else 2]


def plain_seconds(stage: str, config: TrainConfig, patients: list[Patient], images: int) -> float:
    """Time of one epoch of the plain loop."""
    schedule = getattr(config, stage)
    slices = PlainSlices(patients, config, 2 if stage == "contrast" else 1, images)
    batches = DataLoader(slices, schedule.batch_size, num_workers=os.cpu_count() or 1, drop_last=True)
    net = build_network(config, 1, 3).unet.train()
    started = time.perf_counter()
    if stage == "segment":
        optimizer = torch.optim.AdamW(net.parameters(), lr=1e-4)
        for pixels, labels in batches:
            logits = net(pixels)
            hot = F.one_hot(labels, 3).permute(0, 3, 1, 2).float()
            shares = logits.softmax(1)
            dice = 1 - ((2 * (shares * hot).sum((0, 2, 3)) + 1) / ((shares + hot).sum((0, 2, 3)) + 1))[1:].mean()
            step(optimizer, 0.4 * F.cross_entropy(logits, labels) + 0.6 * dice)
        return time.perf_counter() - started
    project, predict = (perceptron(layers, schedule) for layers in (3, 2))
    query = nn.ModuleList([net.encoder, net.skip_norms[-1], project])
    slow_net, slow_project = copy.deepcopy(net), copy.deepcopy(project)
    optimizer = torch.optim.AdamW([*query.parameters(), *predict.parameters()], lr=1e-4)
    own = torch.arange(schedule.batch_size)
    for views in batches:
        queries = [F.normalize(predict(project(net.encode(view)[-1].mean((1, 2)))), dim=1) for view in views]
        with torch.no_grad():
            keys = [F.normalize(slow_project(slow_net.encode(view)[-1].mean((1, 2))), dim=1) for view in views]
        losses = [F.cross_entropy(queries[a] @ keys[1 - a].T / schedule.temperature, own) for a in (0, 1)]
        step(optimizer, losses[0] + losses[1])
        with torch.no_grad():
            pairs = [*zip(slow_net.encoder.parameters(), net.encoder.parameters(), strict=True)]
            for slow, fast in [*pairs, *zip(slow_project.parameters(), project.parameters(), strict=True)]:
                slow.mul_(0.99).add_(fast, alpha=0.01)
    return time.perf_counter() - started


def perceptron(layers: int, schedule: ContrastConfig) -> nn.Sequential:
    """Linear layers with batch norm between them, from the preset compact's 256 features or from projected ones."""
    width_in = 256 if layers == 3 else schedule.features
    hidden = [nn.Linear(width_in, schedule.hidden), nn.BatchNorm1d(schedule.hidden), nn.ReLU()]
    more = [nn.Linear(schedule.hidden, schedule.hidden), nn.BatchNorm1d(schedule.hidden), nn.ReLU()]
    return nn.Sequential(*hidden, *(more if layers == 3 else []), nn.Linear(schedule.hidden, schedule.features))


def step(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    """One update."""
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()


def our_seconds(stage: str, data: Path, images: int, labelled: int, batch_size: int) -> float:
    """Time of one epoch of `parotid-seg train`, the second of two: the first also fills the cache and warms up."""
    cores = os.cpu_count() or 1
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "config.toml"
        settings = {"epochs": 2, "images_per_epoch": images, "batch_size": batch_size, "warmup_epochs": 0.1}
        config.write_text("\n".join([f"[{stage}]", *(f"{name} = {value}" for name, value in settings.items()), ""]))
        launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(cores)]
        command = [sys.executable, *launch, "-m", "parotid_seg", "train", str(data), "--out", f"{folder}/run"]
        command += ["--config", str(config), "--stages", stage, "--labelled", str(labelled), "--device", "cpu"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        subprocess.run(command, check=True, env=environment, capture_output=True)
        records = (Path(folder) / "run" / "metrics.jsonl").read_text().splitlines()
    return float(json.loads(records[-1])["train_seconds"])


def main() -> None:
    """Time both, in turns, and write what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="data set in nnU-Net's raw layout")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--images", type=int, default=480, help="slices an epoch")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--labelled", type=int, default=20, help="patients")
    parser.add_argument("--batch-size", type=int, help="slices; default: the preset's")
    arguments = parser.parse_args()
    config = load_config("compact")
    if arguments.batch_size:
        config = merge(
            config, {stage: {"batch_size": arguments.batch_size} for stage in STAGES}, where="--batch-size: "
        )
    torch.set_num_threads(os.cpu_count() or 1)
    names = "parotid-seg", "torch", "timm", "pillow"
    found: dict[str, Any] = {"versions": versions_of(names), "cores": os.cpu_count()}
    found |= {"python": platform.python_version(), "date": time.strftime("%F"), "images": arguments.images}
    with tempfile.TemporaryDirectory() as cache:
        data = open_data_set(arguments.data, "segment", arguments.labelled)
        patients = load_patients(data, data.train, Path(cache), config.window_hu)
        for stage in STAGES:
            plain, ours = [], []
            for _ in range(arguments.repeats):
                plain.append(arguments.images / plain_seconds(stage, config, patients, arguments.images))
                batch_size = getattr(config, stage).batch_size
                seconds = our_seconds(stage, arguments.data, arguments.images, arguments.labelled, batch_size)
                ours.append(arguments.images / seconds)
                print(f"{stage}: plain {plain[-1]:.1f} images/s, ours {ours[-1]:.1f}", flush=True)
            ratio = statistics.median(mine / theirs for mine, theirs in zip(ours, plain, strict=True))
            found[stage] = {"plain_images_per_s": plain, "ours_images_per_s": ours, "median_ratio": ratio}
            print(f"{stage}: {ratio:.2f} times", flush=True)
    write_text(json.dumps(found, indent=1) + "\n", arguments.out)


if __name__ == "__main__":
    main()
