"""The packaged model as a checkpoint, for whoever wants its network in torch.

    python benchmarks/packaged_checkpoint.py OUT.pt

The model file has every weight of the trained network under its name in torch, matrices transposed, batch norms folded
into their convolutions, biases of relative positions as the matrices they stand for, in FP16. The checkpoint undoes
that; it is FP32 with the values of FP16, and its masks are compared with the model's before it is written.
"""

from __future__ import annotations

import argparse
import dataclasses
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx.numpy_helper import to_array
from torch import nn

from parotid_seg.export.parity import Parity, ScanParity
from parotid_seg.models import DEFAULT_MODEL, example_folder
from parotid_seg.runtime.engines.base import labels_of
from parotid_seg.runtime.engines.engine_file import BatchProfile
from parotid_seg.runtime.engines.load import load_backend
from parotid_seg.runtime.engines.model_file import read_model
from parotid_seg.tolerance import GATES
from parotid_seg.train.checkpoint import Checkpoint, build_network, save_checkpoint
from parotid_seg.train.config import TrainConfig

Weights = dict[str, torch.Tensor]


def stored_weights(path: Path) -> Weights:
    """Constants of a model file by name, in FP32."""
    constants = onnx.load(path).graph.initializer
    return {each.name.removesuffix(".fp16"): torch.from_numpy(to_array(each).astype(np.float32)) for each in constants}


def state_of(net: nn.Module, stored: Weights) -> Weights:
    """The network's state that gives the stored constants, see `parotid_seg.export.window_order`.

    Raises:
        KeyError: if the file has not all of them.
    """
    state = {}
    for name, old in net.state_dict().items():
        layer, _, last = name.rpartition(".")
        module = net.get_submodule(layer)
        if isinstance(module, nn.BatchNorm2d):
            state[name] = _norm(old, last, module.eps, stored[f"{layer}/Conv.constant"])
        elif last == "relative_position_bias_table":
            state[name] = _table(net.get_submodule(layer), stored[f"{layer}.position_bias"])
        elif layer.endswith(".qkv"):
            parts = (f"{layer.removesuffix('qkv')}{part}.{last}" for part in ("queries", "keys", "values"))
            state[name] = torch.cat([_stored(part, stored) for part in parts])
        elif layer.endswith((".expand_half", ".expand_full")):
            by_place = stored[name].permute(1, 2, 3, 0) if last == "weight" else stored[f"{layer}/Add.constant"]
            state[name] = by_place[..., :2, :2].reshape(old.shape) if last == "bias" else by_place.reshape(old.shape)
        elif layer.endswith(".expand.expand"):
            state[name] = _stored(name, stored).reshape(4, -1, old.shape[1]).transpose(0, 1).reshape(old.shape)
        else:
            state[name] = _stored(name, stored)
    return state


def _stored(name: str, stored: Weights) -> torch.Tensor:
    """A weight, whose matrix may be stored transposed."""
    return stored[name] if name in stored else stored[f"{name}.T"].T.contiguous()


def _norm(old: torch.Tensor, last: str, eps: float, shift: torch.Tensor) -> torch.Tensor:
    """Of a batch norm that only adds what the folded one added."""
    values = {"weight": torch.ones_like(old), "bias": shift, "running_mean": torch.zeros_like(old)}
    return values.get(last, torch.full_like(old, 1.0 - eps) if last == "running_var" else old)


def _table(attention: Any, bias: torch.Tensor) -> torch.Tensor:
    """Biases of relative positions: each is at many places of the matrix of a window (windows, heads, tokens, tokens).

    Of shifted windows the first has no mask.
    """
    table = torch.zeros_like(attention.relative_position_bias_table.detach())
    table[attention.relative_position_index.flatten()] = bias[0].permute(1, 2, 0).flatten(0, 1)
    return table


def unproven_checkpoint() -> Checkpoint:
    """The packaged model's checkpoint, without the comparison of its masks."""
    contract = read_model(DEFAULT_MODEL)[1]
    config = dataclasses.replace(
        TrainConfig(), grid=contract.grid, window_hu=contract.windows[0] or TrainConfig().window_hu
    )
    net = build_network(config, len(contract.channels), len(contract.labels))
    weights = state_of(net, stored_weights(DEFAULT_MODEL))
    return Checkpoint(config, contract.labels, contract.channels, dict(contract.training), weights, {})


def packaged_checkpoint(out: Path, scans: Path | None = None) -> list[ScanParity]:
    """Write the packaged model's checkpoint.

    Args:
        out: the file.
        scans: folder of scans to compare it with the model on; None takes the packaged example.

    Returns:
        its masks against the model's on these scans, at several sizes and batch sizes.

    Raises:
        SystemExit: if they are not the same as an export's would have to be; nothing is written then.
    """
    checkpoint, contract = unproven_checkpoint(), read_model(DEFAULT_MODEL)[1]
    parity = Parity(checkpoint.network(), contract, scans or example_folder(), BatchProfile())
    rows = parity.check(
        partial(labels_of, load_backend(DEFAULT_MODEL, "onnxruntime", "cpu")), GATES[contract.precision]
    )
    if failed := [str(row) for row in rows if not row.passed]:
        raise SystemExit(f"not written: it is not the packaged model: {failed[0]}")
    save_checkpoint(checkpoint, out)
    return rows


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--scans", type=Path, help="to compare on; default: the example")
    arguments = parser.parse_args()
    for found in packaged_checkpoint(arguments.out, arguments.scans):
        print(found)
