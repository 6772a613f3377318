"""A 3-D network on the folds of `cross_validation.py`: does it find the glands better than the compact network, and
what it can teach it.

    python benchmarks/teacher.py DATA --runs DIR --folds 0 --minutes 100     trains what is missing
    python benchmarks/cross_validation.py --report                           prints the tables, with this network

A residual 3-D U-Net (`teacher_net.py`) sees the region around one gland at a time, left ones in the mirror
(`teacher_views.py`). In training the region lies around the contours, shifted at random. For held-out patients a model
file finds it in the scan alone, as `infer` does; nothing else is taken from that model, which may have been trained on
them. The scores of both glands are resampled to the scan's voxels before a voxel gets its label. The network is the
moving average of the weights at the end of the schedule, so nothing is chosen on held-out patients. Trainings resume
where they were cut.

Scores and masks lie where `cross_validation.py` puts those of a recipe named "teacher"; `distil.py` trains other
networks on them.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import math
import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
import numpy as np
import teacher_net
import teacher_views
import torch
from cross_validation import RESULTS, environment, score, split_for
from numpy.typing import NDArray
from teacher_net import TeacherNet, loss_of
from teacher_views import SPACING_MM, Region, augmented, grid_mm, region_of, scores_back, seen

from parotid_seg.errors import InputError
from parotid_seg.files import atomic_write, write_text
from parotid_seg.models import DEFAULT_MODEL
from parotid_seg.runtime.engines.base import Backend
from parotid_seg.runtime.engines.load import load_backend
from parotid_seg.runtime.segmentation.locate import Prepared, labels_of_scan
from parotid_seg.runtime.segmentation.segment import asking, prepare
from parotid_seg.scan.components import Box, keep_largest_components, label_boxes
from parotid_seg.scan.labels import LEFT, side_of
from parotid_seg.scan.nifti import NiftiScan, read_mask, read_nifti
from parotid_seg.scan.volume import Mask
from parotid_seg.train.data.data_set import open_data_set
from parotid_seg.train.network import mixed_precision
from parotid_seg.train.torch_file import load_torch_file

NAME, SEED = "teacher", 23
SAVE_EVERY_S, PRINT_EVERY = 240.0, 100
CPU = torch.device("cpu")
Centre = tuple[float, float, float]


@dataclass(frozen=True)
class Settings:
    """The training.

    Attributes:
        steps: changes of the weights.
        glands: whose gradients are added up for a step.
        learning_rate: peak of a linear warm-up and cosine decay (AdamW).
        warmup_steps: length of the warm-up.
        weight_decay: of AdamW.
        gradient_norm: larger gradients are clipped to this norm.
        average: share of the moving average of the weights that a step keeps.
        seed: of the initial weights and of the order and the augmentation of the examples.
    """

    steps: int
    glands: int = 2
    learning_rate: float = 1e-3
    warmup_steps: int = 300
    weight_decay: float = 0.01
    gradient_norm: float = 1.0
    average: float = 0.999
    seed: int = SEED

    def rate(self, step: int) -> float:
        """The learning rate of a step."""
        warm = min(1.0, (step + 1) / self.warmup_steps)
        return self.learning_rate * warm * (1 + math.cos(math.pi * step / self.steps)) / 2


class Training:
    """The training of one fold, which can be cut after any step and gives the same weights.

    Args:
        settings: see `Settings`.
        regions: glands to learn from.
        file: what it is resumed from, if there is one, and saved to.
        device: "cpu" or "cuda".
    """

    def __init__(self, settings: Settings, regions: Sequence[Region], file: Path, device: str = "cpu") -> None:
        self.settings, self.regions, self.file, self.device = settings, regions, file, torch.device(device)
        torch.manual_seed(settings.seed)
        self.net = TeacherNet(2, teacher_net.WIDTHS).to(memory_format=torch.channels_last_3d).to(self.device)
        self.averaged = copy.deepcopy(self.net).requires_grad_(False)
        self.optimizer = torch.optim.AdamW(self.net.parameters(), weight_decay=settings.weight_decay)
        self.step, self.core_seconds = 0, 0.0
        self.losses: list[float] = []
        if file.exists():
            content = load_torch_file(file)
            self.net.load_state_dict(content["net"])
            self.averaged.load_state_dict(content["averaged"])
            self.optimizer.load_state_dict(content["optimizer"])
            self.step, self.core_seconds, self.losses = content["step"], content["core_seconds"], content["losses"]

    def save(self) -> None:
        """Save everything that the next call needs."""
        content = {
            "net": self.net.state_dict(),
            "averaged": self.averaged.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "core_seconds": self.core_seconds,
            "losses": self.losses,
        }
        with atomic_write(self.file) as partial:
            torch.save(content, partial)

    def run(self, minutes: float, title: str) -> bool:
        """Train until all steps are done (True) or the time is over (False)."""
        end, saved = time.monotonic() + 60 * minutes, time.monotonic()
        while self.step < self.settings.steps and time.monotonic() < end:
            started = time.process_time()
            self._step()
            self.core_seconds += time.process_time() - started
            if self.step % PRINT_EVERY == 0:
                each = self.core_seconds / self.step
                print(
                    f"{time.strftime('%H:%M:%S')}  {title}: step {self.step} of {self.settings.steps}, "
                    f"loss {np.mean(self.losses[-PRINT_EVERY:]):.4f}, {each:.3f} core-seconds a step",
                    flush=True,
                )
            if time.monotonic() - saved > SAVE_EVERY_S:
                self.save()
                saved = time.monotonic()
        self.save()
        return self.step >= self.settings.steps

    def _step(self) -> None:
        settings, total = self.settings, 0.0
        for group in self.optimizer.param_groups:
            group["lr"] = settings.rate(self.step)
        for index in range(self.step * settings.glands, (self.step + 1) * settings.glands):
            image, targets = (tensor.to(self.device) for tensor in self._example(index))
            with mixed_precision(self.device):
                scores = self.net(image)
            loss = loss_of(scores, targets) / settings.glands
            loss.backward()  # type: ignore[no-untyped-call]
            total += float(loss.detach())
        torch.nn.utils.clip_grad_norm_(self.net.parameters(), settings.gradient_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        share = 1 - min(settings.average, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            for averaged, now in zip(self.averaged.parameters(), self.net.parameters(), strict=True):
                averaged.lerp_(now, share)
        self.losses.append(total)
        self.step += 1

    def _example(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Example `index` of the whole training: every gland once before any comes again."""
        turn, place = divmod(index, len(self.regions))
        seed = self.settings.seed
        order = np.random.default_rng([seed, turn]).permutation(len(self.regions))
        generator = torch.Generator().manual_seed(seed + (index << 8))
        return augmented(self.regions[order[place]], generator)


def load_averaged(file: Path) -> TeacherNet:
    """The moving average of the weights in a training's file, ready to run."""
    net = TeacherNet(2, teacher_net.WIDTHS).to(memory_format=torch.channels_last_3d)
    net.load_state_dict(load_torch_file(file)["averaged"])
    return net.eval()


class Locator:
    """Finds the glands in a scan with a model file, as `infer` does.

    Args:
        backend: the model.
    """

    def __init__(self, backend: Backend) -> None:
        self.contract, self._ask = backend.contract, asking(backend, backend.batch_size)

    def prepared(self, scan: NiftiScan) -> Prepared:
        """A scan, checked, and its windows."""
        return prepare(scan.volume, self.contract)

    def centres(self, prepared: Prepared) -> list[Centre | None]:
        """The middle of each gland, None for one that is not found."""
        covered, found = labels_of_scan(prepared, self._ask)
        return centres_in(found.labels, self.contract.labels, (0, covered.rows.start, covered.columns.start))


def centres_in(mask: Mask, labels: Sequence[str], corner: tuple[int, int, int] = (0, 0, 0)) -> list[Centre | None]:
    """The middle (slice, row, column) of the largest piece of each structure, in a mask that begins at a corner of the
    scan; None for an absent one."""
    boxes = label_boxes(keep_largest_components(mask, labels), len(labels) - 1)
    return [box and _middle(box, corner) for box in boxes]


def _middle(box: Box, corner: tuple[int, int, int]) -> Centre:
    slices, rows, columns = (first + (side.start + side.stop - 1) / 2 for side, first in zip(box, corner, strict=True))
    return slices, rows, columns


def training_regions(data: Path, patients: Sequence[str], locator: Locator) -> list[Region]:
    """Regions around all glands that are contoured in some patients; of the model only labels and window are used."""
    regions, labels = [], locator.contract.labels
    for name in patients:
        scan = read_nifti(data / "imagesTr" / f"{name}_0000.nii.gz")
        prepared = locator.prepared(scan)
        contours, _ = read_mask(data / "labelsTr" / f"{name}.nii.gz", like=scan)
        for value, centre in enumerate(centres_in(contours, labels), start=1):
            if centre is None:
                continue
            mirrored, contoured = side_of(labels[value]) == LEFT, (contours == value).astype(np.uint8)
            regions.append(region_of(name, prepared, centre, mirrored=mirrored, contoured=contoured))
    return regions


@torch.no_grad()
def scores_of(
    net: TeacherNet, prepared: Prepared, centres: Sequence[Centre | None], device: torch.device = CPU
) -> NDArray[np.float32]:
    """Scores (glands, D, H, W) at the scan's voxels, the mean over regions that are shifted by half a voxel; 0 for a
    gland without centre."""
    labels, spacing_mm = prepared.contract.labels, prepared.volume.spacing_mm
    scores = np.zeros((len(labels) - 1, *prepared.volume.shape), np.float32)
    shifts = list(itertools.product((-SPACING_MM / 4, SPACING_MM / 4), repeat=3))
    for (gland, centre), shift in itertools.product(enumerate(centres), shifts):
        if centre is None:
            continue
        slices, rows, columns = (at + mm / step for at, mm, step in zip(centre, shift, spacing_mm, strict=True))
        mirrored = side_of(labels[1 + gland]) == LEFT
        region = region_of("", prepared, (slices, rows, columns), mirrored=mirrored)
        with mixed_precision(device):
            logits = net(seen(region, grid_mm()).to(device))[0]
        shares = logits.float().softmax(dim=1)[0, 1].cpu()
        scores[(gland, *region.part)] += scores_back(shares, region).numpy() / len(shifts)
    return scores


def mask_of(scores: NDArray[np.float32], least: float = 0.5) -> Mask:
    """Labels (D, H, W): the gland with the largest score, background where it is not above `least`."""
    return np.where(scores.max(axis=0) > least, 1 + scores.argmax(axis=0), 0).astype(np.uint8)


def settings_of(settings: Settings) -> dict[str, Any]:
    """All settings of a training: `Settings`, and the constants of the network and of what it sees."""
    constants = {
        name.lower(): value
        for module in (teacher_net, teacher_views)
        for name, value in vars(module).items()
        if name.isupper() and isinstance(value, int | float | tuple)
    }
    together: dict[str, Any] = json.loads(json.dumps({**asdict(settings), **constants}))
    return together


def keep_settings(used: dict[str, Any], path: Path) -> None:
    """Write a training's settings.

    Raises:
        InputError: if the training was begun with others.
    """
    if path.exists() and (begun := json.loads(path.read_text())) != used:
        name = next(name for name in used | begun if used.get(name) != begun.get(name))
        reason = f"{name}: found {used.get(name)}, expected {begun.get(name)}, with which this training was begun"
        raise InputError(reason, path=path)
    write_text(json.dumps(used, indent=1) + "\n", path)


def run_fold(
    fold: int, data: Path, settings: Settings, locator: Locator, runs: Path, results: Path, minutes: float, device: str
) -> bool:
    """Train, or go on with, the network of a fold, and score it when it is done; False if the time was over before.

    Args:
        fold: number of the fold.
        data: data set in nnU-Net's raw layout.
        settings: of the training.
        locator: finds the glands of held-out patients.
        runs: folder for the checkpoint of this network.
        results: folder for scores and masks of this network; the folds are in its parent.
        minutes: stop then.
        device: "cpu", where one core is used, or "cuda".
    """
    held_out, rest = split_for(fold, data, results.parent)
    run = runs / f"fold-{fold}"
    run.mkdir(parents=True, exist_ok=True)
    results.mkdir(parents=True, exist_ok=True)
    used = settings_of(settings)
    keep_settings(used, run / "settings.json")
    training = Training(settings, training_regions(data, rest, locator), run / "last.pt", device)
    if not training.run(minutes, f"{runs.name} fold {fold}"):
        return False

    def segment(_: str, scan: NiftiScan) -> Mask:
        prepared = locator.prepared(scan)
        return mask_of(scores_of(training.averaged, prepared, locator.centres(prepared), training.device))

    content = {
        "recipe": runs.name,
        "settings": used,
        "fold": fold,
        "train_minutes": round(training.core_seconds / 60, 1),
        "training_loss": round(float(np.mean(training.losses[-1000:])), 5),
        **environment(device),
        "patients": score(segment, locator.contract.labels, data, held_out, results / "masks"),
    }
    write_text(json.dumps(content, indent=1) + "\n", results / f"fold-{fold}.json")
    return True


def main() -> None:
    """Train and score the missing folds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="data set in nnU-Net's raw layout with splits.json")
    parser.add_argument("--runs", type=Path, required=True, help="folder for checkpoints")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder for folds, scores and masks")
    parser.add_argument("--folds", default="0,1,2,3,4", help="which folds, in the order of their turn")
    parser.add_argument("--steps", type=int, default=13000, help="length of a training")
    parser.add_argument("--minutes", type=float, default=math.inf, help="stop then; the next call goes on")
    parser.add_argument("--model", type=Path, default=DEFAULT_MODEL, help="finds the glands of held-out patients")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--name", default=NAME, help="of the network's folders; another one for other settings")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    locator = Locator(load_backend(arguments.model, "onnxruntime", threads=1))
    contract = locator.contract
    if contract.labels != (labels := open_data_set(arguments.data, "segment", None).labels):
        parser.error(f"{arguments.model}: found the labels {contract.labels}, expected the data set's, {labels}")
    if len(contract.channels) != 1:
        parser.error(f"{arguments.model}: found {len(contract.channels)} channels, expected one")
    runs, results = arguments.runs / arguments.name, arguments.results / arguments.name
    settings = Settings(arguments.steps, seed=arguments.seed)
    end = time.monotonic() + 60 * arguments.minutes
    for fold in map(int, arguments.folds.split(",")):
        if (results / f"fold-{fold}.json").exists():
            continue
        left = (end - time.monotonic()) / 60
        if not run_fold(fold, arguments.data, settings, locator, runs, results, left, arguments.device):
            return


if __name__ == "__main__":
    main()
