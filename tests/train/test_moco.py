"""Momentum contrast: losses against sums by hand, the slow branch, and the figures that show a collapse."""

import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F

from parotid_seg.train.config import ContrastConfig, NetworkConfig
from parotid_seg.train.moco import MomentumContrast, Pair, figures, place_loss, slice_loss
from parotid_seg.train.network import SwinUnet, follow
from parotid_seg.train.parallel import Processes

ALONE = Processes(0, 1, torch.device("cpu"))
NETWORK = NetworkConfig(embed_dim=16, depths=(1, 1), heads=(2, 4), window=7, stem=(8, 16), drop_path=0.0)
SMALL = ContrastConfig(hidden=32, features=16, batch_size=4, points=6)
NONE = torch.empty(0, 2)


def unet() -> SwinUnet:
    torch.manual_seed(0)
    return SwinUnet(NETWORK, 56, 3, 3)


def pair(places: int = 6) -> Pair:
    generator = torch.Generator().manual_seed(0)
    views = [torch.rand(4, 3, 56, 56, generator=generator) for _ in range(2)]
    at = [torch.randint(0, 56, (4, places, 2), generator=generator) for _ in range(2)]
    return Pair(views[0], views[1], at[0], at[1], torch.rand(4, places, 2, generator=generator) * 200)


def test_slice_loss_by_hand() -> None:
    keys = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    queries = torch.tensor([[0.6, 0.8], [0.0, 1.0]])
    first = -math.log(math.exp(0.6 / 0.5) / (math.exp(0.6 / 0.5) + math.exp(0.8 / 0.5)))
    second = -math.log(math.exp(1 / 0.5) / (math.exp(1 / 0.5) + math.exp(0)))
    expected = 2 * 0.5 * (first + second) / 2
    assert float(slice_loss(queries, keys, NONE, 0.5)) == pytest.approx(expected, abs=1e-6)


def test_a_queue_adds_negatives() -> None:
    keys, queue = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0], [-1.0, 0.0]])
    expected = 2 * math.log((math.e + 1 + 1 / math.e) / math.e)
    assert float(slice_loss(keys, keys, queue, 1.0)) == pytest.approx(expected, abs=1e-6)


def test_place_loss_by_hand() -> None:
    """Three places on a line, 10 mm apart: with 15 mm the middle one has no negatives, the outer ones have one."""
    vectors = F.normalize(torch.tensor([[[1.0, 0.0], [1.0, 1.0], [0.0, 1.0]]]), dim=-1)
    places_mm = torch.tensor([[[0.0, 0.0], [0.0, 10.0], [0.0, 20.0]]])
    outer = math.log((math.e + 1) / math.e)
    assert float(place_loss(vectors, vectors, places_mm, 15, False, 1.0)) == pytest.approx(4 * outer / 3, abs=1e-6)
    half = math.exp(math.sqrt(0.5))
    every = 2 * math.log((math.e + 1 + half) / math.e) + math.log((math.e + 2 * half) / math.e)
    assert float(place_loss(vectors, vectors, places_mm, 5, False, 1.0)) == pytest.approx(2 * every / 3, abs=1e-6)


def test_places_of_other_images_are_negatives_if_asked() -> None:
    vectors = F.normalize(torch.tensor([[[1.0, 0.0], [0.0, 1.0]], [[-1.0, 0.0], [0.0, -1.0]]]), dim=-1)
    places_mm = torch.tensor([[[0.0, 0.0], [0.0, 50.0]]] * 2)
    inside = 2 * math.log((math.e + 1) / math.e)
    across = 2 * math.log((math.e + 2 + 1 / math.e) / math.e)
    assert float(place_loss(vectors, vectors, places_mm, 15, False, 1.0)) == pytest.approx(inside, abs=1e-6)
    assert float(place_loss(vectors, vectors, places_mm, 15, True, 1.0)) == pytest.approx(across, abs=1e-6)


@pytest.mark.parametrize("across_images", [False, True])
def test_the_part_of_a_batch_finds_its_keys_among_all(across_images: bool) -> None:
    """The mean of the parts' losses is the whole batch's."""
    generator = torch.Generator().manual_seed(0)
    queries, keys = (F.normalize(torch.rand(4, 3, 5, generator=generator), dim=-1) for _ in range(2))
    places_mm = 40 * torch.rand(4, 3, 2, generator=generator)
    whole = place_loss(queries, keys, places_mm, 15, across_images, 0.2)
    parts = [
        place_loss(queries[first : first + 2], keys, places_mm[first : first + 2], 15, across_images, 0.2, first)
        for first in (0, 2)
    ]
    torch.testing.assert_close(torch.stack(parts).mean(), whole)
    whole = slice_loss(queries[:, 0], keys[:, 0], NONE.new_empty(0, 5), 0.2)
    parts = [slice_loss(queries[at : at + 2, 0], keys[:, 0], NONE.new_empty(0, 5), 0.2, at) for at in (0, 2)]
    torch.testing.assert_close(torch.stack(parts).mean(), whole)


def test_momentum_rises_to_one_along_a_cosine() -> None:
    config = dataclasses.replace(SMALL, epochs=10, images_per_epoch=40, momentum=0.9)
    momenta = [config.momentum_at(step) for step in range(config.steps + 1)]
    assert momenta[0] == pytest.approx(0.9)
    assert momenta[50] == pytest.approx(0.95)
    assert momenta[-1] == pytest.approx(1.0)
    assert momenta == sorted(momenta)


def test_the_slow_branch_keeps_its_share() -> None:
    moco = MomentumContrast(unet(), SMALL, ALONE)
    name = "encoder.layers.0.blocks.0.mlp.fc1.weight"
    before = moco.slow.unet.state_dict()[name].clone()
    with torch.no_grad():
        for parameter in moco.trained.unet.parameters():
            parameter.add_(1.0)
    follow(moco.slow.unet, moco.trained.unet, 0.99)
    torch.testing.assert_close(moco.slow.unet.state_dict()[name], before + 0.01)


@pytest.mark.parametrize(
    ("share", "reached", "not_reached"),
    [
        (0.0, ("encoder.", "skip_norms.1."), ("decoder.", "stem_full.", "skip_norms.0.", "classify.")),
        (1.0, ("encoder.", "decoder.", "stem_full.", "head_full.", "skip_norms.0."), ("classify.",)),
        (0.5, ("encoder.", "decoder.", "stem_full.", "head_full.", "skip_norms.1."), ("classify.",)),
    ],
)
def test_gradients_reach_what_is_contrasted_and_never_the_slow_branch(
    share: float, reached: tuple[str, ...], not_reached: tuple[str, ...]
) -> None:
    moco = MomentumContrast(unet(), dataclasses.replace(SMALL, dense_share=share), ALONE)
    loss, measured = moco(pair())
    loss.backward()
    assert math.isfinite(loss.item())
    assert ("spread" in measured, "places_spread" in measured) == (share < 1, share > 0)
    moved = {name for name, value in moco.trained.unet.named_parameters() if value.grad is not None}
    assert all(any(name.startswith(part) for name in moved) for part in reached)
    assert not any(name.startswith(not_reached) for name in moved)
    assert all(value.grad is None for value in moco.slow.parameters())
    unused = [name for name, value in moco.named_parameters() if value.requires_grad and value.grad is None]
    assert not unused


def test_the_queue_holds_the_latest_keys() -> None:
    moco = MomentumContrast(unet(), dataclasses.replace(SMALL, queue=12), ALONE)
    before = moco.queue.clone()
    moco(pair())
    torch.testing.assert_close(moco.queue[8:], before[:4])
    torch.testing.assert_close(moco.queue.norm(dim=1), torch.ones(12))


def test_learning_brings_the_views_together() -> None:
    config = dataclasses.replace(SMALL, temperature=0.2)
    moco = MomentumContrast(unet(), config, ALONE)
    optimizer = torch.optim.AdamW([p for p in moco.parameters() if p.requires_grad], lr=3e-3)
    views = pair(0)
    views = views._replace(second=views.first + 0.05 * torch.randn_like(views.first))
    losses = []
    for _ in range(12):
        loss, measured = moco(views)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        follow(moco.slow.unet, moco.trained.unet, 0.9)
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]
    assert measured["matched"] == 1.0


def test_figures_by_hand() -> None:
    same = torch.ones(8, 4)
    keys = F.normalize(same, dim=1)
    collapsed = figures(same, keys, keys)
    assert collapsed["spread"] == pytest.approx(0, abs=1e-4)
    assert collapsed["uniformity"] == pytest.approx(0, abs=1e-4)
    apart = torch.eye(4).repeat(2, 1)
    spread_out = figures(apart, apart, apart)
    assert spread_out["spread"] == pytest.approx(math.sqrt(0.75))
    assert spread_out["alignment"] == pytest.approx(0)
    assert spread_out["matched"] == 1.0
    assert spread_out["uniformity"] == pytest.approx(-4)
