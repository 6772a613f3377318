"""Training in several processes, as `torchrun` starts them: who this one is, and what they compute together."""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from parotid_seg.errors import InputError
from parotid_seg.train.augment import Draws

M = TypeVar("M", bound=nn.Module)
T = TypeVar("T")


@dataclass(frozen=True)
class Processes:
    """This process among those that train one model.

    Attributes:
        rank, count: this one's number, and how many there are.
        device: where this one computes.
    """

    rank: int
    count: int
    device: torch.device

    @property
    def first(self) -> bool:
        """Whether this is the one that writes and reports."""
        return self.rank == 0

    def share(self, batch_size: int) -> range:
        """This process's part of the places in a batch.

        Raises:
            InputError: if the batch cannot be split evenly.
        """
        if batch_size % self.count:
            raise InputError(f"batch_size: found {batch_size}, expected a multiple of the {self.count} processes")
        own = batch_size // self.count
        return range(self.rank * own, (self.rank + 1) * own)

    def draws(self, generator: torch.Generator) -> Draws:
        """Random numbers for this process's part of a batch."""
        return Draws(generator, self.rank, self.count)

    def sum(self, values: Tensor) -> Tensor:
        """Sum over all processes; its gradient reaches all of them."""
        return _Sum.apply(values) if self.count > 1 else values

    def mean(self, values: dict[str, float]) -> dict[str, float]:
        """Mean of each figure over all processes."""
        if self.count == 1:
            return values
        together = torch.tensor(list(values.values()), dtype=torch.float64, device=self.device)
        dist.all_reduce(together)
        return dict(zip(values, (together / self.count).tolist(), strict=True))

    def any(self, value: bool) -> bool:
        """Whether it is true in one of the processes."""
        return self.mean({"": float(value)})[""] > 0

    def joined(self, rows: Tensor) -> Tensor:
        """The rows of all processes in the order of their ranks, without gradient."""
        if self.count == 1:
            return rows
        parts = [torch.empty_like(rows) for _ in range(self.count)]
        dist.all_gather(parts, rows.detach().contiguous())
        return torch.cat(parts)

    def collected(self, items: Sequence[T]) -> list[T]:
        """The items of all processes, first those of the first."""
        if self.count == 1:
            return list(items)
        parts: list[Any] = [None] * self.count
        dist.all_gather_object(parts, list(items))
        return [item for part in parts for item in part]

    def wrapped(self, module: nn.Module) -> nn.Module:
        """The module as it is to be called in training: gradients become the mean over all processes."""
        if self.count == 1:
            return module
        on = [self.device.index] if self.device.type == "cuda" else None
        return DistributedDataParallel(module, device_ids=on, gradient_as_bucket_view=True)

    def with_common_batch_norm(self, module: M) -> M:
        """Let every batch norm in a module count all processes' images."""
        for parent in list(module.modules()) if self.count > 1 else []:
            for child in parent.children():
                if type(child) in _COMMON:
                    child.__class__ = _COMMON[type(child)]
        return module


def join(device: str) -> Processes:
    """Join the processes that `torchrun` started, or be alone.

    Args:
        device: "auto", "cpu", "cuda" or "cuda:N"; with several processes on CUDA each takes the one of its local rank.

    Raises:
        InputError: for a device that is not there.
    """
    count = int(os.environ.get("WORLD_SIZE", "1"))
    local = int(os.environ.get("LOCAL_RANK", "0"))
    found = _device(device)
    if count == 1:
        return Processes(0, 1, found)
    if found.type == "cuda":
        found = torch.device("cuda", local)
        torch.cuda.set_device(found)
    if not dist.is_initialized():
        dist.init_process_group("nccl" if found.type == "cuda" else "gloo")
        atexit.register(dist.destroy_process_group)
    return Processes(dist.get_rank(), count, found)


def keep_freed_memory() -> None:
    """Let glibc keep the memory of one step for the next; where page faults are dear (virtual machines), a CPU step
    otherwise spends much of its time on them. Elsewhere nothing happens."""
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(_M_MMAP_MAX, 0)
        libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
"""As malloc.h numbers them."""


def _device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise InputError(f"--device {name}: torch {torch.__version__} finds no CUDA device; use --device cpu")
    try:
        return torch.device(name)
    except RuntimeError as error:
        raise InputError(f"--device: found {name!r}, expected auto, cpu, cuda or cuda:N") from error


class _Sum(torch.autograd.Function):
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


def _common_forward(norm: nn.BatchNorm1d | nn.BatchNorm2d, values: Tensor) -> Tensor:
    """Batch norm over the images of all processes; torch's SyncBatchNorm does not run on the CPU."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    over = [dim for dim in range(values.ndim) if dim != 1]
    shape = [1, -1] + [1] * (values.ndim - 2)
    exact = values.float()
    own = torch.stack([exact.sum(over), (exact**2).sum(over), torch.full_like(norm.running_mean, exact[:, 0].numel())])
    total, squares, number = _Sum.apply(own)
    mean = total / number
    variance = squares / number - mean**2
    with torch.no_grad():
        norm.running_mean.lerp_(mean, norm.momentum or 0.0)
        norm.running_var.lerp_(variance * number / (number - 1), norm.momentum or 0.0)
    scale = (variance + norm.eps).rsqrt()
    shift = -mean * scale
    if norm.affine:
        scale, shift = scale * norm.weight, shift * norm.weight + norm.bias
    scaled: Tensor = exact * scale.view(shape) + shift.view(shape)
    return scaled.to(values.dtype)


class _CommonBatchNorm1d(nn.BatchNorm1d):
    def forward(self, values: Tensor) -> Tensor:
        return _common_forward(self, values) if self.training else super().forward(values)


class _CommonBatchNorm2d(nn.BatchNorm2d):
    def forward(self, values: Tensor) -> Tensor:
        return _common_forward(self, values) if self.training else super().forward(values)


_COMMON: dict[type[nn.Module], type[nn.Module]] = {
    nn.BatchNorm1d: _CommonBatchNorm1d,
    nn.BatchNorm2d: _CommonBatchNorm2d,
}
