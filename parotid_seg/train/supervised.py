"""A supervised stage: Swin-Unet on labelled slices with cross-entropy and Dice, validated on whole patients."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from parotid_seg.contract import Grid
from parotid_seg.metrics import dice
from parotid_seg.scan.chunks import segmented
from parotid_seg.scan.components import clean_labels
from parotid_seg.scan.intensity import Windows
from parotid_seg.scan.labels import mirrored_labels
from parotid_seg.scan.volume import Mask, Volume
from parotid_seg.train.checkpoint import Checkpoint, build_network
from parotid_seg.train.config import INITIAL, SCRATCH, SO_FAR, SegmentConfig
from parotid_seg.train.data.augment import Augmenter
from parotid_seg.train.data.patients import Patient
from parotid_seg.train.data.sampling import Batch, SliceSampler
from parotid_seg.train.loop import Trainer
from parotid_seg.train.network import (
    ParotidNet,
    SwinUnet,
    follow,
    init_rare_class_bias,
    mixed_precision,
    parameter_groups,
)
from parotid_seg.train.parallel import common_batch_norm
from parotid_seg.train.plots import draw_samples
from parotid_seg.wording import Progress

Add = Callable[[Tensor], Tensor]
FEWEST_TO_CHOOSE = 6
"""Fewest validation patients to choose among initial weights and their epochs by."""


def segmentation_loss(
    logits: Tensor, targets: Tensor, contoured: Tensor, cross_entropy_share: float, add: Add = lambda own: own
) -> Tensor:
    """Weighted sum of cross-entropy and Dice loss (0.4 and 0.6 in arXiv 2208.12413's follow-up).

    A structure that was not contoured may be anywhere in the background, so its probability counts as background (the
    marginal loss of Shi et al., Medical Image Analysis 2021, arXiv 2007.03868), and it has no Dice term. Ignored pixels
    are excluded from both terms, partly ignored ones in proportion.

    Args:
        logits, targets: (N, C, G, G), background first; targets are shares that sum to 1 over C. With one channel more
            (N, C + 1, G, G) its last one is the share that is ignored.
        contoured: (N, C) bool, True for the background.
        add: see `dice_loss`.
    """
    classes = logits.shape[1]
    weight: Tensor | float = 1.0
    if targets.shape[1] > classes:  # the mean over the pixels of all processes that are not ignored
        labelled = 1.0 - targets[:, classes]
        weight = add(torch.ones_like(labelled).sum()) / add(labelled.sum()).clamp(min=1.0)
    shares = logits.log_softmax(dim=1)
    away = shares.masked_fill(contoured[:, :, None, None], -math.inf)
    background = torch.cat([shares[:, :1], away[:, 1:]], dim=1).logsumexp(dim=1, keepdim=True)
    structures = targets[:, 1:classes] * shares[:, 1:]
    cross_entropy = -(targets[:, :1] * background).sum(dim=1) - structures.sum(dim=1)
    dice = dice_loss(shares.exp(), targets, contoured, add)
    return cross_entropy_share * cross_entropy.mean() * weight + (1.0 - cross_entropy_share) * dice


def dice_loss(shares: Tensor, targets: Tensor, contoured: Tensor, add: Add = lambda own: own) -> Tensor:
    """1 - soft Dice of each structure over the batch's pixels where it is contoured, averaged over the structures.

    Args:
        shares, targets: (N, C, G, G), each summing to 1 over C; the background (first) is excluded. Targets may have
            one more channel, see `segmentation_loss`.
        contoured: (N, C) bool.
        add: sum over all processes that share a batch.
    """
    classes = shares.shape[1]
    used = contoured[:, 1:, None, None]
    if targets.shape[1] > classes:
        shares = shares * (1.0 - targets[:, classes:])
    overlap = add((shares[:, 1:] * targets[:, 1:classes] * used).sum(dim=(0, 2, 3)))
    total = add(((shares[:, 1:] + targets[:, 1:classes]) * used).sum(dim=(0, 2, 3)))
    return 1.0 - ((2.0 * overlap + 1.0) / (total + 1.0)).mean()


@torch.no_grad()
def segment_volume(
    net: ParotidNet, volume: Volume, windows: Windows, grid: Grid, device: torch.device, batch_size: int = 32
) -> Mask:
    """Labels (D, H, W) of a scan by the torch model in mixed precision, without clean-up."""

    def run(arrays: Mapping[str, NDArray[np.float16] | NDArray[np.float32]]) -> Mask:
        inputs = {name: torch.from_numpy(array).to(device) for name, array in arrays.items()}
        images = net.to_grid(*(inputs[name] for name in ("slices", "window", "rows", "columns", "neighbours")))
        with mixed_precision(device):
            logits = net.unet(images.contiguous(memory_format=torch.channels_last))
        native = net.from_grid(logits, *(inputs[name] for name in ("slices_back", "rows_back", "columns_back")))
        labels: Mask = native.argmax(dim=1).to(torch.uint8).cpu().numpy()
        return labels

    return segmented(volume, windows, grid, batch_size, run)


class Supervised(nn.Module):
    """The network with a linear classifier on every encoder stage, for training only.

    Args:
        unet: shared with the caller.
        encoder: whether the encoder's stages have classifiers.
    """

    def __init__(self, unet: SwinUnet, encoder: bool) -> None:
        super().__init__()
        self.unet = unet
        widths = unet.widths if encoder else []
        self.classify = nn.ModuleList(
            init_rare_class_bias(nn.Linear(width, unet.classify.out_channels)) for width in widths
        )

    def forward(self, images: Tensor) -> list[Tensor]:
        """(N, K, G, G) in 0..1 -> logits (N, C, G, G), and (N, C, h, w) of each encoder stage with a classifier."""
        stages = self.unet.encode(images)
        deep = [classify(stage).permute(0, 3, 1, 2) for classify, stage in zip(self.classify, stages, strict=False)]
        return [self.unet.classify(self.unet.decode(images, stages)), *deep]


class SegmentTrainer(Trainer):
    """A supervised stage on the labels of its data set."""

    curves = (("loss", "training loss (CE + Dice)"), ("validation_dsc", "validation DSC"))
    schedule: SegmentConfig

    def build(self) -> None:
        """See `Trainer`."""
        config, data, processes = self.config, self.data, self.processes
        net = (
            build_network(config, len(data.channels), len(data.labels))
            .to(self.device)
            .to(memory_format=torch.channels_last)
        )
        self.net = common_batch_norm(net) if processes.count > 1 else net
        self.average = copy.deepcopy(self.net).eval().requires_grad_(False)
        self.model = Supervised(self.net.unet, self.schedule.encoder_share > 0).to(self.device)
        groups = parameter_groups(self.model, self.schedule.weight_decay)
        self.optimizer = torch.optim.AdamW(groups, lr=0.0, fused=True)
        self.wrapped = processes.wrapped(self.model)
        self.best_dsc, self.best_epoch = -1.0, 0
        self.start_dsc, self.last_dsc = -1.0, -1.0
        """Of the initial model and of the last validation; below 0 before there is one."""
        self.initial_kept = False
        """Whether the initial model was written to `best.pt`."""
        self.whole_source = ""
        """The source of --init, if it had all weights, and no stage before has changed them."""
        self.initial: dict[str, Tensor] | None = None
        """Weights of the initial model, if the schedule's `initial_share` of them is kept."""

    def begin(self) -> dict[str, float]:
        """See `Trainer`. A whole model as the start is the first `best.pt`, which a better epoch replaces."""
        if self.whole_source:
            self.save("best.pt", {})  # if the time is over before it is validated
            self.initial_kept = True
            self.report(f"best.pt is {INITIAL}, until an epoch replaces it")
            figures = self._validate(self.preparing)
            self.start_dsc = figures["validation_dsc"]
            return figures
        self.report("timing the validation on one patient")
        started = time.monotonic()
        self._judge(self.average, self.validation[0])
        self.validation_s = (time.monotonic() - started) * math.ceil(len(self.validation) / self.processes.count)
        self.end_early_s = self.validation_s
        return {}

    def start(self, source: str) -> None:
        """See `Trainer`."""
        if source == SCRATCH:
            return
        transfer = self.load_initial_weights(source, self.net.unet, parts=self.config.transfer, labels=self.data.labels)
        self.average.load_state_dict(self.net.state_dict())
        whole = not transfer.random and self.has_same_input(transfer) and source == self.config.init
        self.whole_source = source if whole else ""
        self.report_transfer(transfer)
        if not self.schedule.initial_share:
            return
        if transfer.random:
            self.report(
                f"initial_share {self.schedule.initial_share:g} is not used: {len(transfer.random)} initial weights "
                "are random"
            )
        else:
            self.initial = copy.deepcopy(self.average.state_dict())

    def restore(self, checkpoint: Checkpoint) -> None:
        """See `Trainer`."""
        super().restore(checkpoint)
        self.initial = checkpoint.progress.get("initial")
        self.average.load_state_dict(checkpoint.progress.get("average", checkpoint.weights))
        self.best_dsc = float(checkpoint.progress["best_dsc"])
        self.best_epoch = int(checkpoint.progress.get("best_epoch", self.epochs_done))
        self.start_dsc, self.last_dsc = (
            float(checkpoint.progress.get(name, -1.0)) for name in ("start_dsc", "last_dsc")
        )

    def progress(self) -> dict[str, Any]:
        """See `Trainer`."""
        scores = {"best_dsc": self.best_dsc, "start_dsc": self.start_dsc, "last_dsc": self.last_dsc}
        apart = {"initial": self.initial, "average": self.average.state_dict()} if self.initial else {}
        return {**super().progress(), **scores, "best_epoch": self.best_epoch, **apart}

    def weights(self) -> dict[str, Tensor]:
        """The moving average, or the mean of it and the initial weights."""
        average = self.average.state_dict()
        if not self.initial:
            return average
        share = self.schedule.initial_share
        return {
            name: value.lerp(self.initial[name].to(value), share) if value.is_floating_point() else value
            for name, value in average.items()
        }

    def batches(self, numbers: range) -> Iterable[Batch]:
        """See `Trainer`."""
        calm = self.epochs_done >= self.schedule.epochs - self.schedule.calm_epochs
        amount = self.config.augment.halved() if calm else self.config.augment
        names, partly = mirrored_labels(self.data.labels), self.data.partly_contoured
        sampler = SliceSampler(self.train, self.config, self.places, self.schedule, names, amount, partly)
        self.augmenter = Augmenter(amount, self.config.grid, self.data.channels, self.config.window_hu)
        return sampler.batches(numbers, self.workers)

    def loss(self, batch: Batch, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        """See `Trainer`."""
        images, targets, contoured = (each.to(self.device) for each in batch)
        images, targets = self.augmenter(images, targets, self.processes.draws(generator))
        with mixed_precision(self.device):
            logits, *deep = self.wrapped(images.contiguous(memory_format=torch.channels_last))
        loss = self._loss_at(logits, targets, contoured)
        if not deep:
            return loss, {}
        of_encoder = torch.stack([self._loss_at(stage, targets, contoured) for stage in deep]).mean()
        share = self.schedule.encoder_share
        return (1 - share) * loss + share * of_encoder, {"loss_encoder": of_encoder.item()}

    def _loss_at(self, logits: Tensor, targets: Tensor, contoured: Tensor) -> Tensor:
        """The loss at the resolution of the logits."""
        shares = F.adaptive_avg_pool2d(targets, logits.shape[-1])
        ce_share = self.schedule.cross_entropy_share
        return segmentation_loss(logits.float(), shares, contoured, ce_share, self.processes.sum)

    @torch.no_grad()
    def after_step(self) -> None:
        """Update the moving average of the weights."""
        decay = min(self.schedule.average_decay, (1 + self.step) / (10 + self.step))
        follow(self.average, self.net, decay)

    def after_epoch(self, record: dict[str, float]) -> dict[str, float]:
        """Validate every few epochs, and save the best weights."""
        if self.epochs_done % self.schedule.validate_every and self.epochs_done != self.schedule.epochs:
            return {}
        return self._validate(self.pace.step)

    def remarks(self) -> list[str]:
        """See `Trainer`."""
        lines = []
        if self.best_epoch == 0:
            lines.append(f"no epoch was better on the validation patients than the start: best.pt is {INITIAL}")
        elif self._too_few_to_choose():
            count = len(self.validation)
            lines.append(f"best.pt is the last epoch: {count} validation patients are too few to choose one by")
        if self.last_dsc < self.start_dsc:
            lines.append(
                f"the last validation_dsc, {self.last_dsc:.4f}, is below that of the start, {self.start_dsc:.4f}"
            )
        return lines

    def next_command(self) -> str:
        """See `Trainer`."""
        best = self.run / "best.pt"
        return (
            f"{best} is {self.what_best_is()}; next: parotid-seg export {best} --out MODEL.onnx"
            if self.best_epoch
            else ""
        )

    def _too_few_to_choose(self) -> bool:
        """Whether the last epoch is the best, because chance would choose another one or the initial weights."""
        return self.config.init != SCRATCH and len(self.validation) < FEWEST_TO_CHOOSE

    def _validate(self, step: Progress) -> dict[str, float]:
        """Validate the `weights`; they become `best.pt` if none was better.

        Args:
            step: called before each patient.
        """
        started = time.monotonic()
        count = self.processes.count
        own_patients = self.validation[self.processes.rank :: count]
        what = "validating" if self.step else "validating the initial model"
        net, own = copy.deepcopy(self.average), []
        net.load_state_dict(self.weights())
        for number, patient in enumerate(own_patients):
            step(what, number, len(own_patients))
            own.append(self._judge(net, patient))
        judged = self.processes.collected(own)
        patients = [patient for rank in range(count) for patient in self.validation[rank::count]]
        scores = np.array([row for _, row in judged])
        figures = {"validation_dsc": float(np.nanmean(scores))}
        for name, column in zip(self.data.labels[1:], scores.T, strict=True):
            if not np.isnan(column).all():  # contoured in some validation patient
                figures[f"validation_dsc_{name}"] = float(np.nanmean(column))
        if figures["validation_dsc"] > self.best_dsc or self._too_few_to_choose():
            self.best_dsc, self.best_epoch = figures["validation_dsc"], self.epochs_done
            self.save("best.pt", {}, **figures)
        if self.processes.first:
            predicted = [mask for mask, _ in judged]
            draw_samples(patients, predicted, scores, self.data.labels, self.run / "samples.png")
        self.last_dsc = figures["validation_dsc"]
        self.validation_s, self.end_early_s = time.monotonic() - started, 0.0
        return {**figures, "validation_seconds": round(self.validation_s, 1)}

    def end_early(self) -> str:
        """Validate if that was never done, so that there is a `best.pt`; return what it is."""
        if self.best_dsc < 0:
            self._validate(self.pace.step)
            return SO_FAR
        return self.what_best_is()

    def what_best_is(self) -> str:
        """See `Trainer`."""
        initial = INITIAL if self.initial_kept or self.best_dsc >= 0 else ""
        return f"of epoch {self.best_epoch}" if self.best_epoch else initial

    def _judge(self, net: ParotidNet, patient: Patient) -> tuple[Mask, list[float]]:
        """The cleaned mask of a validation patient, and its DSC for each structure; NaN if the reference lacks the
        structure. Ignored voxels do not count."""
        mask = segment_volume(net, patient.volume, patient.windows, self.config.grid, self.device)
        mask = clean_labels(mask, self.data.labels)
        counted = mask if patient.ignored is None else np.where(patient.ignored, 0, mask)
        return mask, [
            dice(counted == value, patient.labels == value) if slices else math.nan
            for value, slices in enumerate(patient.shown_in[1:], start=1)
        ]
