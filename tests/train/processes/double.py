"""The `parotid-seg` command in double precision, where rounding hides no error of several processes."""

import copy
from collections.abc import Callable
from typing import Any
from unittest import mock

import torch

from parotid_seg.train import supervised
from parotid_seg.train.contrast import ContrastTrainer
from parotid_seg.train.supervised import SegmentTrainer
from tests.train.processes.torchrun import without_pictures


def in_double(loss: Any) -> Callable[..., Any]:
    def wrapped(self: Any, batch: Any, generator: Any) -> Any:
        batch = type(batch)(*(each.double() if each.is_floating_point() else each for each in batch))
        with mock.patch("torch.autocast"), mock.patch("torch.Tensor.float", torch.Tensor.double):
            return loss(self, batch, generator)

    return wrapped


def validate_in_single(net: Any, *arguments: Any, real: Any = supervised.segment_volume) -> Any:
    return real(copy.deepcopy(net).float(), *arguments)


def command(*words: Any) -> None:
    """Run it, in a process of its own."""
    torch.set_default_dtype(torch.float64)
    for trainer in (ContrastTrainer, SegmentTrainer):
        trainer.loss = in_double(trainer.loss)  # type: ignore[method-assign]
    supervised.segment_volume = validate_in_single  # type: ignore[assignment]
    without_pictures(*words)
