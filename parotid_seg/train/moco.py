"""Momentum contrast of a Swin-Unet: its encoder on whole slices, its decoder on matched places of two views.

MoCo: He et al., CVPR 2020 (arXiv 1911.05722). Without a queue, with predictor and symmetric loss: MoCo v3, Chen et al.,
ICCV 2021 (arXiv 2104.02057). On a Swin Transformer that starts from a supervised model, for parotid glands:
arXiv 2208.12413. Alignment and uniformity: Wang and Isola, ICML 2020 (arXiv 2005.10242).
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from parotid_seg.train.config import ContrastConfig
from parotid_seg.train.network import SwinUnet
from parotid_seg.train.parallel import Processes

SLICES, PLACES = "slices", "places"
"""What is contrasted: whole slices (encoder), places in them (decoder)."""


class Pair(NamedTuple):
    """Two views of a batch of slices.

    Attributes:
        first, second: (N, K, G, G) in 0..1.
        first_places, second_places: (N, P, 2) long, row and column; the p-th of both show the same point.
        places_mm: (N, P, 2), where these points are.
    """

    first: Tensor
    second: Tensor
    first_places: Tensor
    second_places: Tensor
    places_mm: Tensor


class Outputs(NamedTuple):
    """What a branch makes of a view, by `SLICES` (N, D) and `PLACES` (N, P, D): features, and vectors to compare."""

    features: dict[str, Tensor]
    vectors: dict[str, Tensor]


class Branch(nn.Module):
    """The network with a projector, and unless it is the slow branch a predictor, for each thing contrasted.

    Only what a gradient reaches requires one afterwards.

    Args:
        unet: the network; shared with the caller.
        config: which things are contrasted, and widths.
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
            self.project[PLACES] = mlp([unet.decoded_features, config.hidden, config.features])
        for name in self.project:
            self.predict[name] = mlp([config.features, config.hidden, config.features])

    def forward(self, images: Tensor, places: Tensor) -> Outputs:
        """One view of `Pair`."""
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
        return Outputs(features, vectors)


class MomentumContrast(nn.Module):
    """A trained branch, its slow copy, and the loss between what the one predicts and the other sees.

    Args:
        unet: the network to train.
        config: the stage's settings.
        processes: whose slices are negatives of each other.
    """

    def __init__(self, unet: SwinUnet, config: ContrastConfig, processes: Processes) -> None:
        super().__init__()
        self.config, self.processes = config, processes
        self.trained = processes.with_common_batch_norm(Branch(unet, config))
        self.slow = copy.deepcopy(self.trained).requires_grad_(False)
        self.slow.predict = nn.ModuleDict()
        self.queue: Tensor
        self.register_buffer("queue", F.normalize(torch.randn(config.queue, config.features), dim=1))

    def forward(self, pair: Pair) -> tuple[Tensor, dict[str, float]]:
        """The symmetric loss of a batch, and figures that tell whether it learns (see `figures`)."""
        config = self.config
        images = torch.cat([pair.first, pair.second])
        places = torch.cat([pair.first_places, pair.second_places])
        with torch.autocast(images.device.type, torch.bfloat16):
            queries = self.trained(images, places)
            with torch.no_grad():
                keys = self.slow(images, places).vectors
        measured = {}
        loss = images.new_zeros(())
        if SLICES in keys:
            halves = zip(queries.vectors[SLICES].chunk(2), reversed(keys[SLICES].chunk(2)), strict=True)
            contrast = sum(
                slice_loss(query, key, self.queue, config.temperature, self.processes) for query, key in halves
            )
            loss = loss + (1 - config.dense_share) * contrast
            measured = figures(queries.features[SLICES], queries.vectors[SLICES], keys[SLICES])
            if config.queue:
                views = (self.processes.joined(view) for view in keys[SLICES].chunk(2))  # the order of one process
                self.queue = torch.cat([*views, self.queue])[: config.queue]
        if PLACES in keys:
            halves = zip(queries.vectors[PLACES].chunk(2), reversed(keys[PLACES].chunk(2)), strict=True)
            apart = config.apart_mm, config.dense_negatives == "batch"
            contrast = sum(place_loss(query, key, pair.places_mm, *apart, config.temperature) for query, key in halves)
            loss = loss + config.dense_share * contrast
            flat = [values[PLACES].flatten(0, 1) for values in (queries.features, queries.vectors, keys)]
            measured |= {f"places_{name}": value for name, value in figures(*flat).items()}
        return loss, measured


def slice_loss(queries: Tensor, keys: Tensor, queue: Tensor, temperature: float, processes: Processes) -> Tensor:
    """InfoNCE x 2 temperatures: each query shall find its key among those of all slices and of the queue.

    Args:
        queries, keys: (N, D) of unit length, this process's.
        queue: (Q, D), further keys that belong to no query.
    """
    others = torch.cat([processes.joined(keys), queue])
    own = torch.arange(len(queries), device=queries.device) + processes.rank * len(queries)
    return 2 * temperature * F.cross_entropy(queries @ others.T / temperature, own)


def place_loss(
    queries: Tensor, keys: Tensor, places_mm: Tensor, apart_mm: float, across_images: bool, temperature: float
) -> Tensor:
    """InfoNCE x 2 temperatures between places: each shall find itself in the other view.

    Args:
        queries, keys: (N, P, D) of unit length.
        places_mm: (N, P, 2); places of one image nearer than `apart_mm` to each other are no negatives.
        across_images: whether places of other images are negatives, too.
    """
    count, points = queries.shape[:2]
    distance = torch.cdist(places_mm, places_mm)
    itself = torch.eye(points, dtype=torch.bool, device=queries.device)
    near = (distance < apart_mm) & ~itself
    if across_images:
        logits = queries.flatten(0, 1) @ keys.flatten(0, 1).T / temperature
        near = torch.block_diag(*near)  # type: ignore[no-untyped-call]
        own = torch.arange(count * points, device=queries.device)
    else:
        logits = (queries @ keys.transpose(1, 2) / temperature).flatten(0, 1)
        near = near.flatten(0, 1)
        own = torch.arange(points, device=queries.device).repeat(count)
    return 2 * temperature * F.cross_entropy(logits.masked_fill(near, -math.inf), own)


@torch.no_grad()
def figures(features: Tensor, queries: Tensor, keys: Tensor) -> dict[str, float]:
    """What shows learning and collapse, of two views that follow each other in the rows.

    Args:
        features: (2N, E) before projection.
        queries, keys: (2N, D) of unit length.

    Returns:
        spread: how far features differ from each other: root mean square distance of the unit-length features from
            their mean; 0 if all are the same (collapse), 1 if they point everywhere.
        alignment: mean squared distance between a query and its key; 0 best.
        uniformity: log of the mean of exp(-2 x squared distance) between keys; 0 if all are the same, lower is better.
        matched: share of queries whose own key is the nearest in the batch.
    """
    pointing = F.normalize(features, dim=1)
    spread = (pointing - pointing.mean(dim=0)).square().sum(dim=1).mean().sqrt()
    first, second = keys.chunk(2)
    wanted = torch.cat([second, first])
    alignment = (queries - wanted).square().sum(dim=1).mean()
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


MOST_COMPARED = 512
"""Keys of a batch that are compared with each other for the figures."""


def mlp(widths: Sequence[int]) -> nn.Sequential:
    """Linear layers with batch norm and ReLU between them; the last batch norm has no weights (MoCo v3)."""
    layers: list[nn.Module] = []
    for number, (before, after) in enumerate(itertools.pairwise(widths), start=2):
        last = number == len(widths)
        layers += [nn.Linear(before, after, bias=False), nn.BatchNorm1d(after, affine=not last)]
        layers += [] if last else [nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)
