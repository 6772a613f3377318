"""Where time goes, as each engine's profiler tells it; TensorRT's on a GPU that is none (`tests.fakes.fake_cuda`)."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from parotid_seg.bench import layers as module
from parotid_seg.bench.layers import UNNAMED, Layers, fold, profile_layers, rows, time_apart
from parotid_seg.contract import Contract
from parotid_seg.errors import InputError
from parotid_seg.models import DEFAULT_MODEL
from parotid_seg.runtime.engines.base import ExecutionInfo, labels_of
from parotid_seg.runtime.engines.engine_benchmark import usual_chunk
from parotid_seg.runtime.engines.engine_file import BatchProfile
from parotid_seg.runtime.engines.model_file import read_model
from parotid_seg.runtime.engines.onnxruntime.cpu import OnnxRuntimeBackend
from parotid_seg.runtime.engines.onnxruntime.cuda import PROVIDER, OnnxRuntimeCudaBackend
from parotid_seg.runtime.engines.onnxruntime.profile import NodeTime, Timing, count_nodes, time_nodes
from parotid_seg.runtime.engines.openvino import OpenVinoBackend, computes_bf16
from parotid_seg.runtime.engines.padding import pad_to_bucket
from parotid_seg.runtime.engines.tensorrt.tensorrt_engine import TensorRtBackend
from parotid_seg.scan.chunks import Inputs
from tests.fakes import fake_cuda
from tests.fakes.fake_cuda import write_engine

pytestmark = pytest.mark.slow

CONTENT, CONTRACT, _ = read_model(DEFAULT_MODEL)
MODULES = {
    *("to_grid", "from_grid", "unet", "encoder.patch_embed", "skip_norms", "classify"),
    *(f"encoder.layers.{stage}" for stage in range(3)),
    *(f"decoder.{stage}" for stage in range(2)),
    *(f"{what}_{size}" for what in ("stem", "head", "expand") for size in ("half", "full")),
}
BLOCK = "unet.encoder.layers.1.blocks.0"


@pytest.fixture(scope="module")
def chunk() -> Inputs:
    return usual_chunk(CONTRACT, 2)


def folded(*named: tuple[str, float], work: Any = None) -> dict[str, float]:
    """Seconds by module of nodes (name, seconds) that ran one after the other."""
    found = fold([NodeTime(name, "", "fp32", seconds) for name, seconds in named], work or {})
    assert sum(layer.share for layer in found) == pytest.approx(1)
    assert [layer.seconds for layer in found] == sorted((layer.seconds for layer in found), reverse=True)
    return {layer.module: layer.seconds for layer in found}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (f"{BLOCK}.attn.queries/MatMul", "encoder.layers.1"),
        ("unet.encoder.layers.2.downsample.norm/LayerNormalization", "encoder.layers.2"),
        ("unet.encoder.patch_embed.proj/Conv_nchwc", "encoder.patch_embed"),
        ("unet.decoder.0.blocks.1.mlp.fc1/Add", "decoder.0"),
        ("unet.skip_norms.2/LayerNormalization", "skip_norms"),
        ("unet.stem_full.2/Relu_nchwc", "stem_full"),
        ("unet/Gather_2", "unet"),
        ("to_grid/MatMul/MatmulTransposeFusion/", "to_grid"),
        ("slices_back_f32_bf16_from_grid/MatMul", "from_grid"),
        ("unet.classify/Conv/WithoutBiases_acdb_abcd_from_grid/Reshape", "classify"),
        ("unet.decoder.1.join/MatMul + unet.decoder.1.join/Add", "decoder.1"),
        (f"{{ForeignNode[{BLOCK}/Pad...{BLOCK}.mlp.fc2/Add]}}", "encoder.layers.1"),
        ("__myl_Fc_myl0_3 [ONNX Layer: unet.expand_half/ConvTranspose]\x1e[ONNX Layer: unet/Add]", "expand_half"),
    ],
)
def test_names_of_all_engines_tell_the_module(name: str, expected: str) -> None:
    assert folded(("unet.encoder.layers.0/Add", 2.0), (name, 1.0))[expected] == 1.0


@pytest.mark.parametrize(
    "name",
    [
        "BiasGelu_token_12",
        "__myl_Fc_myl0_3",
        "columns/Unsqueeze",
        "{ForeignNode[unet.encoder.patch_embed/Transpose...unet.decoder.1/Add]}",
    ],
)
def test_a_node_without_a_module_belongs_to_the_one_around_it_or_to_none(name: str) -> None:
    inside = folded((f"{BLOCK}/Add", 1.0), (name, 2.0), (name, 4.0), (f"{BLOCK}/Add_2", 8.0))
    assert inside == {"encoder.layers.1": 15.0}
    between = folded((f"{BLOCK}/Add", 1.0), (name, 2.0), ("unet.decoder.0/Concat", 4.0))
    assert between == {"encoder.layers.1": 1.0, UNNAMED: 2.0, "decoder.0": 4.0}
    assert folded((name, 1.0), ("to_grid/Cast", 2.0), ("from_grid/MatMul", 4.0), (name, 8.0)) == {
        "to_grid": 3.0,
        "from_grid": 12.0,
    }
    assert folded(("to_grid/Cast", 1.0), (name, 2.0)) == {"to_grid": 1.0, UNNAMED: 2.0}
    assert folded((name, 1.0)) == {UNNAMED: 1.0}


def test_a_node_of_several_modules_counts_to_the_one_with_most_work() -> None:
    name = "unet/DepthToSpace + unet/Add + unet.head_half.1/Conv"
    assert folded((name, 1.0)) == {"unet": 1.0}
    assert folded((name, 1.0), work={"unet": 0, "unet.head_half.1": 5}) == {"head_half": 1.0}


def test_rates_and_types() -> None:
    nodes = [
        NodeTime(f"{BLOCK}.attn.qkv/MatMul", "", "int8", 0.5),
        NodeTime(f"{BLOCK}.norm1/LayerNormalization", "", "fp32", 1.5),
        NodeTime(f"{BLOCK}/Reshape", "", "int64", 1.0),
        NodeTime(f"{BLOCK}/Pad", "", "fp16", 0.001),
    ]
    (layer,) = fold(nodes, {f"{BLOCK}.attn.qkv": 6_000_000_000})
    assert (layer.seconds, layer.nodes, layer.share) == (3.001, 4, 1.0)
    assert layer.types == ("fp32", "int8")
    assert layer.gflops == pytest.approx(2 * 6 / 3.001)
    assert fold([NodeTime("__myl0", "", "fp16", 1.0)], {BLOCK: 7, "to_grid": 2})[0].multiply_adds == 9


def test_the_table_is_as_long_as_asked_for_and_loses_nothing() -> None:
    nodes = [NodeTime(f"unet.layer{i}/Conv", "", "fp32" if i else "bf16", 1.0 + i) for i in range(14)]
    found = fold(nodes, {f"unet.layer{i}": 10**9 for i in range(14)})
    layers = Layers(ExecutionInfo("an engine", "cpu", "fp32"), 1, 1, sum(node.seconds for node in nodes), 210.0, found)
    assert layers.covered == pytest.approx(0.5)
    table = rows(layers)
    assert [row.module for row in table] == [*(f"layer{i}" for i in reversed(range(4, 14))), "all others"]
    assert (table[-1].seconds, table[-1].multiply_adds, table[-1].nodes) == (10.0, 4 * 10**9, 4)
    assert table[-1].gflops == pytest.approx(0.8)
    assert table[-1].types == ("fp32", "bf16")
    assert sum(row.share for row in table) == pytest.approx(1)
    assert rows(layers, top=14) == list(found)


def check(layers: Layers, chunk: Inputs) -> None:
    """What holds for any engine's profile of the packaged model."""
    assert layers.samples == 2
    assert sum(layer.seconds for layer in layers.layers) == pytest.approx(layers.seconds)
    assert layers.named > 0.5
    assert 0.1 < layers.covered < 1.05
    work = sum(node.multiply_adds for node in count_nodes(CONTENT, chunk, optimised=False))
    assert sum(layer.multiply_adds for layer in layers.layers) == work
    by_name = {layer.module: layer for layer in layers.layers}
    assert by_name["encoder.layers.2"].multiply_adds > by_name["encoder.layers.0"].multiply_adds > 0
    assert all(layer.seconds > 0 for layer in layers.layers)


def test_onnxruntime(chunk: Inputs) -> None:
    backend = OnnxRuntimeBackend(DEFAULT_MODEL, threads=1)
    layers = profile_layers(DEFAULT_MODEL, backend, chunk, repeats=2)
    check(layers, chunk)
    assert MODULES - {"to_grid"} <= {layer.module for layer in layers.layers} <= MODULES | {UNNAMED}
    assert (layers.ran, layers.repeats) == (backend.ran, 2)
    assert {layer.types for layer in layers.layers if layer.multiply_adds and layer.module != "to_grid"} == {("fp32",)}


def test_onnxruntime_is_profiled_with_the_threads_it_was_loaded_with(
    chunk: Inputs, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def timed(*_: object, repeats: int, threads: Any) -> Timing:
        asked.append(threads)
        return time_nodes(CONTENT, chunk, repeats=repeats, threads=threads)

    monkeypatch.setattr(module, "time_nodes", timed)
    profile_layers(DEFAULT_MODEL, OnnxRuntimeBackend(DEFAULT_MODEL, threads=3), chunk, repeats=1)
    assert asked == [3]


@pytest.mark.skipif(importlib.util.find_spec("openvino") is None, reason="openvino is missing: pip install openvino")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_openvino(chunk: Inputs, precision: str) -> None:
    if precision == "bf16" and not computes_bf16():
        pytest.skip("this CPU has no BF16")
    backend = OpenVinoBackend(DEFAULT_MODEL, precision=precision, threads=1)
    layers = profile_layers(DEFAULT_MODEL, backend, chunk, repeats=3)
    check(layers, chunk)
    assert {layer.module for layer in layers.layers} <= MODULES | {UNNAMED}
    stages = [layer for layer in layers.layers if layer.module.startswith(("encoder.layers", "decoder"))]
    assert {layer.types[0] for layer in stages} == {precision}
    assert labels_of(backend, chunk).shape == labels_of(OnnxRuntimeBackend(DEFAULT_MODEL), chunk).shape
    backend.close()


def test_cuda_is_timed_in_a_process_that_waits_for_its_kernels(chunk: Inputs) -> None:
    """The process and what comes back of it, on the CPU's provider."""
    timing = time_apart(CONTENT, chunk, 1, "CPUExecutionProvider")
    here = time_nodes(CONTENT, chunk, repeats=1)
    assert {(node.operator, node.type) for node in timing.nodes} == {(node.operator, node.type) for node in here.nodes}
    assert 0 < sum(node.seconds for node in timing.nodes) < timing.wall_seconds
    assert "CUDA_LAUNCH_BLOCKING" not in os.environ
    with pytest.raises(InputError, match=f"runs on CPUExecutionProvider, expected {PROVIDER}"):
        time_apart(CONTENT, chunk, 1, (PROVIDER, {"device_id": "0"}))


def test_cuda_is_asked_for_as_it_was_loaded(chunk: Inputs, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def apart(content: Any, inputs: Inputs, repeats: int, provider: Any) -> Timing:
        asked.append((inputs["slices"].shape, repeats, provider))
        return time_nodes(content, inputs, repeats=repeats)

    backend = object.__new__(OnnxRuntimeCudaBackend)
    bound: Any = type("Bound", (), {"index": 2})
    backend._bound, backend.ran = bound, ExecutionInfo("onnxruntime", "cuda:2", "fp32")
    monkeypatch.setattr(module, "time_apart", apart)
    check(profile_layers(DEFAULT_MODEL, backend, chunk, repeats=1), chunk)
    ((shape, repeats, (provider, options)),) = asked
    assert (shape, repeats, provider) == (pad_to_bucket(chunk)[0]["slices"].shape, 1, PROVIDER)
    assert (options["device_id"], options["use_tf32"]) == ("2", "0")
    assert "enable_cuda_graph" not in options  # a replayed graph has no nodes


TOLD: dict[str, tuple[float, dict[str, Any]]] = {
    "Reformatting CopyNode for Input Tensor 0 to to_grid/Cast": (0.25, {}),
    "to_grid/MatMul": (0.5, {"Inputs": [{"Name": "x", "Format/Datatype": "Row major linear FP32"}]}),
    "__myl_FcAdd_myl0_1": (
        4.0,
        {
            "LayerType": "gemm",
            "Inputs": [{"Name": "float", "Format/Datatype": "Half"}],
            "Metadata": f"[ONNX Layer: {BLOCK}.mlp.fc1/Add]\x1e[ONNX Layer: {BLOCK}.mlp.fc1/MatMul]",
        },
    ),
    "__myl_Move_myl0_2": (1.0, {}),
    "unet.classify/Conv": (0.25, {"Inputs": [{"Format/Datatype": "Channel major FP16 format"}]}),
}
"""What the fake's layers take in milliseconds, and what its inspector says of them."""


@pytest.fixture(params=["tensorrt", "tensorrt-rtx"])
def engine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """The packaged model on the fake, whose contexts report to a profiler and whose engines have an inspector."""
    gpu = fake_cuda.install(monkeypatch)
    trt: Any = sys.modules[request.param.replace("-", "_")]
    trt.IProfiler = type("IProfiler", (), {})
    if request.param == "tensorrt-rtx":
        trt.DynamicShapesKernelSpecializationStrategy = fake_cuda.made_enum("Strategy", ["LAZY", "EAGER", "NONE"])
    trt.LayerInformationFormat = fake_cuda.made_enum("LayerInformationFormat", ["ONELINE", "JSON"])
    execute = fake_cuda.FakeExecutionContext.execute_async_v3

    def reporting(context: Any, stream: Any) -> bool:
        done = execute(context, stream)
        for name, (ms, _) in TOLD.items() if hasattr(context, "profiler") else ():
            context.profiler.report_layer_time(name, ms)
        return done

    class Inspector:
        execution_context: Any = None

        def get_engine_information(self, form: Any) -> str:
            assert form is trt.LayerInformationFormat.JSON
            assert self.execution_context.shapes
            return json.dumps(
                {"Layers": [{"Name": name, **about} if about else name for name, (_, about) in TOLD.items()]}
            )

    monkeypatch.setattr(fake_cuda.FakeExecutionContext, "execute_async_v3", reporting)
    monkeypatch.setattr(fake_cuda.FakeEngine, "create_engine_inspector", lambda _: Inspector(), raising=False)
    contract = Contract.from_json(CONTRACT.to_json(), where="model")
    path = write_engine(tmp_path / "a.engine", DEFAULT_MODEL, contract, request.param, BatchProfile(1, 4, 8))
    return path, gpu


def test_tensorrt(engine: Any, chunk: Inputs) -> None:
    path, gpu = engine
    backend = TensorRtBackend(path)
    expected, used = labels_of(backend, chunk), (gpu.used, gpu.host)
    before = len(gpu.configs)
    layers = profile_layers(DEFAULT_MODEL, backend, chunk, repeats=3)
    configs = gpu.configs[before:]
    assert {layer.module: layer.seconds for layer in layers.layers} == pytest.approx(
        {"encoder.layers.1": 4e-3, UNNAMED: 1e-3, "to_grid": 0.75e-3, "classify": 0.25e-3}
    )
    assert layers.named == pytest.approx(5 / 6)
    types = {layer.module: layer.types for layer in layers.layers}
    assert types == {"encoder.layers.1": ("fp16",), UNNAMED: (), "to_grid": ("fp32",), "classify": ("fp16",)}
    assert sum(layer.multiply_adds for layer in layers.layers) == sum(
        node.multiply_adds for node in count_nodes(CONTENT, chunk, optimised=False)
    )
    assert layers.covered == pytest.approx(6e-3 / layers.wall_seconds)
    assert [config.cuda_graph_strategy for config in configs] == [None] * len(configs)
    assert (gpu.used, gpu.host) == used  # what was made for it is gone, and the engine goes on as before
    assert (labels_of(backend, chunk) == expected).all()
    if configs:
        assert configs[-1].dynamic_shapes_kernel_specialization_strategy.name == "EAGER"
    without = profile_layers(path, backend, chunk, repeats=1)
    assert {layer.multiply_adds for layer in without.layers} == {0}
    assert [layer.seconds for layer in without.layers] == pytest.approx([layer.seconds for layer in layers.layers])
    backend.close()


def test_others_have_no_profile(chunk: Inputs) -> None:
    class Other:
        ran = ExecutionInfo("an engine 1.0", "cpu", "fp32")

    other: Any = Other()
    with pytest.raises(InputError, match=r"an engine 1\.0: no profile"):
        profile_layers(DEFAULT_MODEL, other, chunk)


def test_it_needs_neither_torch_nor_onnx() -> None:
    script = (
        "import sys\n"
        "for name in ('torch', 'timm', 'onnx', 'openvino', 'tensorrt', 'pycuda'): sys.modules[name] = None\n"
        "from parotid_seg.bench.layers import profile_layers, rows\n"
        "from parotid_seg.models import DEFAULT_MODEL\n"
        "from parotid_seg.runtime.engines.onnxruntime.cpu import OnnxRuntimeBackend\n"
        "from parotid_seg.runtime.engines.engine_benchmark import usual_chunk\n"
        "backend = OnnxRuntimeBackend(DEFAULT_MODEL)\n"
        "found = profile_layers(DEFAULT_MODEL, backend, usual_chunk(backend.contract, 1), repeats=1)\n"
        "print(len(rows(found)))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "11\n"), done.stderr
