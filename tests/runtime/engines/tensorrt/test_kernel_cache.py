"""Kernels that TensorRT-RTX compiles on the GPU: before chunks are timed, and once for all processes."""

import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from parotid_seg.runtime.engines.gpu import Gpu
from parotid_seg.runtime.engines.onnxruntime.cpu import OnnxRuntimeBackend
from parotid_seg.runtime.engines.private_file import DIGEST_BYTES
from parotid_seg.runtime.engines.tensorrt.kernel_cache import KernelCache
from parotid_seg.runtime.engines.tensorrt.tensorrt_engine import TensorRtBackend
from tests.fakes.fake_cuda import ADA
from tests.fakes.fake_gpu import FakeGpu
from tests.runtime.engines.tensorrt.on_fake_gpu import check, engine_of, inputs_of, scan


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "parotid-seg" / "kernels"


@pytest.fixture
def engine(small: Path) -> Path:
    return engine_of(small, "tensorrt-rtx")


def fallbacks(gpu: FakeGpu, engine: Path, *, specialised: bool = False) -> int:
    """Chunks that a new process computes without kernels for their shapes."""
    backend, inputs = TensorRtBackend(engine), inputs_of(scan())
    if specialised:
        for each in inputs:
            backend.specialise(each)
    gpu.fallbacks = 0
    check(backend, OnnxRuntimeBackend(engine.with_suffix(".onnx")), inputs)
    backend.close()
    assert (gpu.used, gpu.retained) == (0, 0)
    return gpu.fallbacks


def test_kernels_are_compiled_before_they_are_timed(gpu: FakeGpu, engine: Path) -> None:
    assert fallbacks(gpu, engine) > 0
    assert fallbacks(gpu, engine, specialised=True) == 0


def test_tensorrt_has_nothing_to_compile(gpu: FakeGpu, small: Path) -> None:
    backend = TensorRtBackend(engine_of(small))
    backend.specialise(inputs_of(scan())[0])
    assert gpu.contexts == []
    backend.close()


def test_the_next_process_finds_them(gpu: FakeGpu, engine: Path, cache: Path) -> None:
    fallbacks(gpu, engine, specialised=True)
    (file,) = cache.iterdir()
    assert stat.S_IMODE(cache.stat().st_mode) == 0o700
    written = file.stat().st_mtime_ns
    assert fallbacks(gpu, engine) == 0
    assert file.stat().st_mtime_ns == written, "nothing new was compiled"


def spoiled(change: Callable[[bytes], bytes]) -> Callable[[Path], object]:
    return lambda file: file.write_bytes(change(file.read_bytes()))


@pytest.mark.parametrize(
    "spoil",
    [
        spoiled(lambda content: b""),
        spoiled(lambda content: content[:-1]),
        spoiled(lambda content: content[:DIGEST_BYTES] + b"[" + content[DIGEST_BYTES:]),
        lambda file: file.chmod(0o666),
        lambda file: file.parent.chmod(0o777),
        lambda file: (file.rename(file.with_suffix(".moved")), file.symlink_to(file.with_suffix(".moved"))),
    ],
    ids=["empty", "cut", "changed", "file of all", "folder of all", "link"],
)
def test_one_that_is_damaged_or_of_others_is_made_anew(
    gpu: FakeGpu, engine: Path, cache: Path, spoil: Callable[[Path], object]
) -> None:
    fallbacks(gpu, engine, specialised=True)
    (file,) = cache.glob("*.bin")
    good = file.read_bytes()
    spoil(file)
    assert fallbacks(gpu, engine) > 0
    fallbacks(gpu, engine, specialised=True)
    assert (file.read_bytes(), file.is_symlink()) == (good, False)
    assert stat.S_IMODE(cache.stat().st_mode) == 0o700
    assert fallbacks(gpu, engine) == 0


def test_each_engine_gpu_and_version_has_its_own() -> None:
    others = [
        ("b" * 64, "TensorRT-RTX 1.7.1", ADA),
        ("a" * 64, "TensorRT-RTX 1.8.0", ADA),
        ("a" * 64, "TensorRT-RTX 1.7.1", Gpu("NVIDIA RTX 4090", (8, 9), "13.0")),
        ("a" * 64, "TensorRT-RTX 1.7.1", Gpu(ADA.name, (8, 9), "13.1")),
    ]
    paths = {KernelCache(*each).path for each in [("a" * 64, "TensorRT-RTX 1.7.1", ADA), *others]}
    assert len(paths) == 5


def test_a_file_where_the_folder_should_be_is_no_error(gpu: FakeGpu, engine: Path, cache: Path) -> None:
    cache.parent.mkdir(parents=True)
    cache.write_text("")
    assert fallbacks(gpu, engine, specialised=True) == 0


@pytest.mark.usefixtures("without_home")
def test_without_a_home_folder_nothing_is_kept(gpu: FakeGpu, engine: Path) -> None:
    assert fallbacks(gpu, engine, specialised=True) == 0
    assert fallbacks(gpu, engine) > 0
