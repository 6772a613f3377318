"""Momentum contrast of a Swin-Unet: its encoder on whole slices, its decoder on matched positions of two views.

MoCo: He et al., CVPR 2020 (arXiv 1911.05722). Without a queue, with predictor and symmetric loss: MoCo v3, Chen et al.,
ICCV 2021 (arXiv 2104.02057). On a Swin Transformer initialised with a supervised model, for parotid glands:
arXiv 2208.12413. Alignment and uniformity: Wang and Isola, ICML 2020 (arXiv 2005.10242).
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from parotid_seg.train.config import ContrastConfig
from parotid_seg.train.network import SwinUnet, mixed_precision
from parotid_seg.train.parallel import Processes, common_batch_norm

SLICES, PLACES = "slices", "places"
"""Units of contrast: whole slices (encoder), positions in them (decoder)."""
MOST_COMPARED = 512
"""Most keys of a batch that are compared with each other for the figures."""


class Pair(NamedTuple):
    """Two views of a batch of slices.

    Attributes:
        first, second: (N, K, G, G) in 0..1.
        first_places, second_places: (N, P, 2) long, row and column; the p-th of both show the same point.
        places_mm: (N, P, 2), positions of these points.
    """

    first: Tensor
    second: Tensor
    first_places: Tensor
    second_places: Tensor
    places_mm: Tensor


class BranchOutputs(NamedTuple):
    """A branch's output for a view, by `SLICES` (N, D) and `PLACES` (N, P, D): features, and vectors to compare."""

    features: dict[str, Tensor]
    vectors: dict[str, Tensor]


class MomentumEncoder(nn.Module):
    """The network with a projector for each unit of contrast, and in the trained branch a predictor.

    Afterwards only weights that a gradient reaches require one.

    Args:
        unet: the network; shared with the caller.
        config: the units of contrast, and widths.
    """

    def __init__(self, unet: SwinUnet, config: ContrastConfig) -> None:
        super().__init__()
        self.unet = unet
        unet.requires_grad_(False)
        for used in [unet] if config.dense_share > 0 else [unet.encoder, unet.skip_norms[-1]]:
            used.requires_grad_(True)
        unet.classify.requires_grad_(False)
        self.project, self.predict = nn.ModuleDict(), nn.ModuleDict()
        if config.dense_share < 1:
            self.project[SLICES] = mlp([unet.encoder.num_features, config.hidden, config.hidden, config.features])
        if config.dense_share > 0:
            self.project[PLACES] = mlp([unet.classify.in_channels, config.hidden, config.features])
        for name in self.project:
            self.predict[name] = mlp([config.features, config.hidden, config.features])

    def forward(self, images: Tensor, places: Tensor) -> BranchOutputs:
        """Outputs for one view of `Pair`."""
        features = {}
        stages = self.unet.encode(images)
        if SLICES in self.project:
            features[SLICES] = stages[-1].float().mean(dim=(1, 2))
        if PLACES in self.project:
            decoded = self.unet.decode(images, stages).float()
            image = torch.arange(len(images), device=images.device)[:, None]
            features[PLACES] = decoded[image, :, places[..., 0], places[..., 1]]
        vectors = {}
        for name, values in features.items():
            rows = self.project[name](values.flatten(0, -2))
            if name in self.predict:
                rows = self.predict[name](rows)
            vectors[name] = F.normalize(rows.float(), dim=-1).view(*values.shape[:-1], -1)
        return BranchOutputs(features, vectors)


class MomentumContrast(nn.Module):
    """A trained branch, its momentum encoder, and the loss between predictions of the one and keys of the other.

    Args:
        unet: the network to train.
        config: the stage's settings.
        processes: the training processes, whose slices are negatives of each other.
    """

    def __init__(self, unet: SwinUnet, config: ContrastConfig, processes: Processes) -> None:
        super().__init__()
        self.config, self.processes = config, processes
        branch = MomentumEncoder(unet, config)
        self.trained = common_batch_norm(branch) if processes.count > 1 else branch
        self.slow = copy.deepcopy(self.trained).requires_grad_(False)
        self.slow.predict = nn.ModuleDict()
        self.queue: Tensor
        self.register_buffer("queue", F.normalize(torch.randn(config.queue, config.features), dim=1))

    def forward(self, pair: Pair) -> tuple[Tensor, dict[str, float]]:
        """The symmetric loss of a batch, and figures to monitor learning (see `figures`)."""
        config = self.config
        images = torch.cat([pair.first, pair.second])
        places = torch.cat([pair.first_places, pair.second_places])
        with mixed_precision(images.device):
            queries = self.trained(images, places)
            with torch.no_grad():
                keys = self.slow(images, places).vectors
        everyone = {name: self._everyone(rows) for name, rows in keys.items()}
        first = self.processes.rank * len(pair.first)
        measured = {}
        loss = images.new_zeros(())
        if SLICES in keys:
            halves = _halves(queries.vectors[SLICES], everyone[SLICES])
            contrast = sum(slice_loss(query, key, self.queue, config.temperature, first) for query, key in halves)
            loss = loss + (1 - config.dense_share) * contrast
            measured = self._figures(SLICES, queries, everyone)
            if config.queue:
                self.queue = torch.cat([everyone[SLICES], self.queue])[: config.queue]
        if PLACES in keys:
            halves = _halves(queries.vectors[PLACES], everyone[PLACES])
            apart = config.apart_mm, config.dense_negatives == "batch"
            contrast = sum(
                place_loss(query, key, pair.places_mm, *apart, config.temperature, first) for query, key in halves
            )
            loss = loss + config.dense_share * contrast
            measured |= {f"places_{name}": value for name, value in self._figures(PLACES, queries, everyone).items()}
        return loss, measured

    def _everyone(self, rows: Tensor) -> Tensor:
        """Rows of both views of all processes, without gradient, in the same order as with one process."""
        return torch.cat([self.processes.joined(view) for view in rows.chunk(2)])

    def _figures(self, name: str, queries: BranchOutputs, keys: dict[str, Tensor]) -> dict[str, float]:
        features, vectors = (self._everyone(values[name]).flatten(0, -2) for values in queries)
        return figures(features, vectors, keys[name].flatten(0, -2))


def _halves(queries: Tensor, keys: Tensor) -> Iterable[tuple[Tensor, Tensor]]:
    """The queries of each view with the keys of the other."""
    return zip(queries.chunk(2), reversed(keys.chunk(2)), strict=True)


def slice_loss(queries: Tensor, keys: Tensor, queue: Tensor, temperature: float, first: int = 0) -> Tensor:
    """InfoNCE x 2 temperatures: each query must find its key among those of all slices and of the queue.

    Args:
        queries: (N, D) of unit length, of this process.
        keys: (M, D), of all processes.
        queue: (Q, D), additional keys that belong to no query.
        first: index of the first query's key; the others follow.
    """
    targets = torch.arange(len(queries), device=queries.device) + first
    return 2 * temperature * F.cross_entropy(queries @ torch.cat([keys, queue]).T / temperature, targets)


def place_loss(
    queries: Tensor,
    keys: Tensor,
    places_mm: Tensor,
    apart_mm: float,
    across_images: bool,
    temperature: float,
    first: int = 0,
) -> Tensor:
    """InfoNCE x 2 temperatures between positions: each must find itself in the other view.

    Args:
        queries: (N, P, D) of unit length, of this process.
        keys: (M, P, D), of all processes.
        places_mm: (N, P, 2); positions of one image closer than `apart_mm` are not negatives of each other.
        across_images: whether positions of other images are negatives, too.
        first: index of the queries' first image in the keys; the others follow.
    """
    count, points = queries.shape[:2]
    distance = torch.cdist(places_mm, places_mm)
    itself = torch.eye(points, dtype=torch.bool, device=queries.device)
    near = (distance < apart_mm) & ~itself
    if across_images:
        logits = queries.flatten(0, 1) @ keys.flatten(0, 1).T / temperature
        before, after = first * points, (len(keys) - first - count) * points
        near = F.pad(torch.block_diag(*near), (before, after))  # type: ignore[no-untyped-call]
        targets = torch.arange(count * points, device=queries.device) + before
    else:
        keys = keys[first : first + count]
        logits = (queries @ keys.transpose(1, 2) / temperature).flatten(0, 1)
        near = near.flatten(0, 1)
        targets = torch.arange(points, device=queries.device).repeat(count)
    return 2 * temperature * F.cross_entropy(logits.masked_fill(near, -math.inf), targets)


@torch.no_grad()
def figures(features: Tensor, queries: Tensor, keys: Tensor) -> dict[str, float]:
    """Figures that show learning and collapse, for two views that follow each other in the rows.

    Args:
        features: (2N, E) before projection.
        queries, keys: (2N, D) of unit length.

    Returns:
        spread: root mean square distance of the unit-length features from their mean; 0 if all are equal (collapse), 1
            if they point in all directions.
        alignment: mean squared distance between a query and its key; 0 best.
        uniformity: log of the mean of exp(-2 x squared distance) between keys; 0 if all are equal, lower is better.
        matched: share of queries whose own key is the nearest in the batch.
    """
    pointing = F.normalize(features, dim=1)
    spread = (pointing - pointing.mean(dim=0)).square().sum(dim=1).mean().sqrt()
    first, second = keys.chunk(2)
    partners = torch.cat([second, first])
    alignment = (queries - partners).square().sum(dim=1).mean()
    most = second[:MOST_COMPARED]
    uniformity = torch.pdist(most).square().mul(-2).exp().mean().log()
    nearest = (queries[: len(most)] @ most.T).argmax(dim=1)
    matched = (nearest == torch.arange(len(most), device=nearest.device)).float().mean()
    return {
        "spread": spread.item(),
        "alignment": alignment.item(),
        "uniformity": uniformity.item(),
        "matched": matched.item(),
    }


def mlp(widths: Sequence[int]) -> nn.Sequential:
    """Linear layers with batch norm and ReLU between them; the last batch norm has no weights (MoCo v3)."""
    layers: list[nn.Module] = []
    for number, (before, after) in enumerate(itertools.pairwise(widths), start=2):
        last = number == len(widths)
        layers += [nn.Linear(before, after, bias=False), nn.BatchNorm1d(after, affine=not last)]
        layers += [] if last else [nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)
