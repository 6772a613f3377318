"""Engines are built for real with TensorRT-RTX, which needs no GPU; what runs on one is in tests/gpu."""

import dataclasses
import errno
import importlib
import importlib.util
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import onnx
import pytest
from onnx import helper

from parotid_seg.contract import METADATA_KEY, Contract
from parotid_seg.errors import InputError, ModelError, OutputError
from parotid_seg.export import build_engine as module
from parotid_seg.export import find_engine
from parotid_seg.export.build_engine import build_engine
from parotid_seg.export.find_engine import usable_engine
from parotid_seg.files import hash_file
from parotid_seg.models import DEFAULT_MODEL
from parotid_seg.runtime.engines.engine_file import (
    ENGINE_BATCH,
    BatchProfile,
    EngineOptions,
    Sidecar,
    read_engine,
    read_sidecar,
    sidecar_path,
)
from parotid_seg.runtime.engines.gpu import Gpu
from parotid_seg.runtime.engines.tensorrt import library as trt_library
from tests.export.small_model import CONTRACT, rtx, write_small_model

pytestmark = pytest.mark.slow


ADA = Gpu("NVIDIA RTX 4000 Ada", (8, 9), "13.0")
SMALL = BatchProfile(1, 2, 4)


def build(onnx_path: Path, out: Path, library: str = "tensorrt-rtx", **kwargs: Any) -> Sidecar:
    options = EngineOptions(**kwargs.pop("options", {}))
    return build_engine(onnx_path, out, library=library, profile=SMALL, options=options, **kwargs)


@pytest.fixture
def small(tmp_path: Path) -> Path:
    return write_small_model(tmp_path / "small.onnx")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an engine of the small model."""
    folder = tmp_path_factory.mktemp("built")
    build(write_small_model(folder / "small.onnx"), folder / "small.engine")
    return folder


@pytest.fixture
def engine(built: Path, tmp_path: Path) -> Path:
    """That engine, beside its model."""
    shutil.copytree(built, tmp_path, dirs_exist_ok=True)
    return tmp_path / "small.engine"


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@rtx
def test_the_packaged_model_becomes_an_engine(tmp_path: Path) -> None:
    out, steps = tmp_path / "made" / "parotid-ct.engine", []
    lines: list[str] = []
    sidecar = build_engine(
        DEFAULT_MODEL,
        out,
        library="tensorrt-rtx",
        profile=ENGINE_BATCH,
        options=EngineOptions(),
        report=lines.append,
        progress=lambda *step: steps.append(step),
    )
    assert left(out.parent) == ["parotid-ct.engine", "parotid-ct.engine.json"]
    assert read_sidecar(out) == sidecar
    assert len(read_engine(out, sidecar)) > 10_000_000
    assert sidecar.onnx_sha256 == hash_file(DEFAULT_MODEL)
    assert sidecar.library_version == importlib.import_module("tensorrt_rtx").__version__
    metadata = {entry.key: entry.value for entry in onnx.load(DEFAULT_MODEL).metadata_props}
    assert sidecar.contract == Contract.from_json(metadata[METADATA_KEY], where="model")
    assert (sidecar.precision, sidecar.options.runs_on, sidecar.gpu) == ("fp32", "ampere-plus", None)
    assert sidecar.shapes["neighbours"][1] == (
        64,
        len(sidecar.contract.grid.offsets_mm),
        sidecar.shapes["slices"][1][1],
    )
    assert "for batches of 1 to 256, best at 64" in lines[0]
    assert "MB, in " in lines[1]
    done = [step for _, step, _ in steps]
    assert done == sorted(done)
    assert steps[-1][1] == steps[-1][2] > 1
    assert len({phase for phase, _, _ in steps}) > 3


@rtx
def test_names_of_layers_are_kept(engine: Path) -> None:
    assert b"look_at_the_gland" in engine.read_bytes()


@pytest.mark.parametrize(
    ("runs_on", "level"),
    [("this-gpu", None), ("same-capability", "SAME_COMPUTE_CAPABILITY"), ("ampere-plus", "AMPERE_PLUS")],
)
def test_what_tensorrt_is_asked_for(runs_on: str, level: str | None) -> None:
    trt, builder = MagicMock(), MagicMock()
    builder.create_builder_config.return_value.hardware_compatibility_level = None
    options = EngineOptions(runs_on=runs_on, workspace_mib=3, version_compatible=True)
    build = module._Build(trt, trt_library.LIBRARIES["tensorrt"], DEFAULT_MODEL, options, progress=None)
    config = build._configured(builder)
    expected = None if level is None else getattr(trt.HardwareCompatibilityLevel, level)
    assert config.hardware_compatibility_level is expected
    assert config.profiling_verbosity is trt.ProfilingVerbosity.DETAILED
    config.set_memory_pool_limit.assert_called_once_with(trt.MemoryPoolType.WORKSPACE, 3 * 2**20)
    assert [call.args for call in config.set_flag.call_args_list] == [
        (trt.BuilderFlag.REQUIRE_USER_ALLOCATION,),
        (trt.BuilderFlag.VERSION_COMPATIBLE,),
    ]
    config.set_preview_feature.assert_called_once_with(trt.PreviewFeature.RUNTIME_ACTIVATION_RESIZE_10_10, True)


@rtx
def test_memory_is_asked_for_by_the_shapes_at_hand() -> None:
    trt = trt_library.import_library("tensorrt-rtx")
    builder = trt.Builder(trt_library.log_of("tensorrt-rtx"))
    build = module._Build(trt, trt_library.LIBRARIES["tensorrt-rtx"], DEFAULT_MODEL, EngineOptions(), progress=None)
    config = build._configured(builder)
    assert config.get_preview_feature(trt.PreviewFeature.RUNTIME_ACTIVATION_RESIZE_10_10)
    assert config.get_flag(trt.BuilderFlag.REQUIRE_USER_ALLOCATION), "without it no CUDA graph can be captured"


@pytest.mark.parametrize(("choices", "flags"), [({"STRONGLY_TYPED": 1}, 2), ({}, 0)])
def test_networks_are_strongly_typed_where_that_is_a_choice(choices: dict[str, int], flags: int) -> None:
    trt, builder = MagicMock(), MagicMock()
    trt.NetworkDefinitionCreationFlag = SimpleNamespace(**choices)
    module.parse(trt, builder, b"", None, DEFAULT_MODEL)
    builder.create_network.assert_called_once_with(flags)


@pytest.mark.parametrize("fits", [True, False])
def test_timings_of_another_gpu_or_version_are_not_used(tmp_path: Path, fits: bool) -> None:
    config = MagicMock()
    config.create_timing_cache.side_effect = lambda kept: kept
    config.set_timing_cache.side_effect = lambda cache, _: fits or not cache
    (tmp_path / "timings").write_bytes(b"kept")
    cache = module._load_timings(config, tmp_path / "timings")
    assert cache == (b"kept" if fits else b"")
    config.set_timing_cache.assert_called_with(cache, False)


@rtx
@pytest.mark.parametrize("asked", [False, True])
def test_single_precision_is_rounded_to_tf32_only_if_asked(asked: bool) -> None:
    """The library's own default is to round."""
    trt = trt_library.import_library("tensorrt-rtx")
    builder = trt.Builder(trt_library.log_of("tensorrt-rtx"))
    assert builder.create_builder_config().get_flag(trt.BuilderFlag.TF32)
    build = module._Build(
        trt, trt_library.LIBRARIES["tensorrt-rtx"], DEFAULT_MODEL, EngineOptions(tf32=asked), progress=None
    )
    assert build._configured(builder).get_flag(trt.BuilderFlag.TF32) == asked


def test_a_missing_package_is_one_line(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise ModuleNotFoundError(f"No module named '{name}'\nsecond line")

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(InputError) as caught:
        build(small, small.with_suffix(".engine"))
    assert str(caught.value) == (
        "TensorRT-RTX: the package tensorrt-rtx is missing or does not load (No module named 'tensorrt_rtx' second "
        "line): pip install tensorrt-rtx"
    )


@pytest.mark.parametrize(
    ("library", "options", "words"),
    [
        ("openvino", {}, "found 'openvino', expected one of: tensorrt, tensorrt-rtx"),
        ("tensorrt", {"runs_on": "anything"}, "TensorRT's: this-gpu, same-capability, ampere-plus"),
    ],
)
def test_what_a_library_does_not_offer_is_refused(
    small: Path, library: str, options: dict[str, int | str], words: str
) -> None:
    with pytest.raises(InputError, match=words):
        build(small, small.with_suffix(".engine"), library, options=options)


@rtx
@pytest.mark.parametrize("content", [b"", b"no model", None])
def test_foreign_model_files(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "m.onnx"
    if content is None:
        write_small_model(path, contract=None)
    else:
        path.write_bytes(content)
    with pytest.raises(ModelError, match=f"^{path}: ") as caught:
        build(path, tmp_path / "m.engine")
    assert "\n" not in str(caught.value)
    assert left(tmp_path) == ["m.onnx"]


@rtx
def test_the_parser_is_quoted_in_one_line(tmp_path: Path) -> None:
    path = write_small_model(tmp_path / "m.onnx", extra=helper.make_node("Unheard", ["scores"], ["more"], name="odd"))
    with pytest.raises(ModelError, match=r"parser does not take it: .*name: odd and operator: Unheard") as caught:
        build(path, tmp_path / "m.engine")
    assert "\n" not in str(caught.value)


@rtx
def test_a_contract_of_another_grid_is_refused(tmp_path: Path) -> None:
    other = dataclasses.replace(CONTRACT, grid=dataclasses.replace(CONTRACT.grid, size=16))
    path = write_small_model(tmp_path / "m.onnx", contract=other)
    with pytest.raises(ModelError, match=r"TensorRT-RTX cannot build it: .*rows"):
        build(path, tmp_path / "m.engine")


@rtx
def test_too_little_workspace_is_told_and_nothing_is_written(engine: Path) -> None:
    before = engine.read_bytes(), sidecar_path(engine).read_text()
    with pytest.raises(ModelError, match=r"cannot build it within a workspace of 1 MiB: .*workspace limit"):
        build(engine.with_suffix(".onnx"), engine, options={"workspace_mib": 1})
    assert (engine.read_bytes(), sidecar_path(engine).read_text()) == before


@rtx
@pytest.mark.parametrize("writer", ["write_bytes", "write_text"])
def test_a_full_disk_leaves_the_old_engine_whole(engine: Path, monkeypatch: pytest.MonkeyPatch, writer: str) -> None:
    def full(path: Path, content: object) -> None:
        with path.open("wb") as file:
            file.write(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    before = engine.read_bytes(), sidecar_path(engine).read_text()
    with monkeypatch.context() as patch:
        patch.setattr(Path, writer, full)
        with pytest.raises(OutputError, match="no room for temporary files"):
            build(engine.with_suffix(".onnx"), engine, options={"tf32": True})
    assert (engine.read_bytes(), sidecar_path(engine).read_text()) == before
    assert left(engine.parent) == ["small.engine", "small.engine.json", "small.onnx"]


@rtx
def test_the_sidecar_appears_last(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    appeared, rename = [], Path.replace

    def noted(path: Path, to: Path) -> Path:
        appeared.append(to.name)
        return rename(path, to)

    monkeypatch.setattr(Path, "replace", noted)
    build(small, small.with_suffix(".engine"))
    assert appeared == ["small.engine", "small.engine.json"]


@rtx
def test_ctrl_c_stops_a_build(small: Path) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(small, small.with_suffix(".engine"), progress=interrupt)
    assert "BuildCanceled" in trt_library.log_of("tensorrt-rtx").said()
    assert left(small.parent) == ["small.onnx"]


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """TensorRT's own options, which need a GPU, through TensorRT-RTX, which has the same interface."""
    tensorrt = dataclasses.replace(trt_library.LIBRARIES["tensorrt"], module="tensorrt_rtx")
    monkeypatch.setitem(trt_library.LIBRARIES, "tensorrt", tensorrt)
    for each in (module, find_engine):
        monkeypatch.setattr(each, "find_gpu", lambda: ADA)
    monkeypatch.setattr(find_engine, "import_pycuda", lambda _: None)


@rtx
@pytest.mark.parametrize("runs_on", ["this-gpu", "same-capability", "ampere-plus"])
@pytest.mark.filterwarnings("ignore")
def test_options_of_tensorrt(stand_in: None, small: Path, tmp_path: Path, runs_on: str) -> None:
    options: dict[str, Any] = {"runs_on": runs_on, "workspace_mib": 512}
    sidecar = build(small, tmp_path / "m.engine", "tensorrt", options=options)
    assert (sidecar.gpu, sidecar.compute_capability, sidecar.cuda) == (ADA.name, (8, 9), "13.0")
    assert sidecar.options == EngineOptions(**options)


@rtx
def test_a_version_compatible_engine_is_asked_for(stand_in: None, small: Path, tmp_path: Path) -> None:
    """TensorRT-RTX lacks the small runtime that such engines carry, and says so."""
    with pytest.raises(ModelError, match=r"TensorRT cannot build it: .*libnvinfer_lean"):
        build(small, tmp_path / "m.engine", "tensorrt", options={"version_compatible": True})


@rtx
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kept", [None, b"", b"another program's file"])
def test_timings_are_kept_for_the_next_build(stand_in: None, small: Path, tmp_path: Path, kept: bytes | None) -> None:
    timings = tmp_path / "timings"
    if kept is not None:
        timings.write_bytes(kept)
    build(small, tmp_path / "m.engine", "tensorrt", timing_cache=timings)
    written = timings.read_bytes()
    assert len(written) > 100
    assert written != kept
    build(small, tmp_path / "m.engine", "tensorrt", timing_cache=timings)
    assert len(timings.read_bytes()) >= len(written)


@pytest.fixture
def on_ada(monkeypatch: pytest.MonkeyPatch) -> None:
    for each in (module, find_engine):
        monkeypatch.setattr(each, "find_gpu", lambda: ADA)
    monkeypatch.setattr(find_engine, "import_pycuda", lambda _: None)


@rtx
def test_for_another_version_of_the_library_one_with_the_same_profile_is_built(on_ada: None, engine: Path) -> None:
    old = dataclasses.replace(read_sidecar(engine), library_version="1.0.0.1")
    sidecar_path(engine).write_text(old.to_json())
    lines: list[str] = []
    built = usable_engine(engine, report=lines.append)
    version = importlib.import_module("tensorrt_rtx").__version__
    assert lines[0].startswith(f"{engine}: not used here: found TensorRT-RTX {version}, expected 1.0.0.1, which built")
    new = read_sidecar(built)
    assert (built == engine, read_sidecar(engine), new.library_version) == (False, old, version)
    assert (new.batch, new.shapes, new.options) == (SMALL, old.shapes, old.options)


@rtx
def test_no_engine_is_built_for_a_damaged_one_or_from_another_onnx_file(on_ada: None, engine: Path) -> None:
    onnx_path = engine.with_suffix(".onnx")
    write_small_model(onnx_path, contract=dataclasses.replace(CONTRACT, precision="fp32"))
    with pytest.raises(ModelError, match=r"from another small.onnx than the one beside it; not rebuilt: these are not"):
        usable_engine(engine)
    onnx_path.unlink()
    sidecar_path(engine).write_text(dataclasses.replace(read_sidecar(engine), library_version="1.0.0.1").to_json())
    with pytest.raises(ModelError, match=r"which built it; not rebuilt: no small.onnx beside it"):
        usable_engine(engine)
    engine.write_bytes(b"another")
    with pytest.raises(ModelError, match=r"its hash is not the one .*; not rebuilt: these are not the files that"):
        usable_engine(engine)
    assert engine.read_bytes() == b"another"


@rtx
def test_without_a_gpu_no_engine_is_usable_or_built(monkeypatch: pytest.MonkeyPatch, engine: Path) -> None:
    monkeypatch.setattr(find_engine, "find_gpu", lambda: None)
    with pytest.raises(ModelError, match="no NVIDIA GPU found; not rebuilt: it could not be run here either"):
        usable_engine(engine)
