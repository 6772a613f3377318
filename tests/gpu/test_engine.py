"""Engines on the GPU: built, loaded, their layers read. Run with: pytest -m gpu tests/gpu."""

import dataclasses
import importlib.util
from pathlib import Path
from typing import Any

import pytest

from parotid_seg.errors import ModelError
from parotid_seg.export.build_engine import build_engine
from parotid_seg.export.find_engine import usable_engine
from parotid_seg.models import DEFAULT_MODEL
from parotid_seg.runtime.engines.engine_file import (
    BatchProfile,
    EngineOptions,
    Sidecar,
    read_engine,
    read_sidecar,
    sidecar_path,
)
from parotid_seg.runtime.engines.gpu import find_gpu
from parotid_seg.runtime.engines.tensorrt.library import LIBRARIES
from tests.export.built_layers import describe_layers
from tests.export.small_model import write_small_model

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(find_gpu() is None, reason="no NVIDIA GPU found")]


def build(onnx_path: Path, out: Path, library: str, **options: Any) -> Sidecar:
    return build_engine(
        onnx_path, out, library=library, profile=BatchProfile(1, 2, 4), options=EngineOptions(**options)
    )


def test_the_packaged_model_is_built_and_used_as_it_is(library: str, tmp_path: Path) -> None:
    out = tmp_path / "m.engine"
    sidecar = build(DEFAULT_MODEL, out, library)
    assert (sidecar.gpu is None) == (library == "tensorrt-rtx")
    made = out.stat().st_mtime_ns
    assert usable_engine(out) == out
    assert out.stat().st_mtime_ns == made
    layers = describe_layers(read_engine(out, sidecar), library)
    assert any("float32" in (*layer["inputs"], *layer["outputs"]) for layer in layers)


def test_half_precision_in_the_graph_is_half_precision_in_the_engine(library: str, tmp_path: Path) -> None:
    out = tmp_path / "small.engine"
    sidecar = build(write_small_model(tmp_path / "small.onnx"), out, library)
    layers = describe_layers(read_engine(out, sidecar), library)
    assert any("float16" in (*layer["inputs"], *layer["outputs"]) for layer in layers)
    assert any("look_at_the_gland" in layer["name"] for layer in layers)


def test_in_place_of_an_old_engine_another_is_built_and_loads(
    library: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    out = tmp_path / "small.engine"
    sidecar = build(write_small_model(tmp_path / "small.onnx"), out, library)
    sidecar_path(out).write_text(dataclasses.replace(sidecar, library_version="1.0").to_json())
    built = usable_engine(out)
    assert built.is_relative_to(tmp_path / "cache")
    assert describe_layers(read_engine(built, read_sidecar(built)), library)
    out.write_bytes(b"another")
    with pytest.raises(ModelError, match="its hash is not the one in its sidecar"):
        usable_engine(out)


def test_options_of_tensorrt(tmp_path: Path) -> None:
    if importlib.util.find_spec("tensorrt") is None:
        pytest.skip("tensorrt is missing: pip install tensorrt")
    path, timings = write_small_model(tmp_path / "small.onnx"), tmp_path / "timings"
    for runs_on in LIBRARIES["tensorrt"].runs_on:
        out = tmp_path / f"{runs_on}.engine"
        sidecar = build_engine(
            path,
            out,
            library="tensorrt",
            profile=BatchProfile(1, 2, 4),
            options=EngineOptions(runs_on=runs_on, version_compatible=True),
            timing_cache=timings,
        )
        assert describe_layers(read_engine(out, sidecar), "tensorrt")
    assert timings.stat().st_size > 0


def test_what_is_no_engine_is_refused(library: str) -> None:
    with pytest.raises(ModelError, match="does not load the engine"):
        describe_layers(b"\0" * 4096, library)
