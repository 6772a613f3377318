"""What export writes into a model file so that any change of it, and a mix-up of files, is found."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import onnx
import torch

from parotid_seg.contract import SCHEMA_VERSION, UNSEALED_VERSION
from parotid_seg.export.onnx_file import weights_hash, with_contract
from parotid_seg.runtime.engines.model_file import read_model, seal_of, sealed
from tests.export.small_model import CONTRACT, write_small_model


def test_a_file_of_an_older_version_gets_its_seal_when_it_is_written_again(tmp_path: Path) -> None:
    path = write_small_model(tmp_path / "m.onnx")
    old = dataclasses.replace(CONTRACT, schema_version=UNSEALED_VERSION)
    path.write_bytes(with_contract(onnx.load(path), old))
    content, contract = read_model(path)
    assert contract.schema_version == SCHEMA_VERSION
    assert sealed(content) == content
    assert seal_of(content + b"\x28\x01") != seal_of(content)


def test_the_hash_of_weights_tells_checkpoints_apart() -> None:
    weights = {"a": torch.arange(6.0).reshape(2, 3), "steps": torch.tensor(3)}
    found = weights_hash(weights)
    assert weights_hash(dict(reversed(weights.items()))) == found
    others = [
        weights | {"a": weights["a"] + 1},
        weights | {"a": weights["a"].reshape(3, 2)},
        weights | {"a": weights["a"].double()},
        weights | {"b": weights["a"]},
        {"b": weights["a"], "steps": weights["steps"]},
    ]
    assert found not in map(weights_hash, others)
    assert len(set(map(weights_hash, others))) == len(others)
