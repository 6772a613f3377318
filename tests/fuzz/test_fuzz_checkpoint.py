"""Mutated checkpoints and weights files: read, or refused in one line; nothing in them is run."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable
from pathlib import Path

import torch

from parotid_seg.train.checkpoint import Checkpoint, build_network, load_checkpoint, save_checkpoint
from parotid_seg.train.transfer import start_from
from tests.fuzz.mutate import feed
from tests.train.test_checkpoint import LABELS, SMALL


def pickled(content: bytes) -> bytes:
    """The description of the tensors in a file of `torch.save`."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return archive.read(next(name for name in archive.namelist() if name.endswith("data.pkl")))


def with_pickled(content: bytes, changed: bytes) -> bytes:
    """The file with another description of the tensors, its checksums in order."""
    made = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(made, "w") as new:
        for name in old.namelist():
            new.writestr(name, changed if name.endswith("data.pkl") else old.read(name))
    return made.getvalue()


def test_checkpoints(tmp_path: Path, inputs: Callable[[int], int]) -> None:
    path = tmp_path / "best.pt"
    net = build_network(SMALL, 1, len(LABELS))
    save_checkpoint(Checkpoint(SMALL, LABELS, ("CT",), {"data": "a"}, net.state_dict(), {}), path)
    seed = path.read_bytes()

    def read(content: bytes) -> None:
        path.write_bytes(content)
        load_checkpoint(path).network()

    read(seed)
    feed(read, [seed], inputs(60))
    feed(lambda changed: read(with_pickled(seed, changed)), [pickled(seed)], inputs(60), seed=1)


def test_weights_to_start_from(tmp_path: Path, inputs: Callable[[int], int]) -> None:
    net = build_network(SMALL, 1, len(LABELS)).unet
    weights = {name: value for name, value in net.encoder.state_dict().items() if "index" not in name}
    path = tmp_path / "swin.pth"
    torch.save({"model": weights}, path)
    seed = path.read_bytes()

    def read(content: bytes) -> None:
        path.write_bytes(content)
        start_from(str(path), net, ("encoder",))

    read(seed)
    feed(lambda changed: read(with_pickled(seed, changed)), [pickled(seed)], inputs(60), seed=2)
