"""Which engines could run a model: the files beside it, the libraries that load, and the device."""

import dataclasses
import json
import pickle
from pathlib import Path
from typing import Any

import pytest

from parotid_seg.errors import InputError
from parotid_seg.files import hash_file
from parotid_seg.runtime.engines import openvino
from parotid_seg.runtime.engines.autotune import Candidate
from parotid_seg.runtime.engines.load import facts_of
from parotid_seg.runtime.engines.onnxruntime.onnxruntime_engine import variant
from parotid_seg.runtime.engines.registry import Request, candidates
from parotid_seg.runtime.engines.rewriting.gpu_graph import GpuGraph
from tests.runtime.engines.stand_ins import CONTRACT, write_model


@pytest.mark.parametrize(
    ("told", "words"),
    [
        ({"precision": "int8"}, None),
        ({"precision": "int8", "weights": "fp16", "cost": {}}, None),
        ({"precision": "fp16"}, "not the model of m.onnx in INT8"),
        (
            {"precision": "int8", "labels": ("background", "a", "b"), "calibrations": ()},
            "not the model of m.onnx in INT8",
        ),
        ({"precision": "int8", "training": {"data": "another"}}, "not the model of m.onnx in INT8"),
        ({"precision": "int8", "verification": {}}, "not verified"),
    ],
)
def test_a_variant_beside_the_model_is_used_if_it_is_the_same_model(
    tmp_path: Path, said: list[str], told: dict[str, Any], words: str | None
) -> None:
    path = write_model(tmp_path / "m.int8.onnx", **told)
    found = variant(tmp_path / "m.onnx", CONTRACT, "int8", said.append)
    assert found == (None if words else path)
    assert all((words or "") in line and str(path) in line for line in said)
    assert len(said) == bool(words)


def test_a_variant_that_was_changed_is_told(tmp_path: Path, said: list[str]) -> None:
    path = write_model(tmp_path / "m.int8.onnx", precision="int8")
    path.write_bytes(path.read_bytes().replace(b"graph", b"grape", 1))
    assert variant(tmp_path / "m.onnx", CONTRACT, "int8", said.append) is None
    assert "the file was changed or damaged" in said[0]


def test_no_variant_is_no_word(tmp_path: Path, said: list[str]) -> None:
    assert variant(tmp_path / "m.onnx", CONTRACT, "int8", said.append) is None
    assert not said


def names_of(found: list[Candidate]) -> list[str]:
    return [candidate.name for candidate in found]


def test_engines_on_the_cpu(
    tmp_path: Path, said: list[str], openvino_there: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_model(tmp_path / "m.int8.onnx", precision="int8")
    write_model(tmp_path / "m.fp16.onnx", precision="fp16")
    model = tmp_path / "m.onnx"
    assert names_of(candidates(Request(model, CONTRACT, None, None, "labels", said.append))) == [
        "onnxruntime FP32", "onnxruntime INT8", "OpenVINO FP32", "OpenVINO BF16",
    ]  # fmt: skip
    quantised = dataclasses.replace(CONTRACT, precision="int8")
    alone = candidates(Request(tmp_path / "m.int8.onnx", quantised, None, None, "labels", said.append))
    assert names_of(alone) == ["onnxruntime INT8"], "its masks are proven for onnxruntime only"
    assert not said

    def broken() -> None:
        raise InputError("OpenVINO does not load")

    monkeypatch.setattr(openvino, "computes_bf16", broken)
    assert "OpenVINO FP32" not in names_of(candidates(Request(model, CONTRACT, None, None, "labels", said.append)))
    assert said == ["OpenVINO is not used: OpenVINO does not load"]


def test_engines_on_the_gpu(tmp_path: Path, said: list[str], cuda: None, monkeypatch: pytest.MonkeyPatch) -> None:
    model = write_model(tmp_path / "m.onnx")
    request = Request(model, CONTRACT, 1, None, "labels", said.append)
    found = candidates(request)
    assert [(each.name.removeprefix("onnxruntime CUDA "), each.precision) for each in found] == [
        ("FP32", "fp32"), ("FP16", "fp16"), ("FP32 fused", "fp32"), ("FP16 fused", "fp16"),
    ]  # fmt: skip
    paths = [GpuGraph(model, "fp16").path, GpuGraph(model, "fp32", True).path, GpuGraph(model, "fp16", True).path]
    assert [each.file for each in found] == [model, *paths]
    assert not any(path.exists() for path in paths), "they are made when they are loaded"
    monkeypatch.setattr(GpuGraph, "made", lambda self: self.path)
    for each, path in zip(found[1:], paths, strict=True):
        made: Any = pickle.loads(pickle.dumps(each.make))()
        assert (made.file, made.how) == (path, {"device": 1, "output": "labels"})
        assert made.model_sha256 == hash_file(model)
        assert made.ran.backend.endswith(", fused operators") == ("fused" in each.name)


def test_engines_on_the_gpu_for_files_in_fp16_and_int8(tmp_path: Path, said: list[str], cuda: None) -> None:
    model, half = write_model(tmp_path / "m.onnx"), write_model(tmp_path / "m.fp16.onnx", precision="fp16")
    request = Request(model, CONTRACT, 1, None, "labels", said.append)
    found = candidates(request)
    fused = [GpuGraph(model, "fp32", True).path, GpuGraph(half, "fp16", True).path]
    assert [each.file for each in found] == [model, half, *fused]
    loaded: Any = found[1].make()
    assert (loaded.file, loaded.how) == (half, {"device": 1, "output": "labels"})
    by_precision = {
        precision: names_of(
            candidates(dataclasses.replace(request, contract=dataclasses.replace(CONTRACT, precision=precision)))
        )
        for precision in ("fp16", "int8")
    }
    assert by_precision == {
        "fp16": ["onnxruntime CUDA FP16", "onnxruntime CUDA FP16 fused"],
        "int8": ["onnxruntime CUDA INT8"],
    }
    assert not said


@pytest.mark.usefixtures("cuda", "without_home")
def test_without_a_home_folder_no_graphs_are_made(tmp_path: Path, said: list[str]) -> None:
    model = write_model(tmp_path / "m.onnx")
    assert names_of(candidates(Request(model, CONTRACT, 0, None, "labels", said.append))) == ["onnxruntime CUDA FP32"]
    assert said[0].startswith("no graphs are made for the GPU: this user has no home folder")


def test_a_choice_depends_on_the_files_and_the_versions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = write_model(tmp_path / "m.onnx")
    first = facts_of(model)
    write_model(tmp_path / "m.int8.onnx", precision="int8")
    second = facts_of(model)
    monkeypatch.setattr("parotid_seg.system.metadata.version", lambda name: "9.9")
    third = facts_of(model)
    assert len({json.dumps(facts) for facts in (first, second, third)}) == 3
