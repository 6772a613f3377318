"""A supervised stage: Swin-Unet on labelled slices with cross-entropy and Dice, validated on whole patients."""

from __future__ import annotations

import copy
import json
import math
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from parotid_seg.contract import Grid
from parotid_seg.errors import InputError
from parotid_seg.files import write_text
from parotid_seg.metrics import dice
from parotid_seg.scan.components import keep_largest_components
from parotid_seg.scan.grid import chunks
from parotid_seg.scan.intensity import Windows
from parotid_seg.scan.volume import Mask, Volume
from parotid_seg.train.augment import Augmenter
from parotid_seg.train.checkpoint import Checkpoint, build_network, load_checkpoint, save_checkpoint
from parotid_seg.train.config import SCRATCH, SegmentConfig, TrainConfig, to_toml
from parotid_seg.train.dataset import DataSet, Patient, load_patients
from parotid_seg.train.network import ParotidNet, ToGrid
from parotid_seg.train.plots import draw_curves, draw_samples
from parotid_seg.train.sampling import Batch, SliceSampler
from parotid_seg.train.transfer import start_from

Report = Callable[[str], None]

MOST_WORKERS = 8
"""Processes that draw slices for a GPU; on the CPU it is one, since the network needs the cores."""


def segmentation_loss(logits: Tensor, targets: Tensor, contoured: Tensor, cross_entropy_share: float) -> Tensor:
    """Weighted sum of cross-entropy and Dice loss (0.4 and 0.6 in arXiv 2208.12413's follow-up).

    A structure that was not contoured may be anywhere in the background, so there it counts as background
    (the marginal loss of Shi et al., Medical Image Analysis 2021, arXiv 2007.03868) and is left out of its Dice.

    Args:
        logits, targets: (N, C, G, G), background first; targets are shares that sum to 1 over C.
        contoured: (N, C) bool, true for the background.
    """
    shares = logits.log_softmax(dim=1)
    away = shares.masked_fill(contoured[:, :, None, None], -math.inf)
    background = torch.cat([shares[:, :1], away[:, 1:]], dim=1).logsumexp(dim=1, keepdim=True)
    cross_entropy = -(targets[:, :1] * background).sum(dim=1) - (targets[:, 1:] * shares[:, 1:]).sum(dim=1)
    dice = dice_loss(shares.exp(), targets, contoured)
    return cross_entropy_share * cross_entropy.mean() + (1.0 - cross_entropy_share) * dice


def dice_loss(shares: Tensor, targets: Tensor, contoured: Tensor) -> Tensor:
    """1 - soft Dice of each structure over the batch's pixels where it is contoured, averaged over the structures.

    Args:
        shares, targets: (N, C, G, G), each summing to 1 over C; the background (first) is left out.
        contoured: (N, C) bool.
    """
    used = contoured[:, 1:, None, None]
    overlap = (shares[:, 1:] * targets[:, 1:] * used).sum(dim=(0, 2, 3))
    total = ((shares[:, 1:] + targets[:, 1:]) * used).sum(dim=(0, 2, 3))
    return 1.0 - ((2.0 * overlap + 1.0) / (total + 1.0)).mean()


@torch.no_grad()
def segment_volume(
    net: ParotidNet, volume: Volume, windows: Windows, grid: Grid, device: torch.device, batch_size: int = 32
) -> Mask:
    """Labels (D, H, W) of a scan by the torch model under bf16 autocast, without clean-up."""
    labels = np.zeros(volume.shape, np.uint8)
    for chunk in chunks(volume, windows, grid, batch_size):
        inputs = {name: torch.from_numpy(array).to(device) for name, array in chunk.inputs.items()}
        images = net.to_grid(*(inputs[name] for name in ("slices", "window", "rows", "columns", "neighbours")))
        with torch.autocast(device.type, torch.bfloat16):
            logits = net.unet(images.contiguous(memory_format=torch.channels_last))
        native = net.from_grid(logits, *(inputs[name] for name in ("slices_back", "rows_back", "columns_back")))
        labels[chunk.first : chunk.stop] = native.argmax(dim=1).to(torch.uint8).cpu().numpy()
    return labels


class Trainer:
    """One supervised run: makes, or resumes, everything under its folder.

    Args:
        config: the resolved configuration.
        data: the data set.
        run: folder for checkpoints, metrics and pictures.
        device: "cpu", "cuda" or "cuda:N".
        report: told one line at a time what happens.
        cache: folder for decoded scans.
    """

    def __init__(self, config: TrainConfig, data: DataSet, run: Path, device: str, report: Report, cache: Path) -> None:
        self.config, self.data, self.run, self.report, self.cache = config, data, run, report, cache
        self.device = _device(device)
        self.workers = 1 if self.device.type == "cpu" else max(1, min(MOST_WORKERS, (os.cpu_count() or 1) - 1))
        torch.manual_seed(config.seed)
        self.net = (
            build_network(config, len(data.channels), len(data.labels))
            .to(self.device)
            .to(memory_format=torch.channels_last)
        )
        self.average = copy.deepcopy(self.net).eval().requires_grad_(False)
        self.optimizer = torch.optim.AdamW(_parameter_groups(self.net, config.segment.weight_decay), lr=0.0, fused=True)
        self.epochs_done, self.step, self.best_dsc = 0, 0, -1.0

    def start(self, source: str) -> None:
        """Take the first weights from a source, and leave the account in `transfer.json`.

        Args:
            source: "scratch", or as in `transfer.start_from`.

        Raises:
            InputError: if they cannot be read or fit nothing.
        """
        if source == SCRATCH:
            return
        transfer = start_from(source, self.net.unet, self.config.transfer)
        self.average.load_state_dict(self.net.state_dict())
        for line in transfer.lines():
            self.report(line)
        transfer.save(self.run / "transfer.json")

    def resume(self) -> None:
        """Go on from `last.pt`.

        Raises:
            InputError: if there is none, or it was made with other settings.
        """
        checkpoint = load_checkpoint(self.run / "last.pt")
        found = checkpoint.config, checkpoint.labels, checkpoint.channels, checkpoint.training["train_patients"]
        if found != (self.config, self.data.labels, self.data.channels, len(self.data.train)):
            raise InputError(
                f"--resume: {self.run / 'last.pt'} was made with other settings; see {self.run / 'config.toml'}"
            )
        progress = checkpoint.progress
        self.net.load_state_dict(progress["net"])
        self.average.load_state_dict(checkpoint.weights)
        self.optimizer.load_state_dict(progress["optimizer"])
        self.epochs_done, self.step, self.best_dsc = progress["epochs_done"], progress["step"], progress["best_dsc"]

    def fit(self, max_minutes: float | None = None) -> bool:
        """Train until the schedule or the time is over.

        Returns:
            Whether the schedule is complete; if not, `last.pt` resumes it.
        """
        started = time.monotonic()
        if self.epochs_done == self.config.segment.epochs:
            return True
        write_text(to_toml(self.config), self.run / "config.toml")
        cases = (*self.data.train, *self.data.validation)
        self.report(f"reading {len(cases)} patients")
        patients = load_patients(self.data, cases, self.cache, self.config.window_hu)
        train, validation = patients[: len(self.data.train)], patients[len(self.data.train) :]
        segment = self.config.segment
        while self.epochs_done < segment.epochs:
            self._epoch(train, validation)
            late = max_minutes is not None and (time.monotonic() - started) / 60 >= max_minutes
            if late and self.epochs_done < segment.epochs:
                self.report(f"stopped after {self.epochs_done} of {segment.epochs} epochs; --resume goes on")
                return False
        return True

    def _epoch(self, train: Sequence[Patient], validation: Sequence[Patient]) -> None:
        started = time.monotonic()
        number = self.epochs_done
        calm = number >= self.config.segment.epochs - self.config.segment.calm_epochs
        augment = self.config.augment.halved() if calm else self.config.augment
        augmenter = Augmenter(augment, self.config.grid, self.data.channels, self.config.window_hu)
        torch.manual_seed(self.config.seed * 100_003 + number)  # stochastic depth; a resumed run draws the same
        generator = torch.Generator(self.device).manual_seed(self.config.seed * 100_003 + number)
        self.net.train()
        losses = []
        sampler = SliceSampler(
            train,
            ToGrid(),
            self.config,
            self.data.mirrored_labels,
            augment,
            self.data.partly_contoured,
        )
        numbers = range(self.step, self.step + steps_an_epoch(self.config.segment))
        for batch in sampler.batches(numbers, self.workers):
            losses.append(self._train_step(batch, augmenter, generator))
        self.epochs_done += 1
        record = {
            "epoch": self.epochs_done,
            "loss": float(np.mean(losses)),
            "learning_rate": self.optimizer.param_groups[0]["lr"],
            "train_seconds": round(time.monotonic() - started, 1),
        }
        if self.epochs_done % self.config.segment.validate_every == 0 or self.epochs_done == self.config.segment.epochs:
            record |= self._validate(validation)
        if not math.isfinite(record["loss"]):
            raise InputError(
                f"training diverged in epoch {self.epochs_done}: the loss is not finite; lower the learning rate"
            )
        with (self.run / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(record) + "\n")
        self._save("last.pt", progress=True)
        draw_curves(self.run / "metrics.jsonl", self.run / "curves.png")
        self.report("  ".join(f"{name} {value:.4g}" for name, value in record.items()))

    def _train_step(self, batch: Batch, augmenter: Augmenter, generator: torch.Generator) -> float:
        segment = self.config.segment
        with torch.no_grad():
            images, targets = augmenter(batch.images.to(self.device), batch.targets.to(self.device), generator)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.step, segment)
        with torch.autocast(self.device.type, torch.bfloat16):
            logits = self.net.unet(images.contiguous(memory_format=torch.channels_last))
        contoured = batch.contoured.to(self.device)
        loss = segmentation_loss(logits.float(), targets, contoured, segment.cross_entropy_share)
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.net.parameters(), segment.gradient_norm)
        self.optimizer.step()
        self.step += 1
        self._update_average()
        return loss.item()

    @torch.no_grad()
    def _update_average(self) -> None:
        decay = min(self.config.segment.average_decay, (1 + self.step) / (10 + self.step))
        current = self.net.state_dict()
        for name, averaged in self.average.state_dict().items():
            if averaged.is_floating_point():
                averaged.lerp_(current[name], 1 - decay)
            else:
                averaged.copy_(current[name])

    def _validate(self, patients: Sequence[Patient]) -> dict[str, float]:
        started = time.monotonic()
        masks, scores = {}, np.full((len(patients), len(self.data.labels) - 1), np.nan)
        for patient, row in zip(patients, scores, strict=True):
            mask = segment_volume(self.average, patient.volume, patient.windows, self.config.grid, self.device)
            masks[patient.name] = keep_largest_components(mask, self.data.labels)
            for value, slices in enumerate(patient.shown_in[1:], start=1):
                if slices or not self.data.partly_contoured:
                    row[value - 1] = dice(masks[patient.name] == value, patient.labels == value)
        record = {"validation_dsc": float(np.nanmean(scores))}
        for name, column in zip(self.data.labels[1:], scores.T, strict=True):
            record[f"validation_dsc_{name}"] = float(np.nanmean(column))
        record["validation_seconds"] = round(time.monotonic() - started, 1)
        if record["validation_dsc"] > self.best_dsc:
            self.best_dsc = record["validation_dsc"]
            self._save("best.pt", progress=False, **record)
        draw_samples(patients, masks, np.nanmean(scores, axis=1), self.run / "samples.png")
        return record

    def _save(self, name: str, *, progress: bool, **scores: float) -> None:
        state = {
            "net": self.net.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "epochs_done": self.epochs_done,
            "step": self.step,
            "best_dsc": self.best_dsc,
        }
        training = {
            "data": self.data.name,
            "train_patients": len(self.data.train),
            "validation_patients": len(self.data.validation),
            "preset": self.config.preset,
            "epochs": self.epochs_done,
            "images": self.step * self.config.segment.batch_size,
            **scores,
        }
        checkpoint = Checkpoint(
            config=self.config,
            labels=self.data.labels,
            channels=self.data.channels,
            training=training,
            weights=self.average.state_dict(),
            progress=state if progress else {},
        )
        save_checkpoint(checkpoint, self.run / name)


def steps_an_epoch(segment: SegmentConfig) -> int:
    """Batches drawn in one epoch."""
    return max(1, segment.images_per_epoch // segment.batch_size)


def learning_rate(step: int, segment: SegmentConfig) -> float:
    """Linear warm-up, then a cosine to zero."""
    warmup, total = (epochs * steps_an_epoch(segment) for epochs in (segment.warmup_epochs, segment.epochs))
    if step < warmup:
        return segment.learning_rate * (step + 1) / warmup
    return segment.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))


def _parameter_groups(net: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """Weight decay for matrices and kernels only, as is usual for transformers."""
    matrices = [parameter for parameter in net.parameters() if parameter.ndim > 1]
    vectors = [parameter for parameter in net.parameters() if parameter.ndim <= 1]
    return [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]


def _device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise InputError(f"--device {name}: torch {torch.__version__} finds no CUDA device; use --device cpu")
    try:
        return torch.device(name)
    except RuntimeError as error:
        raise InputError(f"--device: found {name!r}, expected auto, cpu, cuda or cuda:N") from error
