"""Batch norm over the images of all processes, like torch's SyncBatchNorm, which does not support the CPU."""

from __future__ import annotations

from typing import Any, TypeVar

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

M = TypeVar("M", bound=nn.Module)


def common_batch_norm(module: M) -> M:
    """Make every batch norm in a module use the images of all processes, which must have equally many."""
    for parent in list(module.modules()):
        for child in parent.children():
            if type(child) in _COMMON:
                child.__class__ = _COMMON[type(child)]
    return module


class _Normalise(torch.autograd.Function):
    """torch's batch norm with the statistics of all processes; the backward pass adds their contribution."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
        exact, over = values.to(weight.dtype), [dim for dim in range(values.ndim) if dim != 1]
        own_mean = exact.mean(over)
        # Not the mean of squares minus the square of the mean, which rounding can make negative for a feature that
        # hardly varies.
        own_variance = (exact - _along(own_mean, values)).square_().mean(over)
        means, variances = _of_processes(torch.stack([own_mean, own_variance])).unbind(dim=1)
        mean = means.mean(dim=0)
        variance = (variances + (means - mean) ** 2).mean(dim=0)
        ctx.save_for_backward(values, weight, mean, variance)
        ctx.eps = eps
        ctx.mark_non_differentiable(mean, variance)
        return F.batch_norm(values, mean, variance, weight, bias, eps=eps), mean, variance

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        values, weight, mean, variance = ctx.saved_tensors
        of_values, of_weight, of_bias = torch.ops.aten.native_batch_norm_backward(
            gradients[0], values, weight, mean, variance, None, None, False, ctx.eps, [True, True, True]
        )
        scale = (variance + ctx.eps).rsqrt()
        number = values[:, 0].numel()
        through_variance, through_mean = _of_processes(torch.stack([of_weight, of_bias])).mean(dim=0) / number
        slope = weight * scale**2 * through_variance
        offset = weight * scale * through_mean - slope * mean
        of_values = of_values - _along(offset, values) - _along(slope, values) * values
        return of_values.to(values.dtype), of_weight, of_bias, None


def _forward(norm: nn.BatchNorm1d | nn.BatchNorm2d, values: Tensor) -> Tensor:
    assert norm.running_mean is not None
    assert norm.running_var is not None
    assert norm.num_batches_tracked is not None
    weight = norm.weight if norm.affine else torch.ones_like(norm.running_mean)
    bias = norm.bias if norm.affine else torch.zeros_like(norm.running_mean)
    normalised: Tensor
    normalised, mean, variance = _Normalise.apply(values, weight, bias, norm.eps)
    with torch.no_grad():
        number = values[:, 0].numel() * dist.get_world_size()
        norm.num_batches_tracked += 1
        norm.running_mean.lerp_(mean, norm.momentum or 0.0)
        norm.running_var.lerp_(variance * number / (number - 1), norm.momentum or 0.0)
    return normalised


def _of_processes(values: Tensor) -> Tensor:
    """Values of all processes (processes, ...)."""
    parts = [torch.empty_like(values) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, values)
    return torch.stack(parts)


def _along(channels: Tensor, values: Tensor) -> Tensor:
    """(C,) reshaped to broadcast with (N, C, ...)."""
    return channels.view(1, -1, *[1] * (values.ndim - 2))


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
