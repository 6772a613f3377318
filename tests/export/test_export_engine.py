"""`export --engine tensorrt-rtx` and `--triton`, for real and without a GPU, and what cannot be done here."""

import json
import re
import resource
from importlib import metadata
from pathlib import Path
from typing import Any

import onnxruntime
import pytest

from parotid_seg.errors import InputError, ModelError, OutputError
from parotid_seg.export import verified_export as module
from parotid_seg.export.export_options import ExportOptions
from parotid_seg.export.ops_by_dtype import describe_network
from parotid_seg.export.verified_export import export
from parotid_seg.runtime.engines.engine_file import BatchProfile, read_sidecar
from parotid_seg.runtime.engines.gpu import find_gpu
from tests.command_line import Run
from tests.export.small_model import rtx

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("translated_before")]


def options(two: Path, **more: Any) -> ExportOptions:
    return ExportOptions(verify=two / "imagesTr", batch_sizes=(1, 4, 8), **more)


@rtx
def test_engines_are_built_in_the_types_asked_for(run: Path, balls: Path, two: Path, tmp_path: Path) -> None:
    for precision in ("fp32", "fp16", "int8"):
        said: list[str] = []
        out = tmp_path / f"{precision}.onnx"
        scans = balls if precision == "int8" else two  # INT8 wants more of them
        export(run / "best.pt", out, options(scans, precision=precision, engine="tensorrt-rtx"), said.append)
        sidecar = read_sidecar(out.with_suffix(".engine"))
        assert sidecar.contract.verification
        assert (sidecar.precision, sidecar.onnx_name, sidecar.batch) == (precision, out.name, BatchProfile(1, 4, 8))
        census = next(line for line in said if line.startswith("tensorrt-rtx: multiply-adds"))
        told = json.loads(out.with_suffix(".parity.json").read_text())["engine"]
        if find_gpu() is None:
            assert sidecar.verification == {"not_run": "no NVIDIA GPU found"} == {"not_run": told["not_run"]}
            assert "engine: not run here, its masks are not compared: no NVIDIA GPU found" in said
        else:
            assert sidecar.verification
        assert re.search(rf"(100\.0|[5-9]\d\.\d)% {precision}(, [1-4]\d\.\d% fp32)? in the network", census), census


@rtx
def test_an_engine_that_would_compute_otherwise_is_not_built(
    run: Path, two: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = describe_network

    def in_fp32(*arguments: Any) -> list[dict[str, Any]]:
        return [{**layer, "inputs": ["fp32"] * len(layer["inputs"])} for layer in real(*arguments)]

    monkeypatch.setattr(module, "describe_network", in_fp32)
    with pytest.raises(ModelError, match=r"no engine built: tensorrt-rtx would compute 100\.0% fp32, expected fp16"):
        export(run / "best.pt", tmp_path / "m.onnx", options(two, precision="fp16", engine="tensorrt-rtx"))
    assert not list(tmp_path.glob("*.engine*"))


@pytest.mark.skipif(find_gpu() is not None, reason="there is a GPU")
def test_tensorrt_without_a_gpu_is_told_before_any_work(run: Path, two: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no NVIDIA GPU found; .*tensorrt-rtx builds without one"):
        export(run / "best.pt", tmp_path / "m.onnx", options(two, engine="tensorrt"))
    assert not list(tmp_path.iterdir())


def test_a_triton_repository_comes_with_the_model(command: Run, run: Path, two: Path, tmp_path: Path) -> None:
    pytest.importorskip("tritonclient")
    words = ["export", run / "best.pt", "--out", tmp_path / "glands.onnx", "--verify", two / "imagesTr"]
    done = command(*words, "--triton", tmp_path / "repository", "--batch", 1, 4, 8)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "repository" / "glands" / "1" / "model.onnx").is_file()
    again = command(*words, "--triton", tmp_path / "repository")
    assert again.returncode == 1
    assert "an entry of this name exists" in again.stderr
    assert len(again.stderr.splitlines()) == 1


def test_a_model_that_stays_although_what_follows_fails_is_named(
    run: Path, two: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tritonclient")

    def refuse(*_: object, **__: object) -> None:
        raise OutputError("cannot be written (Read-only file system)", path=tmp_path / "repository")

    monkeypatch.setattr("parotid_seg.export.verified_export.write_repository", refuse)
    said: list[str] = []
    with pytest.raises(OutputError, match="Read-only"):
        export(run / "best.pt", tmp_path / "m.onnx", options(two, triton=tmp_path / "repository"), said.append)
    assert said[-1] == f"wrote {tmp_path / 'm.onnx'}"
    assert (tmp_path / "m.onnx").is_file()


def test_batches_that_do_not_rise(command: Run, run: Path, tmp_path: Path) -> None:
    done = command("export", run / "best.pt", "--out", tmp_path / "m.onnx", "--batch", 4, 2, 8)
    assert done.returncode == 2
    assert done.stderr == (
        "parotid-seg: --batch: found 4 2 8, expected MIN OPT MAX with 1 <= MIN <= OPT <= MAX "
        "(see parotid-seg export --help)\n"
    )


def test_the_record_is_plain_json(run: Path, two: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where onnxruntime-gpu takes the place of the package onnxruntime."""
    found = metadata.version

    def version(package: str) -> str:
        if package == "onnxruntime":
            raise metadata.PackageNotFoundError(package)
        return found(package)

    monkeypatch.setattr(metadata, "version", version)
    export(run / "best.pt", tmp_path / "m.onnx", options(two))
    record = json.loads((tmp_path / "m.parity.json").read_text())
    assert record["passed"]
    assert record["chosen"] == "fp32"
    assert record["with"] == f"onnxruntime {onnxruntime.__version__} on the CPU"
    assert record["candidates"][0]["census"]["asked"].keys() == {"fp32"}


@pytest.mark.parametrize("largest", [1_000, 60_000])
def test_a_full_disk_is_one_line_and_leaves_nothing(run: Path, two: Path, tmp_path: Path, largest: int) -> None:
    """The temporary files do not fit at all, or the model does not; a limit on file sizes stands for a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest, before[1]))
    try:
        with pytest.raises(OutputError, match=r"no room for temporary files|cannot be written") as caught:
            export(run / "best.pt", tmp_path / "m.onnx", options(two))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_a_model_that_cannot_be_written_leaves_the_earlier_record(
    run: Path, two: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_content: bytes, path: Path) -> None:
        raise OutputError("cannot be written (No space left on device)", path=path)

    (tmp_path / "m.parity.json").write_text("earlier")
    monkeypatch.setattr("parotid_seg.export.verified_export.write_bytes", full)
    with pytest.raises(OutputError, match=r"m\.onnx: cannot be written"):
        export(run / "best.pt", tmp_path / "m.onnx", options(two))
    assert (tmp_path / "m.parity.json").read_text() == "earlier"


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("--timing-cache", "t.bin"), "--timing-cache: TensorRT-RTX keeps none; leave it out"),
        (("--runs-on", "this-gpu"), "--runs-on: found 'this-gpu', expected one of TensorRT-RTX's: ampere-plus"),
        (("--workspace-mib", 0), "--workspace-mib: found 0, expected at least 1"),
        (
            ("--version-compatible",),
            "--version-compatible: TensorRT-RTX engines run on the version that built them only",
        ),
    ],
)
def test_what_the_library_does_not_offer_is_told_before_any_work(
    command: Run, run: Path, tmp_path: Path, words: tuple[int | str, ...], line: str
) -> None:
    done = command("export", run / "best.pt", "--out", tmp_path / "m.onnx", "--engine", "tensorrt-rtx", *words)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert line in done.stderr
    assert not list(tmp_path.iterdir())
