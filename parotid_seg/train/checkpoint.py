"""Checkpoints: what they hold, written whole or not at all, read without running code."""

from __future__ import annotations

import dataclasses
import pickle
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from parotid_seg.errors import InputError
from parotid_seg.files import whole_file
from parotid_seg.train.config import TrainConfig
from parotid_seg.train.network import ParotidNet
from parotid_seg.train.settings import merge

FORMAT = "parotid-seg checkpoint 1"


@dataclass(frozen=True)
class Checkpoint:
    """A trained model and where it comes from.

    Attributes:
        config: the resolved training configuration.
        labels, channels: as in the contract.
        training: data set, patients, epochs and scores, for the contract.
        weights: state of `ParotidNet` (moving average), or what a stage of contrast has of it.
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
            InputError: if the checkpoint is of a stage that trains no whole model.
        """
        net = build_network(self.config, len(self.channels), len(self.labels))
        missing = net.state_dict().keys() - self.weights.keys()
        if missing:
            stage = self.config.stages[-1]
            raise InputError(
                f"checkpoint of the stage {stage}: found {len(self.weights)} weights without {min(missing)}, expected "
                "those of a whole model; a stage 'segment' makes one"
            )
        net.load_state_dict(self.weights)
        return net.eval()


def build_network(config: TrainConfig, channels: int, classes: int) -> ParotidNet:
    """A new, randomly initialised model for scans of so many channels."""
    return ParotidNet(config.network, config.grid, channels, classes)


def save_checkpoint(checkpoint: Checkpoint, path: Path) -> None:
    """Write a checkpoint beside its final name, then rename it.

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
    with whole_file(path) as partial:
        torch.save(content, partial)


def is_checkpoint(path: Path) -> bool:
    """Whether a file is a parotid-seg checkpoint, of this format or another."""
    if not zipfile.is_zipfile(path):
        return False
    try:
        content = torch.load(path, map_location="meta", weights_only=True)
    except (OSError, RuntimeError, EOFError, ValueError, KeyError, pickle.UnpicklingError):
        return False
    return isinstance(content, dict) and str(content.get("format", "")).startswith("parotid-seg checkpoint")


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint onto the CPU.

    Raises:
        InputError: if the file is missing, damaged, or not a parotid-seg checkpoint of this format.
    """
    if not path.is_file():
        raise InputError("no such checkpoint", path=path)
    if not zipfile.is_zipfile(path):
        raise InputError("not a checkpoint: expected a file written by torch.save", path=path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, ValueError, KeyError, pickle.UnpicklingError) as error:
        raise InputError(f"not a readable checkpoint ({type(error).__name__})", path=path) from error
    found = content.get("format") if isinstance(content, dict) else None
    if found != FORMAT:
        raise InputError(f"found format {found!r}, expected {FORMAT!r}", path=path)
    return Checkpoint(
        config=merge(TrainConfig(), content["config"], where=str(path)),
        labels=tuple(content["labels"]),
        channels=tuple(content["channels"]),
        training=content["training"],
        weights=content["weights"],
        progress=content["progress"],
    )
