"""The packaged model as a checkpoint, for whoever wants its network in torch.

    python benchmarks/packaged_checkpoint.py OUT.pt

The checkpoint is FP32 with the values of the file's FP16, its batch norms are folded into their convolutions, and its
masks are compared with the model's before it is written. To train on from the packaged model, `parotid-seg train --init
packaged` needs no checkpoint.
"""

from __future__ import annotations

import argparse
import dataclasses
from functools import partial
from pathlib import Path

from parotid_seg.export.parity import Parity, ScanParity
from parotid_seg.models import DEFAULT_MODEL, PACKAGED, example_folder
from parotid_seg.runtime.engines.base import labels_of
from parotid_seg.runtime.engines.engine_file import BatchProfile
from parotid_seg.runtime.engines.load import load_backend
from parotid_seg.runtime.engines.model_file import read_model
from parotid_seg.runtime.tolerance import GATES
from parotid_seg.train.checkpoint import Checkpoint, build_network, save_checkpoint
from parotid_seg.train.config import TrainConfig
from parotid_seg.train.model_weights import network_weights, read_model_weights


def unproven_checkpoint() -> Checkpoint:
    """The packaged model's checkpoint, without the comparison of its masks."""
    contract = read_model(DEFAULT_MODEL).contract
    config = dataclasses.replace(
        TrainConfig(), grid=contract.grid, window_hu=contract.windows[0] or TrainConfig().window_hu
    )
    unet = build_network(config, len(contract.channels), len(contract.labels)).unet
    found = network_weights(PACKAGED, read_model_weights(PACKAGED), unet)
    weights = {f"unet.{name}": value for name, value in found.items()}
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
    checkpoint, contract = unproven_checkpoint(), read_model(DEFAULT_MODEL).contract
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
