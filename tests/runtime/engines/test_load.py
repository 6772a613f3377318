"""Which engine and device a model goes to: what was asked for or one clear line, never something else in silence."""

import dataclasses
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from parotid_seg.errors import DeviceError, InputError, ModelError
from parotid_seg.models import DEFAULT_MODEL
from parotid_seg.runtime.engines import load, openvino
from parotid_seg.runtime.engines.autotune import Candidate
from parotid_seg.runtime.engines.base import Backend, Done
from parotid_seg.runtime.engines.engine_benchmark import EngineBenchmark
from parotid_seg.runtime.engines.gpu import Gpu
from parotid_seg.runtime.engines.load import load_backend
from parotid_seg.runtime.engines.onnxruntime import cuda as ort_cuda
from parotid_seg.runtime.engines.onnxruntime.cpu import OnnxRuntimeBackend
from parotid_seg.runtime.engines.registry import ENGINES
from parotid_seg.scan.chunks import Inputs
from tests.fakes.sidecars import write_sidecar
from tests.runtime.engines.stand_ins import CONTRACT, Loaded, first_of, write_model

pytestmark = pytest.mark.slow


GPU = Gpu("NVIDIA Test", (8, 9), "13.0")


def loaded(*arguments: Any, **options: Any) -> Any:
    """What `load_backend` loads where the engines are stand-ins."""
    return load_backend(*arguments, **options)


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Say which GPUs there are."""

    def there_are(*found: Gpu) -> None:
        monkeypatch.setattr(load, "find_gpus", lambda: list(found))
        monkeypatch.setattr(load, "find_gpu", lambda index=0: found[index] if index < len(found) else None)

    there_are()
    return there_are


@pytest.fixture(autouse=True)
def no_trial(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """Nothing here may measure; a test that expects a choice says how it ends."""

    def choose(found: list[Candidate], *_: object) -> None:
        raise AssertionError(f"a trial of {[candidate.name for candidate in found]}")

    monkeypatch.setattr(load, "choose", choose)


@pytest.fixture
def engine(tmp_path: Path) -> Path:
    path = tmp_path / "m.engine"
    path.write_bytes(b"an engine")
    write_sidecar(path, CONTRACT)
    return path


@pytest.fixture
def tensorrt(monkeypatch: pytest.MonkeyPatch) -> None:
    module: Any = ModuleType("parotid_seg.runtime.engines.tensorrt.tensorrt_engine")
    module.load = lambda asked: Loaded("tensorrt", asked.model, device=asked.gpu, output=asked.output)
    monkeypatch.setitem(sys.modules, "parotid_seg.runtime.engines.tensorrt.tensorrt_engine", module)
    monkeypatch.setattr(load, "choose", first_of)


@pytest.mark.parametrize(
    ("backend", "device", "words"),
    [
        (
            "magic",
            "auto",
            "--backend: found 'magic', expected one of: auto, onnxruntime, openvino, tensorrt, tensorrt-rtx",
        ),
        ("auto", "gpu", "--device: found 'gpu', expected one of: auto, cpu, cuda, cuda:N"),
        ("auto", "cuda:", "--device: found 'cuda:'"),
        ("auto", "cuda:-1", "--device: found 'cuda:-1'"),
        ("auto", "cuda:2", r"--device cuda:2: no such GPU, found cuda:0 NVIDIA Test .*, cuda:1 NVIDIA Test"),
        ("openvino", "cuda", "--backend openvino: runs on the CPU, found --device cuda, expected auto or cpu"),
        ("tensorrt", "cpu", r"--backend tensorrt: runs engines, found parotid-ct.onnx, expected an .engine file"),
        ("tensorrt-rtx", "cuda", "parotid-seg export --engine tensorrt-rtx builds one"),
    ],
)
def test_what_makes_no_sense_is_one_line(gpus: Callable[..., None], backend: str, device: str, words: str) -> None:
    gpus(GPU, GPU)
    with pytest.raises(InputError, match=words) as caught:
        load_backend(DEFAULT_MODEL, backend, device)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("backend", ["auto", "onnxruntime"])
def test_cuda_without_a_gpu_is_an_error(gpus: Callable[..., None], backend: str) -> None:
    with pytest.raises(InputError, match="--device cuda: found no NVIDIA GPU"):
        load_backend(DEFAULT_MODEL, backend, "cuda")


@pytest.mark.parametrize("backend", ["auto", "onnxruntime"])
def test_cuda_without_the_provider_is_an_error_but_auto_says_so_and_takes_the_cpu(
    gpus: Callable[..., None], monkeypatch: pytest.MonkeyPatch, said: list[str], without_openvino: None, backend: str
) -> None:
    def missing() -> None:
        raise InputError("onnxruntime has no CUDA: pip install it")

    gpus(GPU)
    monkeypatch.setattr(ort_cuda, "check_provider", missing)
    monkeypatch.setattr(load, "choose", first_of)
    with pytest.raises(InputError, match="has no CUDA: pip install it"):
        load_backend(DEFAULT_MODEL, backend, "cuda", say=said.append)
    assert not said
    assert load_backend(DEFAULT_MODEL, backend, "auto", say=said.append).ran.device == "cpu"
    assert said[0] == f"{GPU} is not used, but the CPU: onnxruntime has no CUDA: pip install it"


@pytest.mark.parametrize(("device", "index"), [("auto", 0), ("cuda", 0), ("cuda:1", 1)])
@pytest.mark.parametrize("backend", ["auto", "onnxruntime"])
def test_a_gpu_is_used_by_its_number(
    gpus: Callable[..., None], cuda: None, said: list[str], backend: str, device: str, index: int
) -> None:
    gpus(GPU, GPU)
    found = loaded(DEFAULT_MODEL, backend, device, say=said.append)
    assert (found.kind, found.file, found.how) == ("cuda", DEFAULT_MODEL, {"device": index, "output": "labels"})


def test_the_cpu_is_used_if_asked_for_though_there_is_a_gpu(
    gpus: Callable[..., None], cuda: None, without_openvino: None
) -> None:
    gpus(GPU)
    for backend in ("auto", "onnxruntime"):
        assert load_backend(DEFAULT_MODEL, backend, "cpu").ran.device == "cpu"


def test_by_name_it_is_exactly_this_file_and_no_trial(
    gpus: Callable[..., None], openvino_there: None, tmp_path: Path, said: list[str]
) -> None:
    model = tmp_path / "m.onnx"
    shutil.copy(DEFAULT_MODEL, model)
    write_model(tmp_path / "m.int8.onnx", precision="int8")
    found = load_backend(model, "onnxruntime", say=said.append)
    assert (type(found), found.ran.precision) == (OnnxRuntimeBackend, "fp32")
    found = loaded(model, "openvino", threads=3, say=said.append)
    assert (found.kind, found.file, found.how) == ("openvino", model, {"threads": 3, "output": "labels"})
    assert not said


def test_a_single_engine_needs_no_trial(gpus: Callable[..., None], without_openvino: None, said: list[str]) -> None:
    assert load_backend(DEFAULT_MODEL, say=said.append).ran.backend.startswith("onnxruntime ")
    assert said == ["onnxruntime FP32: the only engine for this model here"]


def test_several_engines_are_tried(
    gpus: Callable[..., None], openvino_there: None, monkeypatch: pytest.MonkeyPatch, said: list[str]
) -> None:
    asked = []

    def choose(
        found: list[Candidate],
        precision: str,
        sizes: tuple[int, int, int],
        measure: Callable[[], EngineBenchmark],
        place: Path,
        say: Callable[[str], None],
    ) -> Any:
        asked.append(([each.name for each in found], precision, sizes, measure().contract, place))
        return found[-1].load()

    monkeypatch.setattr(load, "choose", choose)
    assert loaded(DEFAULT_MODEL, threads=3).how["precision"] == "bf16"
    load_backend(DEFAULT_MODEL, threads=2)
    names, precision, sizes, contract, place = asked[0]
    assert names == ["onnxruntime FP32", "OpenVINO FP32", "OpenVINO BF16"]
    assert (precision, sizes, contract) == ("fp32", (8, 16, 32), CONTRACT)
    assert place != asked[1][-1], "another number of threads is another choice"
    monkeypatch.setattr(openvino, "computes_bf16", lambda: False)
    load_backend(DEFAULT_MODEL, threads=3)
    assert place != asked[2][-1], "so are other engines"


def test_an_unverified_model_is_refused_whatever_would_run_it(
    gpus: Callable[..., None], tmp_path: Path, tensorrt: None
) -> None:
    path = write_model(tmp_path / "m.onnx", verification={})
    for backend in ("auto", "onnxruntime", "openvino"):
        with pytest.raises(ModelError, match="not verified: "):
            load_backend(path, backend)
    engine = tmp_path / "m.engine"
    engine.write_bytes(b"an engine")
    write_sidecar(engine, dataclasses.replace(CONTRACT, verification={}))
    with pytest.raises(ModelError, match="not verified: "):
        load_backend(engine)
    assert loaded(engine, allow_unverified=True).kind == "tensorrt"


@pytest.mark.parametrize(("backend", "device", "index"), [("auto", "auto", 0), ("tensorrt", "cuda:1", 1)])
def test_an_engine_goes_to_its_library(
    gpus: Callable[..., None], engine: Path, tensorrt: None, backend: str, device: str, index: int
) -> None:
    gpus(GPU, GPU)
    found = loaded(engine, backend, device)
    assert (found.kind, found.file, found.how) == ("tensorrt", engine, {"device": index, "output": "labels"})


@pytest.mark.parametrize("backend", [name for name in ENGINES if name != "tensorrt"])
def test_an_engine_of_another_library_is_refused(gpus: Callable[..., None], engine: Path, backend: str) -> None:
    with pytest.raises(InputError, match=rf"--backend {backend}: found m.engine, an engine for tensorrt$"):
        load_backend(engine, backend)


class Failing(Loaded):
    """An engine on a GPU that loads and cannot compute."""

    closed = 0

    def start(self, inputs: Inputs) -> Done:
        raise DeviceError("no kernels for this GPU")

    def close(self) -> None:
        type(self).closed += 1
        raise DeviceError("nothing can be freed")


@pytest.mark.parametrize("backend", ["auto", "onnxruntime"])
def test_a_gpu_that_loads_and_cannot_compute_is_an_error_at_loading(
    gpus: Callable[..., None],
    cuda: None,
    without_openvino: None,
    said: list[str],
    monkeypatch: pytest.MonkeyPatch,
    backend: str,
) -> None:
    gpus(GPU)
    monkeypatch.setattr(Failing, "closed", 0)
    monkeypatch.setattr(ort_cuda, "OnnxRuntimeCudaBackend", lambda file, **how: Failing("cuda", file, **how))
    with pytest.raises(DeviceError, match=r"^no kernels for this GPU$"):
        load_backend(DEFAULT_MODEL, backend, "cuda", say=said.append)
    assert (Failing.closed, said) == (1, [])
    assert load_backend(DEFAULT_MODEL, backend, say=said.append).ran.device == "cpu"
    assert said[0] == f"{GPU} is not used, but the CPU: no kernels for this GPU"


@pytest.mark.parametrize("backend", ["auto", "onnxruntime"])
def test_the_batch_size_is_measured_on_a_gpu_also_for_a_single_engine(
    gpus: Callable[..., None], cuda: None, monkeypatch: pytest.MonkeyPatch, backend: str
) -> None:
    asked = []

    def choose(found: list[Candidate], precision: str, sizes: tuple[int, ...], *_: object) -> Backend:
        asked.append(([each.precision for each in found], sizes))
        return found[0].load()

    gpus(GPU)
    monkeypatch.setattr(load, "choose", choose)
    load_backend(DEFAULT_MODEL, backend, "cuda")
    tried = ["fp32", "fp16", "fp32", "fp16"] if backend == "auto" else ["fp32"]
    assert asked == [(tried, (16, 32, 64, 128, 256))]


def test_an_engine_on_the_cpu_is_refused(engine: Path) -> None:
    with pytest.raises(InputError, match=r"--device cpu: found m.engine, an engine, expected auto or cuda"):
        load_backend(engine, device="cpu")


def test_a_missing_file_is_an_error_before_anything_else(tmp_path: Path, gpus: Callable[..., None]) -> None:
    with pytest.raises(ModelError, match=r"no\.onnx: no such file, expected a model file"):
        load_backend(tmp_path / "no.onnx")
    with pytest.raises(ModelError, match="no such engine file"):
        load_backend(tmp_path / "no.engine")
