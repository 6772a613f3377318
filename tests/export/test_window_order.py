"""The network for deployment, with its tokens in the order of the attention windows."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from parotid_seg.contract import Grid
from parotid_seg.export.window_order import WindowOrderUnet, in_window_order
from parotid_seg.train.config import NetworkConfig
from parotid_seg.train.network import ParotidNet, SwinUnet


def network(size: int, window: int, **sizes: Any) -> ParotidNet:
    """An untrained network whose attention and norms differ from their initial values."""
    defaults: dict[str, Any] = {"embed_dim": 8, "depths": (2, 2), "heads": (1, 2), "stem": (2, 4), "window": window}
    config = NetworkConfig(**(defaults | sizes))
    torch.manual_seed(0)
    net = ParotidNet(config, Grid(size=size, offsets_mm=(-3.0, 0.0, 3.0)), 1, 3).eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape))
    return net


@pytest.mark.parametrize(
    ("size", "window", "sizes"),
    [
        (48, 3, {}),  # 4 x 4 windows of 3 x 3, then 2 x 2
        (48, 6, {}),  # one window in the second stage
        (96, 6, {"depths": (3, 1, 2), "heads": (1, 2, 4)}),  # a stage ends in windows that are not shifted
        (64, 4, {"depths": (1, 4)}),
    ],
)
def test_it_gives_what_the_network_gives(size: int, window: int, sizes: dict[str, Any]) -> None:
    net = network(size, window, **sizes)
    images = torch.rand(3, 3, size, size)
    with torch.no_grad():
        expected = net.unet(images)
        converted = in_window_order(copy.deepcopy(net)).unet
        found = converted(images)
    assert isinstance(converted, WindowOrderUnet)
    assert expected.std(dim=(2, 3)).min() > 0.01
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_images_that_are_no_multiple_of_the_windows_keep_their_network() -> None:
    assert type(in_window_order(network(40, 4)).unet) is SwinUnet
