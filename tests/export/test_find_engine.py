"""The engine that runs a model here: beside it, from the cache, or built once; on a GPU that is none."""

import dataclasses
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from parotid_seg.api import Segmenter
from parotid_seg.errors import DeviceError, InputError, ModelError
from parotid_seg.export import find_engine as module
from parotid_seg.export.build_engine import build_engine
from parotid_seg.export.find_engine import runnable
from parotid_seg.runtime.engines.engine_file import BatchProfile, EngineOptions, Sidecar, read_sidecar, sidecar_path
from parotid_seg.runtime.engines.gpu import Gpu
from parotid_seg.runtime.engines.tensorrt.tensorrt_engine import TensorRtBackend
from tests.export.small_model import CONTRACT, write_small_model
from tests.fakes import fake_cuda
from tests.fakes.fake_gpu import FakeGpu

BATCH = BatchProfile(1, 4, 8)


@pytest.fixture(autouse=True)
def gpu(monkeypatch: pytest.MonkeyPatch) -> FakeGpu:
    return fake_cuda.install(monkeypatch)


@pytest.fixture
def small(tmp_path: Path) -> Path:
    (tmp_path / "models").mkdir()
    return write_small_model(tmp_path / "models" / "small.onnx")


@pytest.fixture
def ask(small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Ask for an engine; what is told is kept as `ask.said`."""
    monkeypatch.setattr(module, "cache_folder", lambda: tmp_path)

    def ask(model: Path = small, library: str = "tensorrt", batch: BatchProfile = BATCH, device: str = "auto") -> Path:
        asking.said = []
        monkeypatch.setattr(module, "ENGINE_BATCH", batch)
        return runnable(model, library, device, report=asking.said.append)

    asking: Any = ask
    return asking


def beside(small: Path, library: str = "tensorrt") -> Path:
    out = small.with_suffix(".engine")
    build_engine(small, out, library=library, profile=BATCH, options=EngineOptions())
    return out


def test_none_is_built_for_a_gpu_that_the_library_has_no_code_for(
    ask: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(module, "find_gpu", lambda index=0: Gpu("NVIDIA H100", (9, 0), "13.0"))
    with pytest.raises(
        DeviceError, match=r"^TensorRT-RTX 1\.7\.1 makes no engines for this GPU: found NVIDIA H100 .*8\.9"
    ):
        ask(library="tensorrt-rtx")
    assert not (tmp_path / "engines").exists()
    assert ask(library="tensorrt").is_file()


def test_one_is_built_into_the_cache_and_used_again(ask: Any, small: Path, tmp_path: Path) -> None:
    first = ask()
    assert first.parent == tmp_path / "engines"
    sha256 = read_sidecar(first).onnx_sha256
    name = f"small-{sha256[:16]}-tensorrt-10.13.0-nvidia-rtx-4000-ada-1-4-8.engine"
    assert first.name == name
    assert "for batches of 1 to 8, best at 4" in ask.said[0]
    made = first.stat().st_mtime_ns
    assert ask() == first
    assert (ask.said, first.stat().st_mtime_ns) == ([], made)
    TensorRtBackend(first).close()
    assert list(small.parent.iterdir()) == [small]


def test_each_model_library_gpu_and_batch_has_its_own(ask: Any, small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = {ask(), ask(library="tensorrt-rtx"), ask(batch=BatchProfile(1, 2, 4))}
    monkeypatch.setattr(module, "find_gpu", lambda: Gpu("NVIDIA A10", (8, 6), "13.0"))
    found.add(ask())
    write_small_model(small, dataclasses.replace(CONTRACT, labels=("background", "tumour")))
    found.add(ask())
    assert len(found) == 5


def test_a_gpu_that_is_not_as_the_first_is_refused(ask: Any, small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Engines are judged and built on the first: one that fits it need not fit another."""
    own = beside(small)
    gpus = [Gpu("NVIDIA RTX 4000 Ada", (8, 9), "13.0"), Gpu("NVIDIA A10", (8, 6), "13.0")]
    monkeypatch.setattr(module, "find_gpu", lambda index=0: gpus[index])
    for model in (small, own):
        with pytest.raises(InputError, match=r"^--device cuda:1: found NVIDIA A10 .*CUDA_VISIBLE_DEVICES=1"):
            ask(model, device="cuda:1")
        assert ask(model, device="cuda:0").is_file()
    gpus[1] = gpus[0]
    assert ask(device="cuda:1") == own


def test_one_in_the_cache_that_was_changed_is_built_again(ask: Any) -> None:
    cached = ask()
    cached.write_bytes(b"another")
    assert ask() == cached
    assert ask.said[0] == f"{cached}: built again: its hash is not the one in its sidecar"
    sidecar_path(cached).write_text("{}")
    assert ask() == cached
    assert "not used: " in ask.said[0]
    TensorRtBackend(cached).close()


@pytest.mark.parametrize(
    "open_to_others",
    [
        lambda cached: cached.chmod(0o666),
        lambda cached: sidecar_path(cached).chmod(0o666),
        lambda cached: cached.parent.chmod(0o777),
    ],
    ids=["engine", "sidecar", "folder"],
)
def test_one_in_the_cache_that_others_may_have_written_is_built_again(
    ask: Any, open_to_others: Callable[[Path], object]
) -> None:
    before = os.umask(0)
    try:
        cached = ask()
    finally:
        os.umask(before)
    made = cached.stat().st_mtime_ns
    ask()
    assert ask.said == [], "files are private by themselves"
    open_to_others(cached)
    assert ask() == cached
    assert ask.said[0] == f"{cached}: built again: others may write to it"
    assert cached.stat().st_mtime_ns > made
    ask()
    assert ask.said == []


def test_the_one_beside_the_model_is_taken(ask: Any, small: Path) -> None:
    out = beside(small)
    assert ask() == out
    assert ask(batch=BatchProfile()) == out
    assert ask.said == []


def make_old(engine: Path, **changes: Any) -> Sidecar:
    """Make an engine one of an earlier version, with a verification that must not be lost."""
    old = dataclasses.replace(
        read_sidecar(engine), library_version="10.12.0", verification={"lowest_dsc": 1.0}, **changes
    )
    sidecar_path(engine).write_text(old.to_json())
    return old


@pytest.mark.parametrize("named", ["model", "engine"])
def test_in_place_of_one_that_does_not_fit_another_is_built_into_the_cache(
    ask: Any, small: Path, tmp_path: Path, named: str
) -> None:
    out = beside(small)
    old, before = make_old(out), out.read_bytes()
    asked = {"model": small, "engine": out}[named]
    built = ask(asked, batch=BatchProfile(1, 2, 4))
    assert built.parent == tmp_path / "engines"
    assert ask.said[0] == (
        f"{out}: not used here: found TensorRT 10.13.0, expected 10.12.0, which built it; instead one from the cache, "
        "built from small.onnx, whose masks were not compared"
    )
    assert (read_sidecar(out), out.read_bytes()) == (old, before)
    assert read_sidecar(built).batch == old.batch
    made = built.stat().st_mtime_ns
    assert ask(asked) == built
    assert (len(ask.said), built.stat().st_mtime_ns) == (1, made), "it is told again, but not built again"
    TensorRtBackend(built).close()


def test_one_with_other_options_has_its_own_place(ask: Any, small: Path) -> None:
    out = beside(small)
    make_old(out)
    first = ask(out)
    make_old(out, options=EngineOptions(tf32=True, runs_on="this-gpu"))
    assert read_sidecar(ask(out)).options.tf32
    assert first != ask(out)
    assert not read_sidecar(first).options.tf32


@pytest.mark.parametrize("named", ["model", "engine"])
def test_none_is_built_where_pycuda_is_missing(
    ask: Any, small: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, named: str
) -> None:
    out = beside(small)
    old = make_old(out)
    monkeypatch.setitem(sys.modules, "pycuda.driver", None)
    with pytest.raises(InputError, match="package pycuda is missing"):
        ask({"model": small, "engine": out}[named])
    assert ask.said == []
    assert read_sidecar(out) == old
    assert not (tmp_path / "engines").exists()


@pytest.mark.parametrize("named", ["model", "engine"])
def test_one_that_was_damaged_or_replaced_is_refused_and_left_alone(
    ask: Any, small: Path, tmp_path: Path, named: str
) -> None:
    out = beside(small)
    old = make_old(out)
    out.write_bytes(b"another")
    with pytest.raises(ModelError, match=r"small\.engine: cannot be used here: its hash is not the one in its sidecar"):
        ask({"model": small, "engine": out}[named])
    assert (read_sidecar(out), out.read_bytes(), ask.said) == (old, b"another", [])
    assert not (tmp_path / "engines").exists()


@pytest.mark.parametrize("why", ["another library", "another model", "no sidecar", "damaged sidecar"])
def test_one_beside_the_model_that_is_not_its_own_is_left_alone(
    ask: Any, small: Path, tmp_path: Path, why: str
) -> None:
    out = beside(small, "tensorrt-rtx" if why == "another library" else "tensorrt")
    if why == "another model":
        write_small_model(small, dataclasses.replace(CONTRACT, labels=("background", "tumour")))
    elif why == "no sidecar":
        sidecar_path(out).unlink()
    elif why == "damaged sidecar":
        sidecar_path(out).write_text(sidecar_path(out).read_text().replace("10.13.0", "10.13.1"))
    before = out.read_bytes()
    assert ask().parent == tmp_path / "engines"
    assert out.read_bytes() == before
    assert any(f"{out}: not used: " in line for line in ask.said) == (why != "another library")


def test_an_engine_file_is_taken_as_it_is(ask: Any, small: Path) -> None:
    out = beside(small)
    assert ask(out) == out
    with pytest.raises(InputError, match=r"found an engine of TensorRT, expected one of TensorRT-RTX"):
        ask(out, "tensorrt-rtx")


def test_python_logs_that_another_engine_is_used(
    ask: Any, small: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    out = beside(small)
    make_old(out)
    monkeypatch.setattr("parotid_seg.api.load_backend", lambda file, *_, **__: TensorRtBackend(file))
    Segmenter(out)
    assert [record.levelname for record in caplog.records if "not used here" in record.message] == ["WARNING"]


def test_without_a_gpu_none_is_made(ask: Any, small: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(module, "find_gpu", lambda: None)
    with pytest.raises(InputError, match=r"TensorRT: no NVIDIA GPU found to run .*small\.onnx on"):
        ask()
    small.write_bytes(b"no model")
    monkeypatch.setattr(module, "find_gpu", lambda: fake_cuda.ADA)
    with pytest.raises(ModelError, match="not an ONNX model"):
        ask()
    assert not (tmp_path / "engines").exists()
