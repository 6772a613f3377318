"""A model file as the start of a training: the same network again, or a reason why not."""

import dataclasses
import hashlib
from collections.abc import Iterator
from pathlib import Path

import nibabel
import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from torch import nn

from parotid_seg.contract import METADATA_KEY, Contract
from parotid_seg.errors import InputError
from parotid_seg.models import DEFAULT_MODEL, PACKAGED
from parotid_seg.runtime.engines.base import labels_of
from parotid_seg.runtime.engines.load import load_backend
from parotid_seg.scan.chunks import Inputs, chunks
from parotid_seg.scan.nifti import read_nifti
from parotid_seg.train.checkpoint import build_network
from parotid_seg.train.config import TrainConfig
from parotid_seg.train.model_weights import network_weights, read_model_weights, unfold_norms
from parotid_seg.train.network import ParotidNet
from parotid_seg.train.settings import load_config
from parotid_seg.train.transfer import start_from, training_of
from tests.command_line import Run

GLANDS = ("background", "parotid_left", "parotid_right")


@pytest.fixture(scope="module")
def chunk(head: nibabel.Nifti1Image, tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    """Some slices of the example as the model takes them."""
    path = tmp_path_factory.mktemp("scan") / "head.nii.gz"
    nibabel.save(head, path)
    window = np.array([[-200.0, 300.0]], np.float32)
    return dict(next(chunks(read_nifti(path).volume, window, TrainConfig().grid, 12)).inputs)


@pytest.fixture
def net() -> ParotidNet:
    return build_network(TrainConfig(), 1, 3).eval()


@torch.no_grad()
def labels(net: ParotidNet, chunk: Inputs) -> np.ndarray:
    result = net(**{name: torch.from_numpy(array) for name, array in chunk.items()})
    assert isinstance(result, torch.Tensor)
    return result.numpy()


@torch.no_grad()
def images(net: ParotidNet, chunk: Inputs) -> torch.Tensor:
    names = ("slices", "window", "rows", "columns", "neighbours")
    found = net.to_grid(*(torch.from_numpy(chunk[name]) for name in names))
    assert isinstance(found, torch.Tensor)
    return found


def test_the_packaged_model_starts_as_it_is_and_its_norms_get_a_scale(net: ParotidNet, chunk: Inputs) -> None:
    expected = labels_of(load_backend(DEFAULT_MODEL, "onnxruntime", "cpu"), chunk)
    assert len(np.unique(expected)) == 3
    transfer = start_from(
        PACKAGED, net.unet, ("encoder", "decoder"), labels=("background", "parotid_left", "parotid_right")
    )
    assert (transfer.random, transfer.left_out) == ((), {})
    np.testing.assert_array_equal(labels(net, chunk), expected)
    drawn = images(net, chunk)
    with torch.no_grad():
        before = net.unet(drawn)
        folded = _in_training(net, drawn)
        unfold_norms(net.unet, [drawn])
        np.testing.assert_array_equal(labels(net, chunk), expected)
        torch.testing.assert_close(net.unet(drawn), before, atol=2e-3, rtol=0)
        assert not net.unet.training
        torch.testing.assert_close(_in_training(net, drawn), before, atol=0.05, rtol=0.01)
        assert (folded - before).abs().max() > 1, "without a scale, training would begin with another network"


def _in_training(net: ParotidNet, drawn: torch.Tensor) -> torch.Tensor:
    """The logits with batch norms as in training, which take mean and variance of the batch."""
    state = {name: value.clone() for name, value in net.state_dict().items()}
    norms = [module for module in net.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.train()
    logits: torch.Tensor = net.unet(drawn)
    net.eval().load_state_dict(state)
    return logits


def test_other_labels_keep_their_new_classifier() -> None:
    net = build_network(TrainConfig(), 1, 5)
    transfer = start_from(PACKAGED, net.unet, ("encoder", "decoder"), labels=("background", "a", "b", "c", "d"))
    assert transfer.random == ("classify.weight", "classify.bias")


def test_the_scans_of_the_packaged_model_are_recorded() -> None:
    """Those of its last training, and the 9 without contours of the third, on whose weights that one went on."""
    training = training_of(PACKAGED)
    assert training is not None
    assert (len(training["scans"]), training["train_patients"]) == (194, 185)
    assert training["scans_complete"] is True


def changed(path: Path) -> Iterator[tuple[Path, str]]:
    """Files that are no model to start from, and why."""
    content = DEFAULT_MODEL.read_bytes()
    (path / "text.onnx").write_text("text")
    yield path / "text.onnx", "not an ONNX model"
    damaged = bytearray(content)
    damaged[len(damaged) // 2] ^= 1
    (path / "damaged.onnx").write_bytes(damaged)
    yield path / "damaged.onnx", "its graph is not the exported one"
    model = onnx.load_model_from_string(content)
    contract = Contract.from_json({each.key: each.value for each in model.metadata_props}[METADATA_KEY], where="")
    helper.set_model_props(model, {METADATA_KEY: dataclasses.replace(contract, precision="int8").to_json()})
    onnx.save(model, path / "int8.onnx")
    yield path / "int8.onnx", "quantised to INT8"
    del model.metadata_props[:]
    onnx.save(model, path / "bare.onnx")
    yield path / "bare.onnx", "without parotid-seg's contract"
    model = onnx.load_model_from_string(content)
    weights = model.graph.initializer[0]
    weights.ClearField("raw_data")
    weights.data_location = TensorProto.EXTERNAL
    weights.external_data.add(key="location", value="elsewhere.bin")
    graph_sha256 = hashlib.sha256(model.graph.SerializeToString(deterministic=True)).hexdigest()
    helper.set_model_props(model, {METADATA_KEY: dataclasses.replace(contract, graph_sha256=graph_sha256).to_json()})
    (path / "external.onnx").write_bytes(model.SerializeToString())
    yield path / "external.onnx", "its weights lie in another file"
    yield path / "gone.onnx", "expected scratch, packaged, imagenet or a file"


def test_what_is_no_start_is_named(net: ParotidNet, tmp_path: Path) -> None:
    for path, words in changed(tmp_path):
        with pytest.raises(InputError, match=words) as error:
            start_from(str(path), net.unet, ("encoder",))
        assert str(path) in str(error.value)


def test_a_changed_contract_is_refused_by_the_command(command: Run, balls: Path, tmp_path: Path) -> None:
    content = DEFAULT_MODEL.read_bytes()
    assert content.count(b"-200.0") == 1
    (tmp_path / "changed.onnx").write_bytes(content.replace(b"-200.0", b"-100.0"))
    done = command("train", balls, "--out", tmp_path / "run", "--init", tmp_path / "changed.onnx")
    assert done.returncode == 1
    assert "its seal, a hash over contract and graph, does not match" in done.stderr
    assert not (tmp_path / "run").exists()


def test_a_network_of_other_sizes(small_config: Path) -> None:
    small = build_network(load_config("compact", small_config), 1, 3).unet
    with pytest.raises(InputError, match=r"--init packaged: its network has other sizes .* or its best.pt"):
        network_weights(PACKAGED, read_model_weights(PACKAGED), small)
    sequences = build_network(TrainConfig(), 3, 3).unet
    with pytest.raises(InputError, match="--init packaged: its network has other sizes"):
        network_weights(PACKAGED, read_model_weights(PACKAGED), sequences)


def test_onnx_is_named_where_it_is_missing(net: ParotidNet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "onnx", None)
    with pytest.raises(InputError, match=r"needs the package onnx: pip install 'parotid-seg\[train,export\]'"):
        start_from(PACKAGED, net.unet, ("encoder",))
