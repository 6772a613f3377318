"""benchmarks/gpu/bench.py where there is no GPU: its bookkeeping, and a whole run of what there is on a CPU."""

import argparse
import contextlib
import gzip
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
from typing import Any

from gpu import bench, contenders, end_to_end, inputs, record, sweep
from gpu.record import Record, within

from parotid_seg.bench.selection import Rotation
from parotid_seg.contract import Contract, Grid
from parotid_seg.export.onnx_file import with_contract
from parotid_seg.runtime.engines.base import ExecutionInfo, labels_of
from parotid_seg.runtime.engines.onnxruntime.cpu import OnnxRuntimeBackend
from parotid_seg.runtime.engines.onnxruntime.cuda import OnnxRuntimeCudaBackend
from parotid_seg.runtime.engines.onnxruntime.io_binding import IoBindingSession
from parotid_seg.runtime.engines.onnxruntime.profile import Count
from parotid_seg.runtime.engines.rewriting.gpu_graph import _file
from parotid_seg.runtime.engines.rewriting.precision import FALLBACKS, lower, with_whole_weights
from parotid_seg.scan.chunks import Inputs
from parotid_seg.train.checkpoint import Checkpoint, build_network, save_checkpoint
from parotid_seg.train.config import NetworkConfig, TrainConfig
from tests.benchmarks.test_gpu_first_use import FIRST_USE
from tests.export.conftest import marked, run, translated  # noqa: F401
from tests.export.small_model import write_small_model
from tests.fakes import fake_cuda
from tests.runtime.engines.onnxruntime.host_stream import HostStream
from tests.runtime.engines.tensorrt.on_fake_gpu import inputs_of, scan
from tests.train.conftest import balls, small_config  # noqa: F401

SMALL = TrainConfig(
    grid=Grid(size=56, spacing_mm=4.0, offsets_mm=(-3.0, 0.0, 3.0)),
    network=NetworkConfig(embed_dim=16, depths=(1, 1), heads=(2, 4), window=7, stem=(8, 16)),
)


@pytest.fixture(scope="session")
def trained(run: Path) -> Path:  # noqa: F811
    """The folder of a training."""
    return run


@pytest.fixture
def untrained(tmp_path: Path) -> Path:
    """A network that was not trained: it finds an organ wherever its random weights say so."""
    torch.manual_seed(0)
    net = build_network(SMALL, 1, 2)
    bias = net.unet.classify.bias
    assert bias is not None
    torch.nn.init.zeros_(bias)
    path = tmp_path / "random.pt"
    save_checkpoint(Checkpoint(SMALL, ("background", "organ"), ("CT",), {}, net.state_dict(), {}), path)
    return path


def measured(scan: Path, checkpoint: Path, folder: Path, *more: int | str | Path) -> dict[str, Any]:
    given = ["--scans", scan, "--checkpoint", checkpoint, "--out", folder / "out", "--work", folder / "work"]
    given += ["--device", "cpu", "--repeats", 1, *more]
    with contextlib.suppress(SystemExit):  # the time was too short for something
        bench.main([str(word) for word in given])
    return json.loads((folder / "out" / "gpu.json").read_text())


def skipped(found: dict[str, Any]) -> str:
    return "\n".join(f"{each['what']}: {each['why']}" for each in found["skipped"])


@pytest.mark.slow
def test_everything_there_is_on_a_cpu(
    trained: Path,
    translated: tuple[onnx.ModelProto, Contract],  # noqa: F811
    balls: Path,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And what is measured is not measured again."""
    fp32 = tmp_path / "fp32.onnx"
    fp32.write_bytes(with_contract(*translated))
    scan, checkpoint = balls / "imagesTr" / "p4_0000.nii.gz", trained / "best.pt"
    half = tmp_path / "half.onnx"
    half.write_bytes(_file(lower(with_whole_weights(translated[0]), "fp16", FALLBACKS[0].holds), translated[1], {}))
    monkeypatch.setattr(bench, "first_use", lambda model, *_: FIRST_USE if model == fp32 else None)
    options = ("--fp32", fp32, "--fp16", half, "--workers", 1, "--many", 2, "--minutes", 20)
    found = measured(scan, checkpoint, tmp_path, *options, "--batch-sizes", 2, 500)
    rows = found["sweep"]["2"]["contenders"]
    assert set(rows) == {"torch fp32", "torch fp16", "onnxruntime fp32", "onnxruntime fp16"}
    assert rows["torch fp32"]["changed_voxels"] == 0
    assert all(row["changed_of_structures"] < 0.02 for row in rows.values())
    assert all(row["roofline"]["share"] > 0 for row in rows.values())
    assert rows["onnxruntime fp32"]["ran"]["device"] == "cpu"
    assert all(row["bytes_a_voxel"] > 3 for row in rows.values()), "an intensity, a label and matrices"
    assert json.loads(gzip.decompress((tmp_path / "out" / "trace.json.gz").read_bytes()))["traceEvents"]
    (row,) = found["end_to_end"]["rows"]
    assert row["scans_a_second"] > 0
    assert row["host_mib"] > 0
    assert "tensorrt-rtx fp16: needs a GPU" in skipped(found)
    assert "onnxruntime fp16 fused: needs a GPU" in skipped(found)
    assert "torch.compile with CUDA graphs: needs a GPU" in skipped(found)
    assert "batches of 500: no scan has so many slices" in skipped(found)
    read = (tmp_path / "out" / "gpu.md").read_text()
    assert "| onnxruntime fp16 |" in read
    assert "| making the graphs (fp16 3.0, fp32 fused 0.5) | 3.5 |" in read
    assert "no GPU: a trial on a CPU" in read
    monkeypatch.setattr(bench, "load_all", lambda *_: pytest.fail("measured again"))
    monkeypatch.setattr(bench, "first_use", lambda *_: pytest.fail("measured again"))
    again = measured(scan, checkpoint, tmp_path, *options, "--batch-sizes", 2)
    assert again["sweep"] == found["sweep"]
    assert again["end_to_end"] == found["end_to_end"]
    assert "500" not in skipped(again)


def test_without_time_everything_is_named_and_both_files_are_there(
    scans: Path, untrained: Path, tmp_path: Path
) -> None:
    found = measured(scans, untrained, tmp_path, "--minutes", 0)
    assert "first use: no time left for it" in skipped(found)
    assert "peaks by torch: no time left for it" in skipped(found)
    assert "scans: no time left for it" in (tmp_path / "out" / "gpu.md").read_text()


def test_the_time_until_which_it_may_measure(scans: Path, untrained: Path, tmp_path: Path) -> None:
    found = measured(scans, untrained, tmp_path, "--until", str(time.time() - 1), "--parts", "end-to-end")
    assert skipped(found) == "scans: no time left for it"


def test_figures_of_another_model_are_not_kept(tmp_path: Path) -> None:
    Record(tmp_path, 1.0, {"model": "one"}).add("load_s", {"one": 1.0})
    assert Record(tmp_path, 1.0, {"model": "one"}).content["load_s"] == {"one": 1.0}
    assert "load_s" not in Record(tmp_path, 1.0, {"model": "other"}).content
    (tmp_path / "gpu.json").write_text('{"key": {"model": "one"}, "pea')
    assert "load_s" not in Record(tmp_path, 1.0, {"model": "one"}).content


def test_larger_chunks_are_counted_in_proportion() -> None:
    assert sweep.scaled(Count(10, 100, 8, 300), 4.0) == Count(40, 100, 32, 900)


def test_the_memory_of_a_contender_adds_up(monkeypatch: pytest.MonkeyPatch) -> None:
    in_use = iter([100.0, 150.0, 150.0, 180.0])
    monkeypatch.setattr(contenders, "gpu_memory_mib", lambda _: next(in_use))
    memory = contenders.DeviceMemory(0)
    for _ in range(2):
        with memory.of("ours"):
            pass
    assert memory.held_mib == {"ours": 80.0}


def test_what_fails_is_named_and_the_others_go_on(tmp_path: Path) -> None:
    now = [0.0]
    kept = Record(tmp_path, 1.0, {}, clock=lambda: now[0])
    assert kept.attempt("good", lambda: 7) == 7
    assert not kept.failed
    assert kept.attempt("bad", lambda: 1 // 0) is None
    assert kept.failed
    assert not kept.out_of_time
    now[0] = 40.0
    assert kept.attempt("early", lambda: 7, until=0.5) is None
    assert kept.out_of_time
    assert kept.attempt("late", lambda: 7) == 7
    names = [each["what"] for each in json.loads((tmp_path / "gpu.json").read_text())["skipped"]]
    assert names == ["bad", "early"]


def test_a_run_of_infer_that_fails_or_hangs_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It imports the package of this checkout in any folder, also in that of another one."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "parotid_seg.py").write_text("raise ImportError('another one')")
    monkeypatch.setattr(end_to_end, "EVERY_S", 0.01)
    python = [*end_to_end.PYTHON, "-c"]
    place = Path(bench.__file__).parents[2] / "parotid_seg"
    code = (
        f"import pathlib, parotid_seg; assert pathlib.Path(parotid_seg.__file__).parent == pathlib.Path({str(place)!r})"
    )
    seconds, peaks = end_to_end.measured([*python, code], None, 60.0)
    assert seconds > 0
    assert peaks["host_mib"] > 1
    with pytest.raises(RuntimeError, match="infer ended with status 3: no room"):
        end_to_end.measured([*python, "import sys; print('no room', file=sys.stderr); sys.exit(3)"], None, 60.0)
    with pytest.raises(subprocess.TimeoutExpired):
        end_to_end.measured([*python, "import time; time.sleep(60)"], None, 0.3)


def test_a_compilation_is_stopped() -> None:
    with pytest.raises(TimeoutError), within(0.05):
        time.sleep(5)
    time.sleep(0.1)  # nothing rings afterwards


def test_changed_voxels() -> None:
    one, other = np.zeros((1, 4, 4), np.uint8), np.zeros((1, 4, 4), np.uint8)
    one[0, :2] = 1
    other[0, :2, 1:] = 1
    assert sweep.changed([one], [other]) == {"changed_voxels": 2, "changed_of_structures": 0.25}
    assert sweep.changed(None, [other])["changed_voxels"] is None


def test_bytes_over_the_bus_are_what_a_backend_says_it_copies() -> None:
    labels = np.zeros((1, 2, 5), np.uint8)
    chunk: Inputs = {"slices": np.zeros((1, 1, 2, 5), np.float16), "window": np.zeros((1, 2), np.float32)}
    assert record.traffic(chunk, labels, None) == {"bytes_in": 28, "bytes_out": 10, "bytes_a_voxel": 3.8}
    assert record.traffic(chunk, labels, (23, 2)) == {"bytes_in": 23, "bytes_out": 2, "bytes_a_voxel": 2.5}


def test_the_share_of_the_bus() -> None:
    bus = {"host_to_device_gb_s": 10.0, "device_to_host_gb_s": 5.0}
    assert record.share_of_bus(4.0, {"bytes_in": 3e6, "bytes_out": 1e6}, bus) == pytest.approx(0.5 / 4)


def test_without_a_gpu_one_line_says_so(
    monkeypatch: pytest.MonkeyPatch, scans: Path, untrained: Path, tmp_path: Path
) -> None:
    monkeypatch.setattr("parotid_seg.runtime.engines.load.find_gpus", list)
    words = ["--scans", scans, "--checkpoint", untrained, "--out", tmp_path / "out", "--work", tmp_path]
    with pytest.raises(SystemExit, match="found no NVIDIA GPU"):
        bench.main([str(word) for word in words])


def test_versions_are_told_on_a_cpu() -> None:
    about = record.machine("cpu", 0)
    assert about["gpu"] is None
    assert about["more_versions"]["torch"]


def test_one_that_fails_between_rounds_keeps_its_times(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    turns: dict[str, int] = {"ours": 0, "torch": 0, "never": 0}

    def one_round(contender: Any, _: object, passes: list[float], alone: list[float]) -> bool:
        turns[contender] += 1
        if contender == "never" or (contender == "ours" and turns[contender] == 3):
            raise RuntimeError("an illegal memory access")
        passes.append(1.0)
        alone.append(2.0)
        return True

    monkeypatch.setattr(sweep, "one_round", one_round)
    kept = Record(tmp_path, 1.0, {})
    ready: Any = {name: name for name in turns}
    chunks: Any = [{"neighbours": np.zeros(4)}]
    found = sweep.in_turns(ready, chunks, 5, kept)
    assert {name: len(times[0]) for name, times in found.items()} == {"ours": 2, "torch": 5}
    assert turns == {"ours": 3, "torch": 5, "never": 1}
    assert [each["what"] for each in kept.content["skipped"]] == [
        "never, batches of 4, in turns",
        "ours, batches of 4, in turns",
    ]
    with pytest.raises(RuntimeError, match="no contender ran"):
        sweep.in_turns({"never": ready["never"]}, chunks, 5, kept)


def test_one_with_other_labels_is_not_the_fastest() -> None:
    rows = result_of({"torch fp32": 10.0, "onnxruntime fp16": 90.0, "onnxruntime fp32": 20.0})["contenders"]
    rows["onnxruntime fp16"]["changed_of_structures"] = 0.04
    rows["onnxruntime fp32"]["changed_of_structures"] = 0.001
    assert sweep.compared(rows)["ours_over_torch"] == pytest.approx(2.0)
    assert sweep.fastest({"4": {"contenders": rows}}, list(rows)) == ("onnxruntime fp32", 4, 20.0)
    with pytest.raises(RuntimeError, match="none of our backends ran with the labels of torch in FP32"):
        sweep.fastest({"4": {"contenders": rows}}, ["onnxruntime fp16"])


def test_a_graph_that_failed_in_the_probe_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "graph_file", lambda name, _: tmp_path / name)
    lines = [{"model": "fp32", "ran": "it"}, {"model": "fp16 fused", "error": "stopped after 30 s"}]
    (tmp_path / "probe.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    options = argparse.Namespace(device="cuda", out=tmp_path, fp32=tmp_path, fp16=None)
    kept = Record(tmp_path, 1.0, {})
    assert list(bench.graph_files(options, kept)) == ["fp32", "fp16", "fp32 fused"]
    (skipped_one,) = kept.content["skipped"]
    assert skipped_one["why"] == "failed in the probe: stopped after 30 s"


def result_of(names: dict[str, float]) -> dict[str, Any]:
    rows = {name: {"ours": "onnxruntime" in name, "samples_a_second": rate} for name, rate in names.items()}
    return {"chunk": {}, "contenders": rows}


def test_parts_of_a_sweep_are_put_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A part that was measured later has the last word on those that both have; each is written at once."""
    kept = Record(tmp_path, 1.0, {})
    results = [{"torch fp32": 10.0, "onnxruntime fp16": 90.0}, {"onnxruntime fp16": 88.0, "torch.compile fp16": 80.0}]
    monkeypatch.setattr(sweep, "rotation", lambda *_: Rotation([{"neighbours": np.zeros(4, np.float32)}], {0}))
    monkeypatch.setattr(sweep, "sweep_size", lambda *_: result_of(results.pop(0)))
    none: Any = None
    monkeypatch.setattr(record, "table", lambda _: "")
    (tmp_path / "model").write_bytes(b"whose operations cannot be counted")
    for part in ("eager", "compiled"):
        assert sweep.left_of(part, [4, 8], kept.content) == [4, 8]
        sweep.sweep(part, [4], none, tmp_path / "model", none, {}, {}, kept, 1, none)
        assert sweep.left_of(part, [4, 8], kept.content) == [8]
        written = record.read(tmp_path)["sweep"]["4"]
    assert written["parts"] == ["eager", "compiled"]
    speeds = {name: row["samples_a_second"] for name, row in written["contenders"].items()}
    assert speeds == {"torch fp32": 10.0, "onnxruntime fp16": 88.0, "torch.compile fp16": 80.0}
    assert written["best"] == {"torch": "torch.compile fp16", "ours": "onnxruntime fp16"}
    assert written["ours_over_torch"] == pytest.approx(1.1)
    assert sweep.fastest({"4": written}, ["torch fp32"]) == ("torch fp32", 4, 10.0)


def test_what_takes_part_on_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every graph; options of the provider with the last graph; and TensorRT, which must be built."""
    monkeypatch.setattr("parotid_seg.runtime.engines.load.find_gpus", lambda: [fake_cuda.ADA])
    options = argparse.Namespace(device="cuda", work=tmp_path)
    models = {name: tmp_path / name for name in inputs.GRAPHS}
    found = bench.our_entries(options, models, Record(tmp_path, 1.0, {}))
    parts = (bench.EAGER, bench.BUILT, bench.OPTIONS)
    first, built, trials = ([name for name in found if found[name].part == part] for part in parts)
    assert first == [f"onnxruntime {name}" for name in inputs.GRAPHS]
    assert trials == [f"onnxruntime fp16 fused, {name}" for name in inputs.VARIANTS]
    assert [name for name in found if not found[name].infer] == trials
    assert built == [f"{library} {kind}" for library in ("tensorrt", "tensorrt-rtx") for kind in ("fp32", "fp16")]


@pytest.mark.parametrize("library", ["tensorrt", "tensorrt-rtx"])
def test_engines_on_a_gpu_that_is_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, library: str) -> None:
    """They are built, run and timed without copies, and their labels are as before afterwards."""
    fake_cuda.install(monkeypatch)
    monkeypatch.setattr("parotid_seg.runtime.engines.load.find_gpus", lambda: [fake_cuda.ADA])
    small = write_small_model(tmp_path / "small.onnx")
    options = argparse.Namespace(batch_sizes=[4], device="cuda")
    contender: Any = bench.built(options, small, tmp_path / "small.engine", library, 60.0)
    inputs = inputs_of(scan(16))
    expected = [labels_of(OnnxRuntimeBackend(small), each) for each in inputs]
    for _ in range(2):
        for found, wanted in zip(contenders.through(contender, inputs), expected, strict=True):
            np.testing.assert_array_equal(found, wanted)
        assert contender.compute_ms(inputs, 3) == pytest.approx([1.0] * 3 * len(inputs))
    contender.backend.close()


def test_onnxruntime_is_timed_on_what_is_bound(tmp_path: Path) -> None:
    small = write_small_model(tmp_path / "small.onnx")
    session = onnxruntime.InferenceSession(small, providers=["CPUExecutionProvider"])
    backend = OnnxRuntimeCudaBackend.__new__(OnnxRuntimeCudaBackend)
    backend._bound = IoBindingSession(session, "labels", HostStream(), "cpu")
    backend.ran = ExecutionInfo("onnxruntime", "cuda:0", "fp16")
    contender = contenders.BackendContender(backend)
    inputs = inputs_of(scan(16))
    times = contender.compute_ms(inputs, 2)
    assert len(times) == 2 * len(inputs)
    assert all(ms > 0 for ms in times)
