"""Batch norm over the images of all processes; torch's SyncBatchNorm does not run on the CPU."""

from __future__ import annotations

from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from parotid_seg.train.parallel import Sum

M = TypeVar("M", bound=nn.Module)


def common_batch_norm(module: M) -> M:
    """Let every batch norm in a module count the images of all processes, of which each has equally many."""
    for parent in list(module.modules()):
        for child in parent.children():
            if type(child) in _COMMON:
                child.__class__ = _COMMON[type(child)]
    return module


def _forward(norm: nn.BatchNorm1d | nn.BatchNorm2d, values: Tensor) -> Tensor:
    assert norm.running_mean is not None
    assert norm.running_var is not None
    assert norm.num_batches_tracked is not None
    over = [dim for dim in range(values.ndim) if dim != 1]
    shape = [1, -1] + [1] * (values.ndim - 2)
    exact = values.to(norm.running_mean.dtype)
    processes = dist.get_world_size()
    mean = Sum.apply(exact.mean(over)) / processes
    centred = exact - mean.view(shape)
    # Not the mean of squares less the square of the mean: of a feature that hardly varies, rounding would make that
    # negative.
    variance = Sum.apply(centred.square().mean(over)) / processes
    with torch.no_grad():
        number = exact[:, 0].numel() * processes
        norm.num_batches_tracked += 1
        norm.running_mean.lerp_(mean, norm.momentum or 0.0)
        norm.running_var.lerp_(variance * number / (number - 1), norm.momentum or 0.0)
    scale = (variance + norm.eps).rsqrt()
    if norm.affine:
        scale = scale * norm.weight
    scaled: Tensor = centred * scale.view(shape)
    if norm.affine:
        scaled = scaled + norm.bias.view(shape)
    return scaled.to(values.dtype)


class _CommonBatchNorm1d(nn.BatchNorm1d):
    def forward(self, values: Tensor) -> Tensor:
        return _forward(self, values) if self.training else super().forward(values)


class _CommonBatchNorm2d(nn.BatchNorm2d):
    def forward(self, values: Tensor) -> Tensor:
        return _forward(self, values) if self.training else super().forward(values)


_COMMON: dict[type[nn.Module], type[nn.Module]] = {
    nn.BatchNorm1d: _CommonBatchNorm1d,
    nn.BatchNorm2d: _CommonBatchNorm2d,
}
