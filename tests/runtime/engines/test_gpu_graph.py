"""Graphs for GPUs are made once and kept; the FP16 graph only if its masks are the model's."""

import dataclasses
import importlib.util
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from parotid_seg.errors import InputError, ModelError, OutputError
from parotid_seg.models import DEFAULT_MODEL
from parotid_seg.runtime.engines.autotune import cache_folder
from parotid_seg.runtime.engines.engine_benchmark import EngineBenchmark
from parotid_seg.runtime.engines.model_file import read_model
from parotid_seg.runtime.engines.onnxruntime.onnxruntime_engine import DIFFERENT
from parotid_seg.runtime.engines.rewriting import gpu_graph, precision
from parotid_seg.runtime.engines.rewriting.gpu_graph import GpuGraph
from parotid_seg.runtime.tolerance import MaskDifference

pytestmark = pytest.mark.slow

HALF = GpuGraph(DEFAULT_MODEL, "fp16")
EVERYWHERE = np.ones((1, 2, 2), np.uint8)
FAR = MaskDifference(changed=9, changed_share=0.5, dsc=0.5, hd95_mm=9.0, volume_ml=9.0)


@pytest.fixture(autouse=True)
def own_cache(short_example: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_it_is_made_once_and_is_the_same_model_in_fp16(monkeypatch: pytest.MonkeyPatch) -> None:
    path = HALF.made()
    assert path == HALF.path
    assert path.parent == cache_folder() / "graphs"
    assert path.parent.stat().st_mode & 0o777 == 0o700
    found, expected = read_model(path).contract, read_model(DEFAULT_MODEL).contract
    kinds = Counter(weight.data_type for weight in onnx.load(path).graph.initializer)
    assert kinds[TensorProto.FLOAT16] > 100
    assert kinds[TensorProto.FLOAT] < 10
    assert (found.precision, found.verification["against"], found.verification["kept_in_fp32"]) == (
        "fp16", "parotid-ct.onnx", ["resampling"],
    )  # fmt: skip
    assert found.verification["dsc"] >= 0.998
    assert dataclasses.replace(found, **{name: getattr(expected, name) for name in DIFFERENT}) == expected

    def make(*_: object) -> bytes:
        raise InputError("made anew")

    monkeypatch.setattr(gpu_graph, "_half", make)
    assert HALF.made() == path
    content = path.read_bytes()
    for made, mode in ((content[:-1] + b"?", 0o600), (content, 0o666)):
        path.write_bytes(made)
        path.chmod(mode)
        with pytest.raises(InputError, match="made anew"):
            HALF.made()
    path.chmod(0o600)
    assert HALF.made() == path


def test_its_place_depends_on_what_makes_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    places = {HALF.path}
    (tmp_path / "m.onnx").write_bytes(b"another")
    places.add(GpuGraph(tmp_path / "m.onnx", "fp16").path)
    monkeypatch.setattr(gpu_graph, "RULES", gpu_graph.RULES + 1)
    places.add(HALF.path)
    monkeypatch.setattr("parotid_seg.system.metadata.version", lambda name: "9.9")
    places.add(HALF.path)
    places |= {GpuGraph(DEFAULT_MODEL, "fp16", True).path, GpuGraph(DEFAULT_MODEL, "fp32", True).path}
    assert len(places) == 6


def test_parts_stay_in_fp32_until_the_masks_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    differences = iter([FAR, FAR, dataclasses.replace(FAR, changed_share=0.0, dsc=1.0, hd95_mm=0.0, volume_ml=0.0)])
    monkeypatch.setattr(EngineBenchmark, "example_mask", lambda *_: EVERYWHERE)
    monkeypatch.setattr(EngineBenchmark, "difference", lambda *_: next(differences))
    assert read_model(HALF.made()).contract.verification["kept_in_fp32"] == ["resampling", "last layer", "softmax"]


def test_one_with_other_masks_is_neither_used_nor_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "FALLBACKS", precision.FALLBACKS[:1])
    monkeypatch.setattr(EngineBenchmark, "example_mask", lambda *_: EVERYWHERE)
    monkeypatch.setattr(EngineBenchmark, "difference", lambda *_: FAR)
    with pytest.raises(ModelError) as raised:
        HALF.made()
    assert str(raised.value) == f"other masks of the example scan on the CPU: {FAR}"
    assert not list(cache_folder().rglob("*.onnx"))


def test_what_cannot_be_compared_is_not_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(EngineBenchmark, "example_mask", lambda *_: np.zeros((1, 2, 2), np.uint8))
    with pytest.raises(InputError, match="nothing is found in the example scan to check the FP16 graph on"):
        HALF.made()


def test_weights_beyond_fp16_are_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def lower(*_: object) -> None:
        raise ModelError("weight x: found 1e+06, more than float16 can hold")

    monkeypatch.setattr(EngineBenchmark, "example_mask", lambda *_: EVERYWHERE)
    monkeypatch.setattr(precision, "lower", lower)
    with pytest.raises(ModelError, match=r"^weight x: found 1e\+06, more than float16 can hold$"):
        HALF.made()


def test_without_onnx_it_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"^onnx, which makes the graph, is not installed: pip install onnx$"):
        HALF.made()


def test_a_cache_that_cannot_be_written_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cache").write_text("a file")
    monkeypatch.setattr(gpu_graph, "_half", lambda *_: b"")
    with pytest.raises(OutputError, match="cannot be made a folder that only its owner can write to"):
        HALF.made()


def test_a_fused_graph_is_the_same_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(EngineBenchmark, "example_mask", lambda *_: EVERYWHERE)
    expected = read_model(DEFAULT_MODEL).contract
    for wanted, operands in (("fp32", TensorProto.FLOAT), ("fp16", TensorProto.FLOAT16)):
        path = GpuGraph(DEFAULT_MODEL, wanted, fused=True).made()
        found = read_model(path).contract
        assert (found.precision, found.verification) == (wanted, {})
        assert dataclasses.replace(found, **{name: getattr(expected, name) for name in DIFFERENT}) == expected
        graph = onnx.load(path).graph
        attention = [node for node in graph.node if node.op_type == "MultiHeadAttention"]
        kinds = {weight.name: weight.data_type for weight in graph.initializer}
        assert {kinds[node.input[3]] for node in attention} == {operands}
    assert HALF.path.exists(), "the FP16 graph, that it is made from"
    monkeypatch.setattr(gpu_graph, "_fused", lambda *_: pytest.fail("made anew"))
    assert GpuGraph(DEFAULT_MODEL, "fp16", fused=True).made() == path
