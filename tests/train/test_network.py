"""The network: shapes, size, and preprocessing layers that do what their docstrings say."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from parotid_seg.contract import Grid
from parotid_seg.scan.chunks import chunks, crop_to_grid, cut
from parotid_seg.scan.volume import Orientation, Volume
from parotid_seg.train.checkpoint import build_network
from parotid_seg.train.config import TrainConfig
from parotid_seg.train.network import FromGrid, ToGrid
from parotid_seg.train.settings import load_config
from parotid_seg.train.supervised import Supervised, dice_loss, segmentation_loss

UPRIGHT = Orientation((0, 1, 2), (False, False, False))
HU = [-200.0, 300.0]


def test_the_compact_preset_is_compact() -> None:
    net = build_network(TrainConfig(), 1, 3)
    assert sum(parameter.numel() for parameter in net.parameters()) <= 12_000_000


@pytest.mark.parametrize("shape", [(1, 7, 33, 41), (1, 20, 128, 128), (3, 8, 30, 50)])
def test_any_native_size_in_and_out(shape: tuple[int, int, int, int]) -> None:
    net = build_network(TrainConfig(), shape[0], 3).eval()
    windows = np.array([HU] * shape[0], np.float32)
    voxels = np.random.default_rng(0).integers(-1000, 1000, size=shape).astype(np.int16)
    volume = Volume(voxels, (3.0, 2.0, 2.5), UPRIGHT)
    covered = crop_to_grid(volume, windows, TrainConfig().grid)
    for chunk in cut(covered, TrainConfig().grid, 4):
        with torch.no_grad():
            labels = net(**{name: torch.from_numpy(array) for name, array in chunk.inputs.items()})
        assert labels.shape == np.empty(shape[1:])[chunk.slices, covered.rows, covered.columns].shape
        assert labels.dtype == torch.uint8


def test_windows_and_channels() -> None:
    """A volume of heights, twice: each image must show the height its offset names, in its own window."""
    grid = Grid(size=16, spacing_mm=2.0, offsets_mm=(-6, 0, 6))
    heights = np.arange(-30, 31, dtype=np.int16) * 10
    voxels = np.broadcast_to(heights[:, None, None], (2, 61, 40, 40)).copy()
    volume, windows = Volume(voxels, (3.0, 2.0, 2.0), UPRIGHT), np.array([[-200, 200], [-15, 85]], np.float32)
    chunk = next(chunks(volume, windows, grid, 64))
    names = ("slices", "window", "rows", "columns", "neighbours")
    images = ToGrid()(**{name: torch.from_numpy(chunk.inputs[name]) for name in names})
    seen = heights[30] + np.array([-20, 0, 20])
    expected = [*(seen + 200) / 400, *np.clip((seen + 15) / 100, 0, 1)]
    np.testing.assert_allclose(images[30, :, 8, 8], expected, atol=1e-5)
    assert images[0].min() == 0
    assert images[60].max() == pytest.approx(1.0)


def test_a_native_slice_gets_the_mean_of_the_looks_beside_it() -> None:
    logits = torch.tensor([2.0, 4.0]).view(2, 1, 1, 1).expand(2, 3, 4, 4)
    native = FromGrid()(logits, torch.tensor([[1.0, 0.0], [0.25, 0.75], [0.0, 1.0]]), torch.eye(4), torch.eye(4))
    torch.testing.assert_close(native[:, 1, 2, 3], torch.tensor([2.0, 3.5, 4.0]))


def test_outside_the_grid_is_background() -> None:
    logits = torch.zeros(1, 3, 4, 4)
    logits[:, 1] = 5
    back = torch.zeros(6, 4)
    back[2, 2] = 1
    labels = FromGrid()(logits, torch.ones(1, 1), back, back).argmax(1)
    assert labels.sum() == 1
    assert labels[0, 2, 2] == 1


ALL = torch.ones(1, 3, dtype=torch.bool)


def test_losses_by_hand() -> None:
    targets = torch.zeros(1, 3, 2, 2)
    targets[0, 1, 0] = targets[0, 0, 1] = 1
    right = 50 * (targets * 2 - 1)
    assert float(dice_loss(right.softmax(1), targets, ALL)) == pytest.approx(0.0, abs=1e-4)
    assert float(segmentation_loss(right, targets, ALL, 0.4)) == pytest.approx(0.0, abs=1e-4)
    even = torch.zeros(1, 3, 2, 2)
    assert float(segmentation_loss(even, targets, ALL, 1.0)) == pytest.approx(np.log(3), abs=1e-5)
    # structure 1: overlap 2 x 1/3, total 4 x 1/3 + 2; structure 2: overlap 0, total 4 x 1/3
    by_hand = 1 - ((4 / 3 + 1) / (10 / 3 + 1) + 1 / (4 / 3 + 1)) / 2
    assert float(dice_loss(even.softmax(1), targets, ALL)) == pytest.approx(by_hand, abs=1e-5)


def test_every_encoder_stage_is_classified_at_its_own_resolution(small_config: Path) -> None:
    unet = build_network(load_config("compact", small_config), 1, 3).unet
    logits, *deep = Supervised(unet, encoder=True)(torch.rand(2, 3, 32, 32))
    assert logits.shape == (2, 3, 32, 32)
    assert [stage.shape for stage in deep] == [(2, 3, 8, 8), (2, 3, 4, 4)]
    deep[1].sum().backward()
    assert unet.encoder.layers[1].blocks[0].mlp.fc1.weight.grad.abs().sum() > 0
    assert len(Supervised(unet, encoder=False)(torch.rand(2, 3, 32, 32))) == 1


def test_a_structure_that_was_not_contoured_may_be_anywhere_in_the_background() -> None:
    targets = torch.zeros(1, 3, 2, 2)
    targets[0, 1, 0] = targets[0, 0, 1] = 1
    contoured = torch.tensor([[True, True, False]])
    logits = torch.zeros(1, 3, 2, 2)
    # background and structure 2 together have 2 of 3 shares
    by_hand = (np.log(3) + np.log(1.5)) / 2
    assert float(segmentation_loss(logits, targets, contoured, 1.0)) == pytest.approx(by_hand, abs=1e-5)
    found = targets.clone()
    found[0, 2, 1], found[0, 0, 1] = 1, 0
    sure = 50 * (found * 2 - 1)
    assert float(segmentation_loss(sure, targets, contoured, 1.0)) == pytest.approx(0, abs=1e-4)
    sure.requires_grad_()
    segmentation_loss(sure, targets, contoured, 0.4).backward()
    assert sure.grad is not None
    assert torch.isfinite(sure.grad).all()


def test_ignored_pixels_are_not_learnt() -> None:
    """The loss is that of the other pixels alone, and what is said of ignored ones has no gradient."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, 4, 4, generator=generator, requires_grad=True)
    labels = torch.randint(0, 3, (2, 4, 4), generator=generator)
    labels[:, :, 2:] = 3
    targets = torch.nn.functional.one_hot(labels, 4).permute(0, 3, 1, 2).float()
    contoured = ALL.expand(2, 3)
    loss = segmentation_loss(logits, targets, contoured, 0.4)
    alone = segmentation_loss(logits[..., :2], targets[:, :3, :, :2], contoured, 0.4)
    torch.testing.assert_close(loss, alone)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert not gradient[..., 2:].any()
    assert gradient[..., :2].any()
    nothing = torch.zeros_like(targets)
    nothing[:, 3] = 1
    assert float(segmentation_loss(logits, nothing, contoured, 0.4)) == pytest.approx(0, abs=1e-6)


def test_learning_rate_rises_then_falls_to_zero(small_config: Path) -> None:
    segment = load_config("compact", small_config).segment
    steps = segment.epochs * segment.images_per_epoch // segment.batch_size
    rates = [segment.learning_rate_at(step) for step in range(steps)]
    peak = int(np.argmax(rates))
    assert rates[:peak] == sorted(rates[:peak])
    assert rates[peak:] == sorted(rates[peak:], reverse=True)
    assert max(rates) == pytest.approx(segment.learning_rate)
    assert rates[-1] < 0.02 * segment.learning_rate


def test_the_learning_rate_never_exceeds_its_peak(small_config: Path) -> None:
    segment = dataclasses.replace(load_config("compact", small_config).segment, warmup_epochs=0.3)
    for batches in (1, 2, 3, 5, 7, 16):
        each = dataclasses.replace(segment, images_per_epoch=batches * segment.batch_size)
        assert max(map(each.learning_rate_at, range(each.steps))) <= segment.learning_rate


def test_a_single_channel_is_windowed_resampled_and_stacked_as_by_the_formula() -> None:
    rng = np.random.default_rng(0)
    volume = Volume(rng.integers(-1000, 1000, size=(1, 9, 30, 40)).astype(np.int16), (3.0, 2.0, 2.5), UPRIGHT)
    chunk = next(chunks(volume, np.array([HU], np.float32), TrainConfig().grid, 9))
    slices, rows, columns, neighbours = (chunk.inputs[name] for name in ("slices", "rows", "columns", "neighbours"))
    windowed = (np.clip(slices[0].astype(np.float64), HU[0], HU[1]) - HU[0]) / (HU[1] - HU[0])
    expected = np.einsum("bkd,gy,dyx,hx->bkgh", neighbours, rows, windowed, columns, optimize=True)
    inputs = (torch.from_numpy(array) for array in (slices, chunk.inputs["window"], rows, columns, neighbours))
    np.testing.assert_allclose(ToGrid()(*inputs), expected, atol=1e-5)
