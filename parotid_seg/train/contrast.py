"""A stage of momentum contrast on pairs of different views of slices without labels, with a check for collapse."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

import torch
from torch import Tensor

from parotid_seg.errors import InputError
from parotid_seg.train.checkpoint import Checkpoint
from parotid_seg.train.config import PARTS, SCRATCH, ContrastConfig
from parotid_seg.train.data.augment import Augmenter, Draws
from parotid_seg.train.data.sampling import PairBatch, PairSampler
from parotid_seg.train.loop import Trainer
from parotid_seg.train.moco import MomentumContrast, Pair
from parotid_seg.train.network import SwinUnet, follow, parameter_groups
from parotid_seg.train.plots import draw_pairs

COLLAPSED = 0.01
"""Spread of the features below which the network no longer distinguishes slices or positions (collapse)."""
CANDIDATES = 3
"""Candidates per requested position, because some positions of the first view are not in the second."""
FAR_MM = 1e4
"""Distance in mm of positions that must not match: more than any in a scan."""
TISSUE = 0.05
"""Share of the window above which a pixel counts as tissue."""


class ContrastTrainer(Trainer):
    """Momentum contrast of the encoder, of the decoder, or of both, by the stage's `dense_share`."""

    curves = (
        ("loss", "contrastive loss"),
        ("spread", "spread of features (0: collapsed)"),
        ("alignment", "alignment (0 best)"),
        ("uniformity", "uniformity (0: collapsed)"),
        ("matched", "views matched"),
    )
    schedule: ContrastConfig

    def build(self) -> None:
        """See `Trainer`."""
        config, data, processes = self.config, self.data, self.processes
        channels = len(data.channels) * len(config.grid.offsets_mm)
        network = dataclasses.replace(config.network, drop_path=self.schedule.drop_path)
        self.unet = SwinUnet(network, config.grid.size, channels, len(data.labels))
        moco = MomentumContrast(self.unet, self.schedule, processes)
        self.moco = self.model = moco.to(self.device).to(memory_format=torch.channels_last)
        self.optimizer = torch.optim.AdamW(parameter_groups(moco, self.schedule.weight_decay), lr=0.0, fused=True)
        self.wrapped = processes.wrapped(moco)
        self.learnt = {name for name, value in self.unet.named_parameters() if value.requires_grad}
        if self.schedule.dense_share > 0:
            self.learnt |= {name for name, _ in self.unet.named_buffers()}

    def start(self, source: str) -> None:
        """See `Trainer`. Parts that this stage does not train are passed on unchanged from the source."""
        if source == SCRATCH:
            return
        transfer = self.load_initial_weights(source, self.unet, parts=PARTS, labels=self.data.labels, mirror=False)
        self.moco.slow.unet.load_state_dict(self.unet.state_dict())
        self.learnt |= set(transfer.taken)
        self.report_transfer(transfer)

    def restore(self, checkpoint: Checkpoint) -> None:
        """See `Trainer`."""
        super().restore(checkpoint)
        self.learnt = {name.removeprefix("unet.") for name in checkpoint.weights}

    def weights(self) -> dict[str, Tensor]:
        """The weights of the trained network, except those that are still random."""
        return {f"unet.{name}": value for name, value in self.unet.state_dict().items() if name in self.learnt}

    def batches(self, numbers: range) -> Iterable[PairBatch]:
        """See `Trainer`."""
        views = self.schedule.first, self.schedule.second
        self.augmenters = [
            Augmenter(view, self.config.grid, self.data.channels, self.config.window_hu) for view in views
        ]
        return PairSampler(self.train, self.config, self.places, *views).batches(numbers, self.workers)

    def loss(self, batch: PairBatch, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        """See `Trainer`."""
        self.pair = self._pair(batch, generator)
        loss, figures = self.wrapped(self.pair)
        return loss, figures

    def after_step(self) -> None:
        """Update the momentum encoder."""
        keep = self.schedule.momentum_at(self.step)
        follow(self.moco.slow.unet, self.unet, keep)
        follow(self.moco.slow.project, self.moco.trained.project, keep)

    def after_epoch(self, record: dict[str, float]) -> dict[str, float]:
        """Check for collapse; save the weights."""
        for name in ("spread", "places_spread"):
            if record.get(name, 1.0) < COLLAPSED:
                raise InputError(
                    f"contrast collapsed in epoch {self.epochs_done}: {name} of features {record[name]:.3f}, "
                    f"expected at least {COLLAPSED}; try a lower learning rate or temperature, or a larger batch"
                )
        self.save("best.pt", {})
        if self.processes.first:
            draw_pairs(self.pair, self.run / "samples.png")
        return {"momentum": self.schedule.momentum_at(self.step)}

    def what_best_is(self) -> str:
        """See `Trainer`."""
        return f"of epoch {self.epochs_done}" if self.epochs_done else ""

    @torch.no_grad()
    def _pair(self, batch: PairBatch, generator: torch.Generator) -> Pair:
        """Augment both views, and find positions that both show."""
        draws = self.processes.draws(generator)
        views = []
        for drawn, drawn_mm, augmenter in zip(batch[:2], batch[2:], self.augmenters, strict=True):
            images, positions_mm = drawn.to(self.device), drawn_mm.to(self.device)
            shown = torch.ones_like(positions_mm[:, :1])
            images, moved = augmenter(images, torch.cat([shown, positions_mm, shown], dim=1), draws)
            views.append((images.contiguous(memory_format=torch.channels_last), moved[:, 1:3], moved[:, 3] > 0.999))
        (first, first_mm, first_shown), (second, second_mm, second_shown) = views
        if self.schedule.dense_share == 0:
            none = first.new_zeros(len(first), 0, 2, dtype=torch.long)
            return Pair(first, second, none, none, first_mm)
        tissue = first[:, first.shape[1] // 2] > TISSUE
        candidates = first_shown & tissue
        return Pair(first, second, *match(first_mm, candidates, second_mm, second_shown, self.schedule.points, draws))


def match(
    first_mm: Tensor, first_wanted: Tensor, second_mm: Tensor, second_shown: Tensor, points: int, draws: Draws
) -> tuple[Tensor, Tensor, Tensor]:
    """Positions in two views that show the same points of the patient, to the nearest pixel.

    Args:
        first_mm, second_mm: (N, 2, G, G), position of each pixel in the patient.
        first_wanted: (N, G, G) bool, pixels of the first view from which positions are drawn.
        second_shown: (N, G, G) bool, pixels of the second view that show anything.
        points: positions per image, P. If there are fewer matches, the next best ones are added.

    Returns:
        (N, P, 2) rows and columns in the first view, the same in the second, and the positions in mm.
    """
    size = first_mm.shape[-1]
    candidates = min(CANDIDATES * points, size * size)
    chance = draws.uniform(len(first_mm), size * size) * first_wanted.flatten(1)
    at_first = chance.topk(candidates, dim=1).indices
    first_all, second_all = first_mm.flatten(2).transpose(1, 2), second_mm.flatten(2).transpose(1, 2)
    wanted_mm = torch.gather(first_all, 1, at_first[..., None].expand(-1, -1, 2))
    elsewhere = torch.where(second_shown.flatten(1)[..., None], second_all, torch.full_like(second_all, FAR_MM))
    distance, at_second = torch.cdist(wanted_mm, elsewhere).min(dim=2)
    usable = torch.gather(first_wanted.flatten(1), 1, at_first)
    best = torch.where(usable, distance, distance + FAR_MM).argsort(dim=1)[:, :points]
    at_first, at_second = torch.gather(at_first, 1, best), torch.gather(at_second, 1, best)
    places = [torch.stack([at // size, at % size], dim=-1) for at in (at_first, at_second)]
    return places[0], places[1], torch.gather(wanted_mm, 1, best[..., None].expand(-1, -1, 2))
