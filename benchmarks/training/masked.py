"""Masked autoencoding of the encoder: the pre-training that `replicates.py` compares with momentum contrast.

Swin MAE: Xu et al., arXiv 2212.13805, by authors of arXiv 2208.12413. The encoder sees an image of which three quarters
are hidden in whole windows; a decoder without skips draws what is hidden.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from timm.models.swin_transformer import SwinTransformerBlock
from torch import Tensor, nn

from parotid_seg.train.config import PARTS, SCRATCH, ContrastConfig, NetworkConfig
from parotid_seg.train.contrast import ContrastTrainer
from parotid_seg.train.data.augment import Augmenter
from parotid_seg.train.data.sampling import Sampler
from parotid_seg.train.network import PatchExpand, SwinUnet, centred, mixed_precision, parameter_groups

HIDDEN_SHARE = 0.75
"""Of the windows of an image."""
PATCH, WINDOW = 4, 16
"""Sides of a patch and of a hidden window in pixels."""


class Images(NamedTuple):
    """Slices of several patients: (N, K, G, G) in 0..1."""

    images: Tensor


class ImageSampler(Sampler[Images]):
    """Slices that show tissue, with or without labels, as the first view of `PairSampler`."""

    def _draw(self, rng: np.random.Generator) -> Images:
        patient, amount = self._patient(rng), self.config.contrast.first
        index = int(rng.choice(patient.body_slices))
        mirrored = bool(rng.random() < amount.mirror_probability)
        return Images(self._view(patient, index, amount, mirrored, rng).image)


class MaskedAutoencoder(nn.Module):
    """An encoder, and a decoder that draws the hidden part of its images.

    Args:
        unet: whose encoder is trained; shared with the caller.
        config: its sizes.
        size: G, side of the images in pixels.
        channels: K, channels of the images.
    """

    def __init__(self, unet: SwinUnet, config: NetworkConfig, size: int, channels: int) -> None:
        super().__init__()
        self.unet = unet.requires_grad_(False)
        for trained in (unet.encoder, unet.skip_norms[-1]):
            trained.requires_grad_(True)
        self.hidden = nn.Parameter(0.02 * torch.randn(config.embed_dim))
        """Stands for the tokens of hidden patches."""
        stages: list[nn.Module] = []
        for stage in reversed(range(len(config.depths) - 1)):
            width, side = config.embed_dim * 2**stage, size // PATCH // 2**stage
            stages.append(PatchExpand(2 * width, width))
            stages += [
                SwinTransformerBlock(
                    width,
                    (side, side),
                    num_heads=config.heads[stage],
                    window_size=config.window,
                    shift_size=block % 2 * (config.window // 2),
                )
                for block in range(config.depths[stage])
            ]
        self.decode = nn.Sequential(*stages)
        self.draw = nn.Linear(config.embed_dim, channels * PATCH**2)

    def forward(self, images: Tensor, hidden: Tensor) -> Tensor:
        """Images (N, K, G, G) in 0..1, and where they are hidden (N, 1, G / 4, G / 4) bool -> images (N, K, G, G)."""
        encoder = self.unet.encoder
        tokens = encoder.patch_embed(centred(images))
        tokens = torch.where(hidden.permute(0, 2, 3, 1), self.hidden.to(tokens.dtype), tokens)
        features = self.unet.skip_norms[-1](encoder.layers(tokens))
        drawn = self.draw(self.decode(features)).permute(0, 3, 1, 2)
        return F.pixel_shuffle(drawn, PATCH)


def hidden_patches(chance: Tensor) -> Tensor:
    """`HIDDEN_SHARE` of the windows of each image.

    Args:
        chance: (N, W, W), random numbers, one for each window.

    Returns:
        (N, 1, 4 W, 4 W) bool, one for each patch.
    """
    count = round(HIDDEN_SHARE * chance[0].numel())
    windows = torch.zeros_like(chance, dtype=torch.bool).flatten(1)
    windows.scatter_(1, chance.flatten(1).topk(count, dim=1).indices, True)
    per_window = WINDOW // PATCH
    patches = windows.view_as(chance).repeat_interleave(per_window, 1).repeat_interleave(per_window, 2)
    return patches[:, None]


class MaskedTrainer(ContrastTrainer):
    """Masked autoencoding with the schedule and the first view of the stage "contrast"."""

    curves = (("loss", "mean squared error of hidden pixels"),)  # type: ignore[assignment]
    schedule: ContrastConfig

    def build(self) -> None:
        """See `Trainer`."""
        config, data = self.config, self.data
        channels = len(data.channels) * len(config.grid.offsets_mm)
        network = dataclasses.replace(config.network, drop_path=self.schedule.drop_path)
        self.unet = SwinUnet(network, config.grid.size, channels, len(data.labels))
        self.model = MaskedAutoencoder(self.unet, network, config.grid.size, channels).to(self.device)
        groups = parameter_groups(self.model, self.schedule.weight_decay)
        self.optimizer = torch.optim.AdamW(groups, lr=0.0, fused=True)
        self.wrapped = self.processes.wrapped(self.model)
        self.learnt = {name for name, value in self.unet.named_parameters() if value.requires_grad}

    def start(self, source: str) -> None:
        """See `Trainer`. Parts that this stage does not train are passed on unchanged from the source."""
        if source != SCRATCH:
            transfer = self.load_initial_weights(source, self.unet, parts=PARTS, labels=self.data.labels, mirror=False)
            self.learnt |= set(transfer.taken)
            self.report_transfer(transfer)

    def batches(self, numbers: range) -> Iterable[Images]:  # type: ignore[override]
        """See `Trainer`."""
        first, config = self.schedule.first, self.config
        self.augmenter = Augmenter(first, config.grid, self.data.channels, config.window_hu)
        return ImageSampler(self.train, config, self.places).batches(numbers, self.workers)

    def loss(self, batch: Images, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:  # type: ignore[override]
        """See `Trainer`."""
        draws = self.processes.draws(generator)
        images = batch.images.to(self.device)
        images, _ = self.augmenter(images, torch.ones_like(images[:, :1]), draws)
        windows = images.shape[-1] // WINDOW
        hidden = hidden_patches(draws.uniform(len(images), windows, windows))
        with mixed_precision(self.device):
            drawn = self.wrapped(images.contiguous(memory_format=torch.channels_last), hidden)
        errors = (drawn.float() - centred(images)).square().mean(dim=1, keepdim=True)
        pixels = F.interpolate(hidden.float(), scale_factor=PATCH)
        return (errors * pixels).sum() / pixels.sum(), {}

    def after_step(self) -> None:
        """See `Trainer`."""

    def after_epoch(self, record: dict[str, float]) -> dict[str, float]:
        """Save the weights."""
        self.save("best.pt", {})
        return {}
