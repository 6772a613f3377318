"""What is known about an engine, and when it may be used."""

import ctypes
import dataclasses
import hashlib
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from parotid_seg.contract import Contract, Grid
from parotid_seg.errors import ModelError
from parotid_seg.runtime.engines.engine_file import (
    BatchProfile,
    EngineOptions,
    Sidecar,
    check_engine,
    judge_engine,
    read_engine,
    read_sidecar,
    sidecar_path,
)
from parotid_seg.runtime.engines.gpu import Gpu, find_gpu
from parotid_seg.runtime.engines.tensorrt.library import known_capabilities

ADA = Gpu("NVIDIA RTX 4000 Ada", (8, 9), "13.0")
TESLA = Gpu("Tesla T4", (7, 5), "12.8")
ENGINE, ONNX = b"an engine", b"a model"
SIDECAR = Sidecar(
    contract=Contract(("background", "gland"), ("T1", "CT"), (None, (-200.0, 300.0)), Grid()),
    precision="fp32",
    onnx_name="m.onnx",
    onnx_sha256=hashlib.sha256(ONNX).hexdigest(),
    library="tensorrt",
    library_version="10.12.0.36",
    gpu=ADA.name,
    compute_capability=ADA.compute_capability,
    cuda=ADA.cuda,
    batch=BatchProfile(1, 2, 3),
    shapes={"slices": ((1, 1), (1, 2), (1, 3))},
    options=EngineOptions(workspace_mib=100, runs_on="this-gpu"),
    engine_sha256=hashlib.sha256(ENGINE).hexdigest(),
)
RTX = dataclasses.replace(
    SIDECAR,
    library="tensorrt-rtx",
    gpu=None,
    compute_capability=None,
    cuda=None,
    options=EngineOptions(runs_on="ampere-plus"),
)


def with_options(**changed: Any) -> Sidecar:
    return dataclasses.replace(SIDECAR, options=dataclasses.replace(SIDECAR.options, **changed))


@pytest.fixture
def engine(tmp_path: Path) -> Path:
    path = tmp_path / "m.engine"
    path.write_bytes(ENGINE)
    path.with_name("m.onnx").write_bytes(ONNX)
    sidecar_path(path).write_text(SIDECAR.to_json())
    return path


@pytest.mark.parametrize("sidecar", [SIDECAR, RTX, with_options(version_compatible=True, tf32=True)])
def test_there_and_back(engine: Path, sidecar: Sidecar) -> None:
    sidecar_path(engine).write_text(sidecar.to_json())
    assert sidecar_path(engine).name == "m.engine.json"
    assert read_sidecar(engine) == sidecar
    assert read_engine(engine, sidecar) == ENGINE


def test_any_change_of_the_sidecar_is_found(engine: Path) -> None:
    path = sidecar_path(engine)
    content = json.loads(path.read_text())
    changes = {
        "engine_sha256": "0" * 64,
        "onnx_name": "other.onnx",
        "library_version": "11.0",
        "contract": {**content["contract"], "labels": ["background", "other"]},
        "shapes": {},
        "unknown": 1,
    }
    for name, value in changes.items():
        path.write_text(json.dumps({**content, name: value}))
        with pytest.raises(ModelError, match="changed since it was written"):
            read_sidecar(engine)


@pytest.mark.parametrize("text", ["", "[]", "1", "null", "{}", '{"checksum": 1}', "{"])
def test_what_is_no_sidecar(engine: Path, text: str) -> None:
    sidecar_path(engine).write_text(text)
    with pytest.raises(ModelError, match=r"m\.engine\.json: not an engine's sidecar"):
        read_sidecar(engine)


def test_binary_and_missing_sidecars(engine: Path) -> None:
    sidecar_path(engine).write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ModelError, match="not UTF-8"):
        read_sidecar(engine)
    sidecar_path(engine).unlink()
    with pytest.raises(ModelError, match="cannot be read"):
        read_sidecar(engine)


def test_another_schema_version(engine: Path) -> None:
    sidecar_path(engine).write_text(dataclasses.replace(SIDECAR, schema_version=9).to_json())
    with pytest.raises(ModelError, match="found schema_version 9, expected 2; build the engine again"):
        read_sidecar(engine)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("shapes", 3, r"at `\$.shapes`"),
        ("options", {"fast": True}, r"unknown field `\$.options.fast`"),
        ("batch", {"min": 3, "opt": 2, "max": 1}, "not an engine's sidecar: --batch: found 3 2 1"),
        ("onnx_name", "../other/m.onnx", "expected a file name without a folder"),
        ("engine_sha256", 5, r"Expected `str`, got `int` - at `\$.engine_sha256`"),
        ("compute_capability", [8], r"at `\$.compute_capability`"),
        ("contract", {"labels": 5}, r"at `\$.contract"),
        ("library", "other", "found 'other', expected one of: tensorrt, tensorrt-rtx"),
    ],
)
def test_a_whole_sidecar_that_makes_no_sense(engine: Path, name: str, value: Any, words: str) -> None:
    content = {**json.loads(SIDECAR.to_json()), name: value}
    del content["checksum"]
    checksum = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    sidecar_path(engine).write_text(json.dumps({**content, "checksum": checksum}))
    with pytest.raises(ModelError, match=words):
        read_sidecar(engine)


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a": 1e999}', '{"a": 1, "a": 2}'])
def test_hostile_sidecars(engine: Path, text: str) -> None:
    sidecar_path(engine).write_text(text)
    with pytest.raises(ModelError, match=r"m\.engine\.json: not an engine's sidecar: found"):
        read_sidecar(engine)


def test_an_engine_is_refused_beside_another_model_than_its_own(engine: Path) -> None:
    assert check_engine(engine, SIDECAR, SIDECAR.library_version, ADA) == ()
    engine.with_name("m.onnx").write_bytes(ONNX + b"\0")
    reasons = check_engine(engine, SIDECAR, SIDECAR.library_version, ADA)
    assert reasons == ("it was built from another m.onnx than the one beside it",)
    engine.with_name("m.onnx").unlink()
    assert check_engine(engine, SIDECAR, SIDECAR.library_version, ADA) == ()


def test_only_the_described_engine_is_read(engine: Path) -> None:
    engine.write_bytes(ENGINE + b"\0")
    with pytest.raises(ModelError, match="not the file its sidecar describes"):
        read_engine(engine, SIDECAR)
    assert check_engine(engine, SIDECAR, "10.12.0.36", ADA) == ("its hash is not the one in its sidecar",)
    engine.unlink()
    with pytest.raises(ModelError, match="cannot be read"):
        read_engine(engine, SIDECAR)
    assert check_engine(engine, SIDECAR, "10.12.0.36", ADA) == ("the file cannot be read (No such file or directory)",)


@pytest.mark.parametrize(
    ("sidecar", "version", "reason"),
    [
        (SIDECAR, "10.12.0.36", None),
        (SIDECAR, "10.12.0.37", "found TensorRT 10.12.0.37, expected 10.12.0.36, which built it"),
        (with_options(version_compatible=True), "10.13.1.2", None),
        (with_options(version_compatible=True), "11.0.0", None),
        (
            with_options(version_compatible=True),
            "10.9.0.34",
            "found TensorRT 10.9.0.34, expected 10.12.0.36 or newer, which built it",
        ),
        (RTX, "10.13", "found TensorRT-RTX 10.13, expected 10.12.0.36, which built it"),
        (RTX, None, "TensorRT-RTX is not installed"),
    ],
)
def test_the_library(engine: Path, sidecar: Sidecar, version: str | None, reason: str | None) -> None:
    assert check_engine(engine, sidecar, version, ADA) == (() if reason is None else (reason,))


@pytest.mark.parametrize(
    ("sidecar", "gpu", "reason"),
    [
        (SIDECAR, ADA, None),
        (SIDECAR, Gpu("NVIDIA L4", (8, 9), "13.0"), f"expected {ADA.name}"),
        (SIDECAR, TESLA, "found Tesla T4 (compute capability 7.5), expected NVIDIA RTX 4000 Ada"),
        (SIDECAR, None, "no NVIDIA GPU found"),
        (with_options(runs_on="same-capability"), Gpu("NVIDIA L4", (8, 9), "13.0"), None),
        (with_options(runs_on="same-capability"), Gpu("NVIDIA A2", (8, 6), "13.0"), "expected compute capability 8.9"),
        (with_options(runs_on="ampere-plus"), Gpu("NVIDIA RTX 5090", (12, 0), "13.0"), None),
        (with_options(runs_on="ampere-plus"), TESLA, "expected compute capability 8.0 or newer"),
        (RTX, Gpu("NVIDIA A2", (8, 6), "13.0"), None),
        (RTX, TESLA, "expected compute capability 8.0 or newer"),
    ],
)
def test_the_gpu(engine: Path, sidecar: Sidecar, gpu: Gpu | None, reason: str | None) -> None:
    found = check_engine(engine, sidecar, "10.12.0.36", gpu)
    assert found == () if reason is None else len(found) == 1 and found[0].endswith(reason)


HOPPER = Gpu("NVIDIA H100", (9, 0), "13.0")
KNOWN = frozenset({(7, 5), (8, 0), (8, 6), (8, 9), (12, 0), (12, 1)})


def test_a_gpu_between_those_that_a_library_has_code_for(engine: Path) -> None:
    reason = (
        "found NVIDIA H100 (compute capability 9.0), expected one of TensorRT-RTX's compute capabilities: 7.5, 8.0, "
        "8.6, 8.9, 12.0, 12.1"
    )
    version = SIDECAR.library_version
    assert check_engine(engine, RTX, version, HOPPER, KNOWN) == (reason,)
    assert check_engine(engine, RTX, version, ADA, KNOWN) == ()
    assert check_engine(engine, with_options(runs_on="ampere-plus"), version, HOPPER, None) == ()
    verdict = judge_engine(engine, RTX, version, HOPPER, KNOWN)
    assert (verdict.reasons, verdict.rebuild_from) == ((reason,), None)
    assert verdict.not_rebuilt == f"TensorRT-RTX makes no engines for {HOPPER}"


def test_what_the_installed_tensorrt_rtx_has_code_for() -> None:
    trt = pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is missing: pip install tensorrt-rtx")
    found = known_capabilities(trt)
    assert found is not None
    assert {(8, 6), (8, 9), (12, 0)} <= found
    assert ((9, 0) in found) == hasattr(trt.ComputeCapability, "SM90")
    assert known_capabilities(ModuleType("tensorrt")) is None


def test_all_reasons_are_told(engine: Path) -> None:
    engine.write_bytes(b"")
    assert len(check_engine(engine, SIDECAR, "9.0", TESLA)) == 3


def test_built_again_from_the_same_onnx_file_only(engine: Path) -> None:
    assert judge_engine(engine, SIDECAR, "10.12.0.36", ADA).reasons == ()
    other = judge_engine(engine, SIDECAR, "10.13", ADA)
    assert (other.rebuild_from, other.options, other.not_rebuilt) == (engine.with_name("m.onnx"), SIDECAR.options, "")
    engine.with_name("m.onnx").write_bytes(ONNX + b"\n")
    changed = judge_engine(engine, SIDECAR, "10.13", ADA)
    assert changed.rebuild_from is None
    assert changed.not_rebuilt == "these are not the files that export wrote; export them again"
    engine.with_name("m.onnx").unlink()
    assert str(judge_engine(engine, SIDECAR, "10.13", ADA).refusal(engine)) == (
        f"{engine}: cannot be used here: found TensorRT 10.13, expected 10.12.0.36, which built it; "
        "not rebuilt: no m.onnx beside it"
    )


def test_a_damaged_engine_is_refused_whatever_else_does_not_fit(engine: Path) -> None:
    engine.write_bytes(b"another")
    for version, gpu in (("10.12.0.36", ADA), ("10.13", ADA), ("10.13", TESLA)):
        assert judge_engine(engine, SIDECAR, version, gpu).rebuild_from is None


def test_an_engine_is_not_built_again_for_what_would_not_run_either(engine: Path) -> None:
    for version, gpu in ((None, ADA), ("10.13", None)):
        assert judge_engine(engine, SIDECAR, version, gpu).not_rebuilt == "it could not be run here either"
    old = judge_engine(engine, RTX, "10.12.0.36", TESLA)
    assert (old.rebuild_from, old.options) == (None, None)
    assert old.not_rebuilt == "TensorRT-RTX makes no engines for Tesla T4 (compute capability 7.5)"


def test_an_engine_for_newer_gpus_becomes_one_for_this_one(engine: Path) -> None:
    portable = with_options(runs_on="ampere-plus")
    assert judge_engine(engine, portable, "10.12.0.36", TESLA).options == SIDECAR.options


class Driver:
    """The driver's functions as a machine with one GPU has them."""

    def __init__(self, gpus: int) -> None:
        self.gpus = gpus

    def cuInit(self, _: object) -> int:  # noqa: N802
        return 0

    def cuDeviceGet(self, device: Any, index: int) -> int:  # noqa: N802
        return 0 if index < self.gpus else 101

    def cuDeviceGetName(self, name: ctypes.Array[ctypes.c_char], size: int, device: ctypes.c_int) -> int:  # noqa: N802
        name.value = b"NVIDIA RTX A4000"
        return 0

    def cuDeviceGetAttribute(self, value: Any, attribute: int, device: ctypes.c_int) -> int:  # noqa: N802
        value._obj.value = {75: 8, 76: 6}[attribute]
        return 0

    def cuDriverGetVersion(self, value: Any) -> int:  # noqa: N802
        value._obj.value = 12080
        return 0


def test_the_gpu_is_asked_of_the_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda _: Driver(1))
    assert find_gpu() == Gpu("NVIDIA RTX A4000", (8, 6), "12.8")
    assert find_gpu(1) is None

    def missing(_: object) -> None:
        raise OSError("no such library")

    monkeypatch.setattr(ctypes, "CDLL", missing)
    assert find_gpu() is None


def test_reading_sidecars_loads_neither_torch_nor_onnx_nor_tensorrt() -> None:
    code = "import parotid_seg.runtime.engines.engine_file, sys; print(*{name.split('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"torch", "onnx", "onnxruntime", "tensorrt", "tensorrt_rtx"} & set(done.stdout.split())
