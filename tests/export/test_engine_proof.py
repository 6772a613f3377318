"""The gate for engines, on a GPU that is none, and plain words where there is none at all."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import nibabel
import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from parotid_seg.errors import ModelError
from parotid_seg.export import engine_proof as module
from parotid_seg.export import verified_export as export_module
from parotid_seg.export.build_engine import build_engine
from parotid_seg.export.export_options import ExportOptions
from parotid_seg.export.parity import Parity
from parotid_seg.records import write_record
from parotid_seg.runtime.engines.engine_file import BatchProfile, EngineOptions, read_sidecar, sidecar_path
from parotid_seg.train.network import ParotidNet
from tests.export.small_model import CONTRACT, write_small_model
from tests.fakes import fake_cuda
from tests.fakes.fake_gpu import FakeGpu

BATCH = BatchProfile(1, 4, 8)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> FakeGpu:
    return fake_cuda.install(monkeypatch)


@pytest.fixture
def small(tmp_path: Path) -> Path:
    return write_small_model(tmp_path / "small.onnx")


@pytest.fixture
def parity(small: Path, tmp_path: Path) -> Parity:
    """The small model stands for the trained one."""
    session = onnxruntime.InferenceSession(small)
    (tmp_path / "scans").mkdir()
    rng = np.random.default_rng(0)
    voxels = np.full((40, 48, 19), -1000, np.int16)
    voxels[8:30, 10:40, 3:16] = rng.normal(40, 15, (22, 30, 13))
    voxels[8:12, 10:40, 3:16] = rng.normal(-105, 15, (4, 30, 13))  # fat
    nibabel.save(nibabel.Nifti1Image(voxels, np.diag([4.0, 4.0, 3.0, 1.0])), tmp_path / "scans" / "a.nii.gz")

    def net(**inputs: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(session.run(["labels"], {name: each.numpy() for name, each in inputs.items()})[0])

    return Parity(cast(ParotidNet, net), CONTRACT, tmp_path / "scans", BATCH)


def other_labels(path: Path) -> bytes:
    """The small model, with another sign for its gland."""
    model = onnx.load(path)
    weight = next(each for each in model.graph.initializer if each.name == "weight")
    weight.CopyFrom(onnx.numpy_helper.from_array(-onnx.numpy_helper.to_array(weight), "weight"))
    return model.SerializeToString()


def export_engine(small: Path, parity: Parity, said: list[Any] | None = None) -> dict[str, Any]:
    """The end of `export`: an engine of a model that has passed."""
    record: dict[str, Any] = {}
    source: Any = SimpleNamespace(parity=parity, work={})
    proof: Any = SimpleNamespace(precision="fp16", network=0)
    options = ExportOptions(engine="tensorrt-rtx", batch_sizes=(1, 4, 8))
    report = [].append if said is None else said.append
    try:
        export_module._add_engine(small, options, proof, source, record, report, None)
    finally:
        write_record(record, small.with_suffix(".parity.json"))
    return record["engine"]


@pytest.fixture(autouse=True)
def uncounted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counting multiply-adds is another test's."""
    monkeypatch.setattr(export_module, "describe_network", lambda *_: [])
    monkeypatch.setattr(export_module, "of_layers", lambda *_: SimpleNamespace(macs={}))


def test_an_engine_of_the_trained_model_passes_and_its_sidecar_says_so(
    gpu: FakeGpu, small: Path, parity: Parity
) -> None:
    said: list[str] = []
    record = export_engine(small, parity, said)
    engine = small.with_suffix(".engine")
    verification = read_sidecar(engine).verification
    assert (verification["with"], verification["on"]) == ("TensorRT-RTX 1.7.1", "cuda:0 NVIDIA RTX 4000 Ada")
    assert (verification["scans"], verification["comparisons"], verification["lowest_dsc"]) == (1, 5, 1.0)
    assert record["failure"] == ""
    assert {row["batch_size"] for row in record["rows"]} == {1, 4, 8}
    assert json.loads(small.with_suffix(".parity.json").read_text())["engine"]["ran"]["device"] == verification["on"]
    assert sum(line.startswith("TensorRT-RTX 1.7.1 on cuda:0") and line.endswith("passed") for line in said) == 5
    assert sorted(path.name for path in small.parent.glob("*small*")) == [
        "small.engine",
        "small.engine.json",
        "small.onnx",
        "small.parity.json",
    ]
    assert (gpu.used, gpu.retained) == (0, 0)


def test_an_engine_of_other_masks_does_not_appear_nor_stays_an_older_one(
    gpu: FakeGpu, small: Path, parity: Parity, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = small.with_suffix(".engine")
    export_engine(small, parity)
    monkeypatch.setattr(fake_cuda.FakeBuild, "run", lambda *_: fake_cuda.PLAN + other_labels(small))
    with pytest.raises(
        ModelError, match=r"small\.engine: not written: the engine differs from the trained model: "
    ) as caught:
        export_engine(small, parity)
    assert str(caught.value).endswith(f"; see {small.with_suffix('.parity.json')}")
    assert "\n" not in str(caught.value)
    assert not engine.exists()
    assert not sidecar_path(engine).exists()
    assert not list(small.parent.glob(".partial*"))
    record = json.loads(small.with_suffix(".parity.json").read_text())["engine"]
    assert record["failure"]
    assert not all(row["passed"] for row in record["rows"])
    assert (gpu.used, gpu.retained) == (0, 0)


@pytest.mark.parametrize("why", ["no GPU", "no PyCUDA"])
def test_an_engine_that_cannot_be_run_here_says_so(
    gpu: FakeGpu, small: Path, parity: Parity, monkeypatch: pytest.MonkeyPatch, why: str
) -> None:
    said: list[str] = []
    if why == "no GPU":
        monkeypatch.setattr(module, "find_gpu", lambda: None)
    else:
        monkeypatch.setitem(sys.modules, "pycuda.driver", None)
    record = export_engine(small, parity, said)
    reason = {"no GPU": "no NVIDIA GPU found", "no PyCUDA": "pip install 'parotid-seg[rtx-run]'"}[why]
    assert any(line.startswith("engine: not run here, its masks are not compared: ") for line in said)
    assert record["not_run"].endswith(reason)
    assert read_sidecar(small.with_suffix(".engine")).verification == {"not_run": record["not_run"]}
    assert gpu.runtimes == []


def test_an_engine_that_fails_on_the_way_is_not_left(gpu: FakeGpu, small: Path, parity: Parity) -> None:
    gpu.limit = 1
    with pytest.raises(Exception, match="OutOfMemory"):
        export_engine(small, parity)
    assert not list(small.parent.glob("*.engine*"))


def test_nothing_is_claimed_of_an_engine_that_nobody_asked_about(gpu: FakeGpu, small: Path) -> None:
    out = small.with_suffix(".engine")
    build_engine(small, out, library="tensorrt", profile=BATCH, options=EngineOptions())
    assert read_sidecar(out).verification == {}
