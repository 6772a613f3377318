"""What export writes into a model file so that any change of it, and a mix-up of files, is found."""

from __future__ import annotations

import torch

from parotid_seg.export.onnx_file import weights_hash


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
