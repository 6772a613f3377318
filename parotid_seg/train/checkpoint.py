"""Checkpoints: written completely or not at all, and read without running code."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from parotid_seg.errors import InputError, OptionError
from parotid_seg.files import atomic_write
from parotid_seg.records import convert, parse, record_line
from parotid_seg.train.config import INITIAL, SO_FAR, TrainConfig
from parotid_seg.train.network import ParotidNet
from parotid_seg.train.settings import merge
from parotid_seg.train.torch_file import load_torch_file

FORMAT = "parotid-seg checkpoint 1"
LONGEST_SHOWN = 60
"""Most characters of a name or value in a message."""


@dataclass(frozen=True)
class Checkpoint:
    """A trained model and its origin.

    Attributes:
        config: the resolved training configuration.
        labels, channels: as in the contract.
        training: data set, patients, epochs and scores, for the contract.
        weights: state of `ParotidNet` (moving average), or the part that a contrastive stage trains.
        progress: state to resume from; empty in `best.pt`.
    """

    config: TrainConfig
    labels: tuple[str, ...]
    channels: tuple[str, ...]
    training: dict[str, Any]
    weights: dict[str, torch.Tensor]
    progress: dict[str, Any]

    def network(self) -> ParotidNet:
        """The model with its weights, ready to run (eval mode).

        Raises:
            InputError: if the checkpoint is of a stage without a complete model, or its weights do not fit the network
                of its configuration.
        """
        with torch.device("meta"):  # sizes only, because the network may not fit into memory
            expected = build_network(self.config, len(self.channels), len(self.labels)).state_dict()
        missing = expected.keys() - self.weights.keys()
        if missing:
            stage = self.config.stages[-1]
            raise InputError(
                f"checkpoint of the stage {stage}: found {len(self.weights)} weights without {min(missing)}, expected "
                "those of a whole model; a stage 'segment' makes one"
            )
        for name, found in self.weights.items():
            if name not in expected:
                raise InputError(f"found the weight {name[:LONGEST_SHOWN]!r}, which its network does not have")
            expected_weight = expected[name]
            if (found.shape, found.dtype) != (expected_weight.shape, expected_weight.dtype):
                raise InputError(
                    f"{name}: found {tuple(found.shape)} of {found.dtype}, expected {tuple(expected_weight.shape)} of "
                    f"{expected_weight.dtype}, as in its configuration"
                )
        net = build_network(self.config, len(self.channels), len(self.labels))
        net.load_state_dict(self.weights)
        return net.eval()


def build_network(config: TrainConfig, channels: int, classes: int) -> ParotidNet:
    """A new, randomly initialised model for scans with a number of channels."""
    return ParotidNet(config.network, config.grid, channels, classes)


def save_checkpoint(checkpoint: Checkpoint, path: Path) -> None:
    """Write a checkpoint under a temporary name, then rename it.

    Raises:
        OutputError: if it cannot be written.
    """
    content = {
        "format": FORMAT,
        "config": dataclasses.asdict(checkpoint.config),
        "labels": list(checkpoint.labels),
        "channels": list(checkpoint.channels),
        "training": checkpoint.training,
        "weights": checkpoint.weights,
        "progress": checkpoint.progress,
    }
    with atomic_write(path) as partial:
        torch.save(content, partial)


def is_initial(training: Mapping[str, Any]) -> bool:
    """Whether a checkpoint's `training` says that it is the model of `--init`, unchanged: nothing was learnt from."""
    return training.get("epochs") == 0 and training.get("images") == 0


def what_best_is(best: Path) -> str:
    """What a `best.pt` without a `last.pt` is, in words."""
    try:
        training = load_checkpoint(best).training
    except InputError as error:
        return f"which cannot be read: {error.reason}"
    return INITIAL if is_initial(training) else SO_FAR


def is_checkpoint(path: Path) -> bool:
    """Whether a file is a parotid-seg checkpoint, of this format or another."""
    try:
        content = load_torch_file(path, values=False)
    except InputError:
        return False
    file_format = content.get("format") if isinstance(content, dict) else None
    return isinstance(file_format, str) and file_format.startswith("parotid-seg checkpoint")


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint onto the CPU.

    Raises:
        InputError: if the file is missing, damaged, or not a parotid-seg checkpoint of this format, with the field.
    """
    if not path.is_file():
        raise OptionError("no such file, expected a checkpoint such as RUN/best.pt", path=path)
    content = load_torch_file(path)
    file_format = content.get("format") if isinstance(content, dict) else None
    if file_format != FORMAT:
        shown = file_format[:LONGEST_SHOWN] if isinstance(file_format, str) else type(file_format).__name__
        raise InputError(f"found format {shown!r}, expected {FORMAT!r}", path=path)
    try:
        weights = checked_weights(content.pop("weights", None))
        promised = convert(content, _Content)
        return Checkpoint(
            config=merge(TrainConfig(), promised.config, where="config: "),
            labels=promised.labels,
            channels=promised.channels,
            training=parse(record_line(promised.training)),
            weights=weights,
            progress=promised.progress,
        )
    except (TypeError, ValueError, OverflowError, RecursionError) as error:  # from `record_line`
        raise InputError("training: found what JSON cannot hold, expected texts and numbers", path=path) from error
    except InputError as error:
        raise InputError(error.reason, path=path) from error


@dataclass(frozen=True)
class _Content:
    """The content of a checkpoint file besides its weights; see `Checkpoint`."""

    format: str
    config: dict[str, Any]
    labels: tuple[str, ...]
    channels: tuple[str, ...]
    training: dict[str, Any]
    progress: dict[str, Any]


def checked_weights(weights: object) -> dict[str, torch.Tensor]:
    """Weights by name, after a check that each is an ordinary tensor.

    Raises:
        InputError: if they are not.
    """
    if not isinstance(weights, dict) or not weights:
        raise InputError(f"weights: found {type(weights).__name__}, expected tensors by name")
    for name, value in weights.items():
        if not isinstance(name, str) or not isinstance(value, torch.Tensor):
            raise InputError(
                f"weights: found {type(value).__name__} by {type(name).__name__}, expected tensors by name"
            )
    return weights
