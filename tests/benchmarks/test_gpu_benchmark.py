"""benchmarks/gpu/bench.py where there is no GPU: its bookkeeping, and a whole run of what there is on a CPU."""

import argparse
import contextlib
import gzip
import json
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
from typing import Any

from gpu import bench, contenders, end_to_end, first_use, inputs, record, sweep, table
from gpu.record import Record, within

from parotid_seg.contract import Contract, Grid
from parotid_seg.errors import ModelError
from parotid_seg.export.onnx_file import with_contract
from parotid_seg.runtime.engines.base import ExecutionInfo, labels_of
from parotid_seg.runtime.engines.onnxruntime.cpu import OnnxRuntimeBackend
from parotid_seg.runtime.engines.onnxruntime.cuda import OnnxRuntimeCudaBackend
from parotid_seg.runtime.engines.onnxruntime.io_binding import IoBindingSession
from parotid_seg.runtime.engines.onnxruntime.profile import Count
from parotid_seg.runtime.engines.rewriting.gpu_graph import _file
from parotid_seg.runtime.engines.rewriting.precision import LADDER, lower, with_whole_weights
from parotid_seg.train.checkpoint import Checkpoint, build_network, save_checkpoint
from parotid_seg.train.config import NetworkConfig, TrainConfig
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
    half.write_bytes(_file(lower(with_whole_weights(translated[0]), "fp16", LADDER[0].holds), translated[1], {}))
    monkeypatch.setattr(bench, "first_use", lambda model, *_: FIRST_USE if model == fp32 else None)
    options = ("--fp32", fp32, "--fp16", half, "--workers", 1, "--many", 2, "--minutes", 5)
    found = measured(scan, checkpoint, tmp_path, *options, "--batch-sizes", 2, 500)
    rows = found["sweep"]["2"]["contenders"]
    assert set(rows) == {"torch fp32", "torch fp16", "onnxruntime fp32", "onnxruntime fp16"}
    assert rows["torch fp32"]["changed_voxels"] == 0
    assert all(row["changed_of_structures"] < 0.02 for row in rows.values())
    assert all(row["roofline"]["share"] > 0 for row in rows.values())
    assert rows["onnxruntime fp32"]["ran"]["device"] == "cpu"
    assert found["sweep"]["2"]["chunk"]["bytes_a_voxel_stored"] == 3
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
    assert kept.attempt("bad", lambda: 1 // 0) is None
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


def test_the_first_use_is_told(tmp_path: Path) -> None:
    lines = table._first_use_lines(FIRST_USE)
    assert "| onnxruntime CUDA FP16 | 900 |  |" in lines
    assert "| onnxruntime CUDA FP16 fused |  | other masks of the example scan |" in lines
    assert "| comparing and timing them | 8.0 |" in lines


def test_a_first_use_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A graph that cannot be made is named, and the choice is made without it; what was kept tells of all."""
    loaded = []

    def graph_file(name: str, _: Path) -> Path:
        if name == "fp16":
            raise ModelError("other masks")
        return tmp_path

    def load_backend(path: Path, device: str, **_: object) -> object:
        loaded.append((path, device))
        (tmp_path / "engines").mkdir(exist_ok=True)
        kept = {"samples_per_s": {"FP32": 9.0}, "refused": {"FP16": "other masks"}}
        (tmp_path / "engines" / "choice.json").write_text(json.dumps(kept))
        return SimpleNamespace(ran="it", batch_size=7, close=lambda: None)

    monkeypatch.setattr(first_use, "graph_file", graph_file)
    monkeypatch.setattr(first_use, "load_backend", load_backend)
    monkeypatch.setattr(first_use, "cache_folder", lambda: tmp_path)
    first_use.report(time.monotonic() - 5, "model.onnx", "cuda")
    found = json.loads(capsys.readouterr().out)
    assert loaded == [(Path("model.onnx"), "cuda")] * 2
    assert list(found["graphs_s"]) == ["fp16", "fp32 fused", "fp16 fused"]
    assert found["said"] == ["fp16: other masks"]
    assert (found["ran"], found["batch_size"]) == ("it", 7)
    assert (found["samples_a_second"], found["refused"]) == ({"FP32": 9.0}, {"FP16": "other masks"})
    assert found["imports_s"] == pytest.approx(5, abs=1)


def test_a_first_use_is_a_process_with_an_empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def started(command: list[str], env: dict[str, str], **_: object) -> subprocess.CompletedProcess[str]:
        asked.append(Path(env["XDG_CACHE_HOME"]))
        assert not list(asked[-1].iterdir())
        assert command[-2:] == ["model.onnx", "cuda"]
        return subprocess.CompletedProcess(command, len(asked) - 1, '{"ran": "it"}', "no kernels")

    monkeypatch.setattr(subprocess, "run", started)
    assert first_use.first_use(Path("model.onnx"), "cuda", 9.0) == {"ran": "it"}
    with pytest.raises(RuntimeError, match="ended with status 1: no kernels"):
        first_use.first_use(Path("model.onnx"), "cuda", 9.0)
    assert not asked[0].exists()


def result_of(names: dict[str, float]) -> dict[str, Any]:
    rows = {name: {"ours": "onnxruntime" in name, "samples_a_second": rate} for name, rate in names.items()}
    return {"chunk": {}, "contenders": rows}


def test_parts_of_a_sweep_are_put_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A part that was measured later has the last word on those that both have; each is written at once."""
    kept = Record(tmp_path, 1.0, {})
    results = [{"torch fp32": 10.0, "onnxruntime fp16": 90.0}, {"onnxruntime fp16": 88.0, "torch.compile fp16": 80.0}]
    monkeypatch.setattr(sweep, "rotation", lambda *_: [{"neighbours": np.zeros(4)}])
    monkeypatch.setattr(sweep, "sweep_size", lambda *_: result_of(results.pop(0)))
    none: Any = None
    monkeypatch.setattr(record, "table", lambda _: "")
    (tmp_path / "model").write_bytes(b"whose operations cannot be counted")
    for part in ("first", "compiled"):
        assert sweep.left_of(part, [4, 8], kept.content) == [4, 8]
        sweep.sweep(part, [4], none, tmp_path / "model", none, {}, {}, kept, 1, none)
        assert sweep.left_of(part, [4, 8], kept.content) == [8]
        written = record.read(tmp_path)["sweep"]["4"]
    assert written["parts"] == ["first", "compiled"]
    speeds = {name: row["samples_a_second"] for name, row in written["contenders"].items()}
    assert speeds == {"torch fp32": 10.0, "onnxruntime fp16": 88.0, "torch.compile fp16": 80.0}
    assert written["best"] == {"torch": "torch.compile fp16", "ours": "onnxruntime fp16"}
    assert written["ours_over_torch"] == pytest.approx(1.1)
    assert sweep.fastest({"4": written}, ["torch fp32"]) == ("torch fp32", 4, 10.0)


def test_what_takes_part_on_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every graph; then TensorRT, which must be built; then options of the provider with the last graph."""
    monkeypatch.setattr("parotid_seg.runtime.engines.load.find_gpus", lambda: [fake_cuda.ADA])
    options = argparse.Namespace(device="cuda", work=tmp_path)
    models = {name: tmp_path / name for name in inputs.GRAPHS}
    found = bench.our_entries(options, models, Record(tmp_path, 1.0, {}))
    first, built, trials = ([name for name in found if found[name].part == part] for part in bench.PARTS)
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
