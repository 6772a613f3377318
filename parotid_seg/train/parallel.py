"""Training in several processes, started by `torchrun`: rank of this process, collective operations, and batch norm.

Batch norm is over the images of all processes, like torch's SyncBatchNorm, which does not support the CPU.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from parotid_seg.errors import InputError, OptionError
from parotid_seg.train.data.augment import Draws

T = TypeVar("T")
M = TypeVar("M", bound=nn.Module)

PATIENCE = timedelta(minutes=10)
"""How long processes wait for each other in training before one counts as hung. Work of a single process (one more
validation patient, pictures, a checkpoint) takes seconds; NCCL's default is the same."""
LONG_PATIENCE = timedelta(days=1)
"""The same where one process may have hours of work: reading scans, fetching initial weights."""


@dataclass(frozen=True)
class Processes:
    """The processes that train one model, including this one.

    Attributes:
        rank, count: index of this process, and number of processes.
        device: device of this process.
        here: number of processes on this machine.
        slow_group: the group of torch.distributed for waits with `LONG_PATIENCE`; None for one process.
    """

    rank: int
    count: int
    device: torch.device
    here: int = 1
    slow_group: Any = None

    @property
    def first(self) -> bool:
        """Whether this process writes and reports."""
        return self.rank == 0

    def share(self, batch_size: int) -> range:
        """The positions of a batch that belong to this process.

        Raises:
            InputError: if the batch cannot be split evenly.
        """
        if batch_size % self.count:
            raise InputError(f"batch_size: found {batch_size}, expected a multiple of the {self.count} processes")
        share = batch_size // self.count
        return range(self.rank * share, (self.rank + 1) * share)

    def draws(self, generator: torch.Generator) -> Draws:
        """Random numbers for this process's part of a batch."""
        return Draws(generator, self.rank, self.count)

    def sum(self, values: Tensor) -> Tensor:
        """Sum over all processes; the gradient is passed to all of them."""
        return _Sum.apply(values) if self.count > 1 else values

    def mean(self, values: dict[str, float]) -> dict[str, float]:
        """Mean of each figure over all processes."""
        if self.count == 1:
            return values
        together = torch.tensor(list(values.values()), dtype=torch.float64, device=self.device)
        dist.all_reduce(together)
        return dict(zip(values, (together / self.count).tolist(), strict=True))

    def any(self, value: bool) -> bool:
        """Whether the value is true in any process."""
        return self.mean({"": float(value)})[""] > 0

    def joined(self, rows: Tensor) -> Tensor:
        """Rows of all processes in the order of their ranks, without gradient."""
        if self.count == 1:
            return rows
        return torch.cat(_gathered(rows.detach().contiguous()))

    def collected(self, items: Sequence[T]) -> list[T]:
        """Items of all processes in the order of their ranks."""
        if self.count == 1:
            return list(items)
        parts: list[Any] = [None] * self.count
        dist.all_gather_object(parts, list(items))
        return [item for part in parts for item in part]

    def broadcast_from_rank0(self, make: Callable[[], T]) -> T:
        """The result of a function in the first process, for all: only that process needs the run's files."""
        if self.count == 1:
            return make()
        box: list[Any] = [make() if self.first else None]
        dist.broadcast_object_list(box, src=0, group=self.slow_group)
        return box[0]  # type: ignore[no-any-return]

    def broadcast_weights(self, module: nn.Module) -> None:
        """Copy a module's weights from the first process."""
        if self.count > 1:
            state = self.broadcast_from_rank0(
                lambda: {name: value.cpu() for name, value in module.state_dict().items()}
            )
            module.load_state_dict(state)

    def assert_equal(self, what: str, value: object) -> None:
        """Check that all processes have the same value.

        Raises:
            InputError: in a process whose value differs from the first one's.
        """
        if self.broadcast_from_rank0(lambda: value) != value:
            raise InputError(
                f"{what}: found others in process {self.rank} than in process 0, expected the same on every machine"
            )

    def barrier(self) -> None:
        """Wait until every process reaches this point."""
        if self.count > 1:
            dist.barrier(group=self.slow_group)

    def wrapped(self, module: nn.Module) -> nn.Module:
        """The module wrapped for training: gradients become the mean over all processes."""
        if self.count == 1:
            return module
        on = [self.device.index] if self.device.type == "cuda" else None
        return DistributedDataParallel(module, device_ids=on, gradient_as_bucket_view=True)


def join(device: str) -> Processes:
    """Join the processes that `torchrun` started, or run as a single process.

    Args:
        device: "auto", "cpu", "cuda" or "cuda:N"; with several processes on CUDA each uses the GPU of its local rank.

    Raises:
        InputError: for a missing device.
    """
    count = int(os.environ.get("WORLD_SIZE", "1"))
    local = int(os.environ.get("LOCAL_RANK", "0"))
    chosen = _device(device)
    if count == 1:
        return Processes(0, 1, chosen)
    if chosen.type == "cuda":
        chosen = torch.device("cuda", local)
        torch.cuda.set_device(chosen)
    if not dist.is_initialized():
        dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo", timeout=PATIENCE)
    slow_group = dist.new_group(backend="gloo", timeout=LONG_PATIENCE)
    return Processes(dist.get_rank(), count, chosen, int(os.environ.get("LOCAL_WORLD_SIZE", "1")), slow_group)


def keep_freed_memory() -> None:
    """Let glibc keep the memory of one step for the next; where page faults are expensive (virtual machines), a CPU
    step otherwise spends much of its time on them. No effect with other C libraries."""
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(_M_MMAP_MAX, 0)
        libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
"""Constants of malloc.h."""


def _device(name: str) -> torch.device:
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", name):
        raise OptionError(f"--device: found {name!r}, expected auto, cpu, cuda or cuda:N")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise InputError(f"--device {name}: torch {torch.__version__} finds no CUDA device; use --device cpu")
    return torch.device(name)


class _Sum(torch.autograd.Function):
    """Sum over all processes; the gradient is the sum of the gradients in all processes."""

    @staticmethod
    def forward(_: Any, values: Tensor) -> Tensor:
        total = values.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(_: Any, gradient: Tensor) -> Tensor:
        total = gradient.contiguous().clone()
        dist.all_reduce(total)
        return total


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
        means, variances = torch.stack(_gathered(torch.stack([own_mean, own_variance]))).unbind(dim=1)
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
        through_variance, through_mean = torch.stack(_gathered(torch.stack([of_weight, of_bias]))).mean(dim=0) / number
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


def _gathered(values: Tensor) -> list[Tensor]:
    """Values of every process."""
    parts = [torch.empty_like(values) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, values)
    return parts


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
