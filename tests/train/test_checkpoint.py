"""Checkpoints that are not what `train` wrote: one line that names the field, and nothing in them is run."""

from __future__ import annotations

import dataclasses
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from parotid_seg.contract import Grid
from parotid_seg.errors import InputError
from parotid_seg.train.checkpoint import FORMAT, Checkpoint, build_network, load_checkpoint, save_checkpoint
from parotid_seg.train.config import NetworkConfig, TrainConfig
from parotid_seg.train.transfer import start_from

pytestmark = pytest.mark.slow


SMALL = TrainConfig(
    grid=Grid(size=16, offsets_mm=(0.0,)),
    network=NetworkConfig(embed_dim=8, depths=(1, 1), heads=(1, 1), window=2, stem=(4, 4)),
)
LABELS = ("background", "parotid_left")


@pytest.fixture(scope="module")
def weights() -> dict[str, Any]:
    return build_network(SMALL, 1, len(LABELS)).state_dict()


@pytest.fixture
def path(tmp_path: Path, weights: dict[str, Any]) -> Path:
    save_checkpoint(Checkpoint(SMALL, LABELS, ("CT",), {"data": "a", "epochs": 3}, weights, {}), tmp_path / "best.pt")
    return tmp_path / "best.pt"


def changed(path: Path, **changes: Any) -> None:
    """Write a checkpoint's content with some fields replaced; None removes one."""
    content = {**torch.load(path, weights_only=True), **changes}
    torch.save({name: value for name, value in content.items() if value is not None}, path)


def test_there_and_back(path: Path, weights: dict[str, Any]) -> None:
    found = load_checkpoint(path)
    assert (found.config, found.labels, found.channels) == (SMALL, LABELS, ("CT",))
    assert found.training == {"data": "a", "epochs": 3}
    assert all(torch.equal(value, weights[name]) for name, value in found.network().state_dict().items())


CONFIG = dataclasses.asdict(SMALL)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"labels": 5}, "at `$.labels`"),
        ({"labels": ["background", 5]}, "at `$.labels[1]`"),
        ({"labels": None}, "missing required field `labels`"),
        ({"channels": None}, "missing required field `channels`"),
        ({"channels": "CT"}, "at `$.channels`"),
        ({"config": None}, "missing required field `config`"),
        ({"config": [1]}, "at `$.config`"),
        ({"config": {**CONFIG, "seed": "0"}}, 'config: seed: found "0", expected a whole number'),
        ({"config": {**CONFIG, "seed": True}}, "config: seed: found true, expected a whole number"),
        ({"config": {**CONFIG, "stages": [1]}}, "config: stages: "),
        ({"config": {**CONFIG, "stages": 1}}, "config: stages: "),
        ({"config": {**CONFIG, "grid": 1}}, "config: grid: found 1, expected a table"),
        ({"config": {**CONFIG, "grid": {"offsets_mm": ["a"]}}}, "config: grid.offsets_mm: "),
        ({"config": {**CONFIG, "window_hu": [float("nan"), 1.0]}}, "expected finite numbers"),
        ({"config": {**CONFIG, "network": {"heads": [0, 0]}}}, "config: network.heads: found [0, 0]"),
        ({"config": {**CONFIG, "network": {"embed_dim": 2**40}}}, "config: network.embed_dim: found "),
        ({"config": {**CONFIG, "network": {"depths": [64, 1]}}}, "network.depths: found "),
        ({"config": {**CONFIG, "surprise": 1}}, "config: surprise: unknown key"),
        ({"training": None}, "missing required field `training`"),
        ({"training": []}, "at `$.training`"),
        ({"training": {"dsc": float("nan")}}, "training: found what JSON cannot hold"),
        ({"training": {"dsc": torch.zeros(1)}}, "training: found what JSON cannot hold"),
        ({"progress": 3}, "at `$.progress`"),
        ({"weights": None}, "weights: found NoneType, expected tensors by name"),
        ({"weights": [torch.zeros(1)]}, "weights: found list, expected tensors by name"),
        ({"weights": {"a": 1}}, "weights: found int by str"),
        ({"weights": {1: torch.zeros(1)}}, "weights: found Tensor by int"),
        ({"weights": {"a": torch.zeros(2, 2).to_sparse()}}, "found 'torch._utils._rebuild_sparse_tensor' in it"),
        ({"surprise": 1}, "unknown field `$.surprise`"),
        ({"format": "parotid-seg checkpoint 0"}, f"found format 'parotid-seg checkpoint 0', expected {FORMAT!r}"),
        ({"format": 5}, "found format 'int'"),
    ],
)
def test_missing_and_wrong_fields_are_one_line(path: Path, changes: dict[str, Any], words: str) -> None:
    changed(path, **changes)
    with pytest.raises(InputError) as caught:
        load_checkpoint(path)
    assert words in caught.value.reason
    assert caught.value.path == path
    assert "\n" not in str(caught.value)


def test_a_training_record_that_holds_itself(path: Path) -> None:
    training: dict[str, Any] = {}
    training["again"] = training
    changed(path, training=training)
    with pytest.raises(InputError, match="within itself"):
        load_checkpoint(path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda w: w | {next(iter(w)): torch.zeros(3)}, r"found \(3,\) of torch.float32, expected"),
        (lambda w: {name: value.double() for name, value in w.items()}, "of torch.float64, expected"),
        (lambda w: w | {"more": torch.zeros(1)}, "found the weight 'more', which its network does not have"),
        (lambda w: dict(list(w.items())[1:]), "expected those of a whole model"),
    ],
    ids=["shape", "dtype", "unknown", "missing"],
)
def test_weights_of_another_network_are_one_line(
    path: Path, weights: dict[str, Any], change: Callable[..., Any], words: str
) -> None:
    changed(path, weights=change(dict(weights)))
    with pytest.raises(InputError, match=words):
        load_checkpoint(path).network()


def test_a_network_that_its_weights_do_not_fill_is_not_built(path: Path) -> None:
    network = {"embed_dim": 4096, "depths": (2,) * 6, "heads": (1,) * 6}
    changed(path, config={**CONFIG, "grid": {"size": 2048, "offsets_mm": (0.0,)}, "network": network})
    with pytest.raises(InputError, match="found"):
        load_checkpoint(path).network()


def test_compressed_content_is_refused(path: Path, tmp_path: Path) -> None:
    packed = tmp_path / "packed.pt"
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    with pytest.raises(InputError, match="its content is compressed"):
        load_checkpoint(packed)


def test_code_in_a_checkpoint_is_not_run(path: Path, tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Callable[..., None], tuple[str]]:
            return print, ("run",)

    torch.save({"format": FORMAT, "labels": Evil()}, path)
    with pytest.raises(InputError, match=r"found '__builtin__.print' in it"):
        load_checkpoint(path)


def test_foreign_weights_of_other_shapes_do_not_start_a_network(tmp_path: Path) -> None:
    net = build_network(SMALL, 1, len(LABELS)).unet
    own = net.encoder.state_dict()
    bad = {name: torch.zeros(3) for name in own if name.endswith("relative_position_bias_table")}
    torch.save({"model": bad}, tmp_path / "swin.pth")
    with pytest.raises(InputError, match=r"swin\.pth: (its weights do not fit|no weight fits)"):
        start_from(str(tmp_path / "swin.pth"), net, ("encoder",))
