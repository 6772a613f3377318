"""The first use of `infer` as benchmarks/gpu reports it: kept as far as it comes."""

import argparse
import json
import logging
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
from gpu import bench, first_use, table
from gpu.record import Record

from parotid_seg.errors import ModelError

FIRST_USE = {
    "imports_s": 1.0,
    "graphs_s": {"fp16": 3.0, "fp32 fused": 0.5},
    "choice_s": 8.0,
    "again_s": 0.6,
    "ran": "onnxruntime with CUDA graphs on cuda:0 in fp16",
    "batch_size": 64,
    "said": ["onnxruntime CUDA FP16: 900 samples/s, batches of 64"],
    "samples_a_second": {"onnxruntime CUDA FP16": 900.0, "onnxruntime CUDA FP32": 300.0},
    "refused": {"onnxruntime CUDA FP16 fused": "other masks of the example scan"},
}


def test_the_first_use_is_told(tmp_path: Path) -> None:
    lines = table._first_use_lines(FIRST_USE)
    assert "| onnxruntime CUDA FP16 | 900 |  |" in lines
    assert "| onnxruntime CUDA FP16 fused |  | other masks of the example scan |" in lines
    assert "| comparing and timing them | 8.0 |" in lines


def test_a_first_use_is_kept_as_far_as_it_comes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A graph that cannot be made is named, and the choice is made without it; what was stored tells of all."""
    loaded, so_far = [], tmp_path / "so_far.json"

    def graph_file(name: str, _: Path) -> Path:
        if name == "fp16":
            raise ModelError("other masks")
        assert json.loads(so_far.read_text())["graphs_s"]
        return tmp_path

    def load_backend(path: Path, device: str, say: Any = print, **_: object) -> object:
        loaded.append((path, device))
        logging.getLogger("parotid_seg.runtime").info("measuring %s", "it")
        found = json.loads(so_far.read_text())
        assert found["said"][-1].endswith(" s: measuring it")
        assert "again_s" not in found
        (tmp_path / "engines").mkdir(exist_ok=True)
        kept = {"samples_per_s": {"FP32": 9.0}, "refused": {"FP16": "other masks"}}
        (tmp_path / "engines" / "choice.json").write_text(json.dumps(kept))
        return SimpleNamespace(ran="it", batch_size=7, close=lambda: None)

    monkeypatch.setattr(first_use, "graph_file", graph_file)
    monkeypatch.setattr(first_use, "load_backend", load_backend)
    monkeypatch.setattr(first_use, "cache_folder", lambda: tmp_path)
    first_use.report(time.monotonic() - 5, "model.onnx", "cuda", str(so_far))
    found = json.loads(so_far.read_text())
    assert loaded == [(Path("model.onnx"), "cuda")] * 2
    assert list(found["graphs_s"]) == ["fp16", "fp32 fused", "fp16 fused"]
    assert [line.partition(" s: ")[2] for line in found["said"]] == ["fp16: other masks", *["measuring it"] * 2]
    assert (found["ran"], found["batch_size"]) == ("it", 7)
    assert (found["samples_a_second"], found["refused"]) == ({"FP32": 9.0}, {"FP16": "other masks"})
    assert found["imports_s"] == pytest.approx(5, abs=1)
    assert {"choice_s", "again_s"} < set(found)


def test_a_first_use_is_a_process_with_an_empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it has kept is there when it fails or its time is over."""
    asked = []

    def started(command: list[str], env: dict[str, str], **_: object) -> subprocess.CompletedProcess[str]:
        asked.append(Path(env["XDG_CACHE_HOME"]))
        assert not list(asked[-1].iterdir())
        assert command[-3:-1] == ["model.onnx", "cuda"]
        Path(command[-1]).write_text('{"ran": "it"}')
        if len(asked) == 3:
            raise subprocess.TimeoutExpired(command, 9.0)
        return subprocess.CompletedProcess(command, len(asked) - 1, "", "no\nkernels")

    monkeypatch.setattr(subprocess, "run", started)
    found = [first_use.first_use(Path("model.onnx"), "cuda", tmp_path, 9.0) for _ in range(3)]
    reasons = ["it ended with status 1: no kernels", "stopped after 9 s"]
    assert found == [{"ran": "it"}, *({"ran": "it", "stopped": reason} for reason in reasons)]
    assert not asked[0].exists()
    assert not list(tmp_path.iterdir())


def test_the_figures_of_a_first_use_that_was_ended_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a process that was killed, of one that is stopped, and if the next one does not come so far."""
    options = argparse.Namespace(fp32=Path("model.onnx"), device="cuda", out=tmp_path)
    kept = Record(tmp_path, 1.0, {})
    results: list[dict[str, Any]] = [{"imports_s": 1.0, "stopped": "late"}, FIRST_USE]
    monkeypatch.setattr(bench, "first_use", lambda *_: results.pop(0))
    (tmp_path / first_use.SO_FAR).write_text(json.dumps({"imports_s": 2.0, "graphs_s": {"fp16": 3.0}}))
    bench.measure_first_use(options, kept)
    assert kept.content["first-use"] == {"imports_s": 2.0, "graphs_s": {"fp16": 3.0}, "stopped": "ended from outside"}
    assert kept.out_of_time
    read = (tmp_path / "gpu.md").read_text()
    assert "Not complete: ended from outside." in read
    assert "| making the graphs (fp16 3.0) | 3.0 |" in read
    assert "- the rest of the first use: late" in read
    for _ in range(2):
        bench.measure_first_use(options, kept)
    assert kept.content["first-use"] == FIRST_USE
