"""The TensorRT backend on a GPU that is none (see `tests.fakes.fake_cuda`); on a real one it is tested in tests/gpu."""

import gc
import importlib
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from parotid_seg.contract import METADATA_KEY, Contract
from parotid_seg.errors import DeviceError, DeviceMemoryError, ModelError, ParotidSegError, ScanError
from parotid_seg.models import DEFAULT_MODEL
from parotid_seg.runtime.engines.base import ExecutionInfo, labels_of
from parotid_seg.runtime.engines.engine_file import BatchProfile, read_sidecar
from parotid_seg.runtime.engines.onnxruntime.cpu import OnnxRuntimeBackend
from parotid_seg.runtime.engines.tensorrt import tensorrt_engine as module
from parotid_seg.runtime.engines.tensorrt.execution_slot import SHAPES
from parotid_seg.runtime.engines.tensorrt.tensorrt_engine import TensorRtBackend
from tests.export.small_model import CONTRACT
from tests.fakes import fake_cuda
from tests.fakes.fake_cuda import ADA, SCRATCH_OF_A_LOOK, write_engine
from tests.fakes.fake_gpu import CudaError, CudaMemoryError, FakeGpu
from tests.runtime.engines.tensorrt.on_fake_gpu import BATCH, check, engine_of, inputs_of, run, scan

pytestmark = pytest.mark.slow


def test_labels_are_onnxruntimes_at_any_size_with_a_ragged_last_chunk(gpu: FakeGpu, library: str, small: Path) -> None:
    backend, reference = TensorRtBackend(engine_of(small, library)), OnnxRuntimeBackend(small)
    for seed, (size, batch_size) in enumerate(
        [((19, 40, 48), 4), ((9, 96, 64), 8), ((5, 33, 17), 1), ((19, 40, 48), 4)]
    ):
        inputs = inputs_of(scan(*size, seed), batch_size)
        assert len(inputs[-1]["neighbours"]) != len(inputs[0]["neighbours"]) or batch_size == 1
        check(backend, reference, inputs)
    backend.close()


def test_the_packaged_model(gpu: FakeGpu, small: Path) -> None:
    metadata = {entry.key: entry.value for entry in onnx.load(DEFAULT_MODEL).metadata_props}
    contract = Contract.from_json(metadata[METADATA_KEY], where="model")
    engine = write_engine(small.with_suffix(".engine"), DEFAULT_MODEL, contract, "tensorrt", BATCH)
    backend, reference = TensorRtBackend(engine), OnnxRuntimeBackend(DEFAULT_MODEL)
    for got, wanted in zip(
        run(backend, inputs_of(scan(7), 4, contract)),
        [labels_of(reference, each) for each in inputs_of(scan(7), 4, contract)],
        strict=True,
    ):
        np.testing.assert_array_equal(got, wanted)
    backend.close()


def test_what_is_told(gpu: FakeGpu, library: str, small: Path) -> None:
    engine = engine_of(small, library)
    backend = TensorRtBackend(engine)
    title = {"tensorrt": "TensorRT 10.13.0", "tensorrt-rtx": "TensorRT-RTX 1.7.1"}[library]
    assert backend.ran == ExecutionInfo(title, f"cuda:0 {ADA.name}", "fp16")
    assert (backend.batch_size, backend.largest_batch, backend.queue_depth) == (4, 8, module.SLOTS)
    assert backend.contract == CONTRACT
    assert backend.model_sha256 == read_sidecar(engine).engine_sha256
    assert gpu.runtimes[0].engine_host_code_allowed
    backend.close()


def test_chunks_overlap_and_may_be_waited_for_late_or_never(gpu: FakeGpu, small: Path) -> None:
    backend, reference = TensorRtBackend(engine_of(small)), OnnxRuntimeBackend(small)
    inputs = inputs_of(scan(23), 4)
    pending = [backend.start(each) for each in inputs[:2]]
    assert gpu.done == []  # both are under way, in streams of their own
    pending += [backend.start(each) for each in inputs[2:]]
    for number in (5, 0, 3, 1, 2, 4):
        np.testing.assert_array_equal(pending[number].result(), labels_of(reference, inputs[number]))
    assert pending[2].result() is pending[2].result()
    assert len({stream for stream, _ in gpu.done}) == module.SLOTS
    for stream in gpu.streams:
        steps = [what for where, what in gpu.done if where == stream]
        assert steps == ["in", "compute", "out"] * (len(steps) // 3)
    last = backend.start(inputs[0])
    backend.close()
    np.testing.assert_array_equal(last.result(), labels_of(reference, inputs[0]))


def test_a_chunk_is_timed_by_events_on_its_stream(gpu: FakeGpu, library: str, small: Path) -> None:
    backend, reference = TensorRtBackend(engine_of(small, library)), OnnxRuntimeBackend(small)
    for inputs in inputs_of(scan()):
        output, times = backend.timed(inputs)
        np.testing.assert_array_equal(output, labels_of(reference, inputs))
        assert times == pytest.approx((1e-3, 1e-3, 1e-3))  # the fake's events count what lies between them
    check(backend, reference, inputs_of(scan(seed=1)))
    backend.close()


def test_inputs_may_change_once_they_are_handed_in(gpu: FakeGpu, small: Path) -> None:
    backend, reference = TensorRtBackend(engine_of(small)), OnnxRuntimeBackend(small)
    inputs = inputs_of(scan())[1]
    expected, changed = labels_of(reference, inputs), {name: array.copy() for name, array in inputs.items()}
    pending = backend.start(changed)
    changed["slices"][:] = 0
    np.testing.assert_array_equal(pending.result(), expected)
    backend.close()


def test_the_steady_state_makes_nothing_new(gpu: FakeGpu, library: str, small: Path) -> None:
    backend, inputs = TensorRtBackend(engine_of(small, library)), inputs_of(scan())
    for _ in range(2):
        run(backend, inputs)
    made, contexts, memory = backend.allocations, len(gpu.contexts), (gpu.used, gpu.host)
    assert made > 0
    run(backend, inputs)
    run(backend, inputs_of(scan(5, 24, 24), 2)[1:])  # smaller
    assert (gpu.used, gpu.host) == memory
    assert backend.allocations - made == len(gpu.contexts) - contexts  # for shapes that are new
    for _ in range(2):
        run(backend, inputs)
    made = backend.allocations
    run(backend, inputs)
    assert backend.allocations == made
    backend.close()


def test_shapes_beyond_those_kept_ready_take_over_the_oldest_ones_place(gpu: FakeGpu, small: Path) -> None:
    backend, reference = TensorRtBackend(engine_of(small)), OnnxRuntimeBackend(small)
    for seed in range(6):
        inputs = inputs_of(scan(9, 24 + seed, 30, seed), 3)
        for _ in range(3):
            check(backend, reference, inputs)
    assert len(gpu.contexts) == module.SLOTS * SHAPES
    assert 0 < len(gpu.graphs) <= module.SLOTS * SHAPES
    backend.close()
    assert gpu.graphs == {}


def test_graphs_are_captured_when_a_shape_comes_back_and_replayed(gpu: FakeGpu, small: Path) -> None:
    backend, reference = TensorRtBackend(engine_of(small)), OnnxRuntimeBackend(small)
    first, second = inputs_of(scan(seed=1)), inputs_of(scan(seed=2))
    run(backend, first[: module.SLOTS])
    assert backend.replays == 0
    for each in (first, second, first, second):
        check(backend, reference, each)
    before = backend.replays
    check(backend, reference, first)
    assert backend.replays - before == len(first)
    assert backend.graphs == "captured when shapes repeat"
    check(backend, reference, inputs_of(scan(11, 96, 96, 3), 8))  # larger: other addresses, so no old graph is right
    check(backend, reference, second)
    backend.close()
    assert gpu.graphs == {}


def test_tensorrt_rtx_captures_itself(gpu: FakeGpu, small: Path) -> None:
    backend, inputs = TensorRtBackend(engine_of(small, "tensorrt-rtx")), inputs_of(scan())
    for _ in range(3):
        run(backend, inputs)
    config = gpu.configs[-1]
    assert (config.cuda_graph_strategy.name, config.allocation.name) == ("WHOLE_GRAPH_CAPTURE", "USER_MANAGED")
    assert config.dynamic_shapes_kernel_specialization_strategy.name == "LAZY"
    assert len(gpu.configs) == 2, "one made the cache, the other all contexts"
    assert (backend.replays, backend.graphs) == (0, "captured by TensorRT-RTX")
    backend.close()


def test_an_old_tensorrt_rtx_makes_no_graphs_and_that_is_told(
    gpu: FakeGpu, small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = engine_of(small, "tensorrt-rtx")
    rtx = importlib.import_module("tensorrt_rtx")
    created = fake_cuda.FakeRuntimeConfig(gpu)
    monkeypatch.setattr(fake_cuda.FakeEngine, "create_runtime_config", lambda _: created)
    monkeypatch.delattr(rtx, "CudaGraphStrategy")
    backend = TensorRtBackend(engine)
    assert backend.graphs == "none: TensorRT-RTX 1.7.1 makes none"
    assert created.cuda_graph_strategy is None
    backend.close()


@pytest.mark.parametrize("refused_by", ["driver", "library"])
def test_a_failed_capture_is_told_and_the_labels_are_right(
    gpu: FakeGpu, small: Path, monkeypatch: pytest.MonkeyPatch, refused_by: str
) -> None:
    backend, reference = TensorRtBackend(engine_of(small)), OnnxRuntimeBackend(small)
    if refused_by == "driver":
        gpu.no_capture = True
    else:
        never = property(lambda _: False, lambda *_: None)
        monkeypatch.setattr(fake_cuda.FakeExecutionContext, "flushed", never, raising=False)
    for _ in range(3):
        check(backend, reference, inputs_of(scan()))
    reason = {"driver": "cuStreamBeginCapture_v2: CUDA error 900", "library": "not permitted when stream is capturing"}
    assert reason[refused_by] in backend.graphs
    assert backend.graphs.startswith("none: capturing failed: ")
    assert backend.ran.backend == f"TensorRT 10.13.0, CUDA graphs {backend.graphs}"
    assert (backend.replays, gpu.graphs) == (0, {})
    backend.close()


def test_small_chunks_are_filled_up_to_the_engines_least_batch(
    gpu: FakeGpu, small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    real = fake_cuda.FakeExecutionContext.set_input_shape

    def watched(context: Any, name: str, shape: Any) -> bool:
        seen.append((name, shape))
        return real(context, name, shape)

    monkeypatch.setattr(fake_cuda.FakeExecutionContext, "set_input_shape", watched)
    backend = TensorRtBackend(engine_of(small, batch=BatchProfile(3, 4, 8)))
    check(backend, OnnxRuntimeBackend(small), inputs_of(scan(9)))  # 4, 4 and 1 looks
    assert {shape[0] for name, shape in seen if name == "neighbours"} == {3, 4}
    assert (1, 3) in {shape for name, shape in seen if name == "slices_back"}
    backend.close()


def test_a_chunk_that_the_engine_was_not_built_for(gpu: FakeGpu, small: Path) -> None:
    engine = engine_of(small)
    backend, reference = TensorRtBackend(engine), OnnxRuntimeBackend(small)
    for volume, batch_size, words in (
        (scan(30), 20, "neighbours of a chunk: found 20 x 3 x 21, expected 1 x 3 x 1 to 9 x 3 x 73, for which"),
        (scan(4, 12, 40), 4, "slices of a chunk: found 1 x 4 x 12 x 37, expected 1 x 1 x 16 x 16 to 1 x 73 x 1024"),
    ):
        with pytest.raises(ScanError) as caught:
            backend.start(inputs_of(volume, batch_size)[0])
        assert str(caught.value).startswith(f"{engine}: ")
        assert words in str(caught.value)
        assert "\n" not in str(caught.value)
    check(backend, reference, inputs_of(scan()))
    backend.close()


def test_too_little_gpu_memory_is_told_and_smaller_chunks_go_on(gpu: FakeGpu, library: str, small: Path) -> None:
    backend, reference = TensorRtBackend(engine_of(small, library)), OnnxRuntimeBackend(small)
    check(backend, reference, inputs_of(scan(), 2))
    gpu.limit = 2 * 5 * SCRATCH_OF_A_LOOK
    large = inputs_of(scan(), 8)
    with pytest.raises(DeviceMemoryError, match=r"out of GPU memory for a chunk of 8 samples \(cuMemAlloc failed"):
        run(backend, large)
    assert (gpu.used, gpu.host) == (0, 0)
    check(backend, reference, inputs_of(scan(), 4))
    with pytest.raises(DeviceMemoryError):
        run(backend, large)
    check(backend, reference, inputs_of(scan(), 2))
    backend.close()


def test_chunks_under_way_come_out_when_the_next_does_not_fit(gpu: FakeGpu, small: Path) -> None:
    backend, reference = TensorRtBackend(engine_of(small)), OnnxRuntimeBackend(small)
    under_way, (fits, *_) = [], inputs_of(scan(), 2)
    under_way.append(backend.start(fits))
    gpu.limit = 5 * SCRATCH_OF_A_LOOK
    with pytest.raises(DeviceMemoryError):
        backend.start(inputs_of(scan(), 8)[0])
    np.testing.assert_array_equal(under_way[0].result(), labels_of(reference, fits))
    backend.close()


def test_an_error_on_the_gpu_belongs_to_its_own_chunk(gpu: FakeGpu, small: Path) -> None:
    backend, reference = TensorRtBackend(engine_of(small)), OnnxRuntimeBackend(small)
    inputs = inputs_of(scan())
    failed = backend.start(inputs[0])
    backend.start(inputs[1]).result()
    gpu.failing = CudaError("cuStreamSynchronize failed: an illegal memory access was encountered")
    with pytest.raises(DeviceError, match=r"the GPU cannot be used for a chunk \(.*illegal memory access"):
        failed.result()
    np.testing.assert_array_equal(backend.start(inputs[2]).result(), labels_of(reference, inputs[2]))
    gpu.failing, failed = None, backend.start(inputs[0])
    gpu.failing = CudaMemoryError("out of memory")
    with pytest.raises(DeviceMemoryError):
        failed.result()
    backend.close()


def test_the_host_programs_context_is_left_as_it_was(gpu: FakeGpu, small: Path) -> None:
    gpu.stack.append("the host program's")
    engine = engine_of(small)

    def unchanged(made: Any) -> Any:
        assert gpu.stack == ["the host program's"]
        return made

    backend = unchanged(TensorRtBackend(engine))
    pending = unchanged(backend.start(inputs_of(scan())[0]))
    unchanged(pending.result())
    with pytest.raises(ScanError):
        backend.start(inputs_of(scan(30), 20)[0])
    unchanged(None)
    unchanged(backend.close())
    engine.write_bytes(b"another")
    with pytest.raises(ModelError):
        TensorRtBackend(engine)
    unchanged(None)
    assert gpu.retained == 0


def test_closing_gives_everything_back_in_order_once(gpu: FakeGpu, library: str, small: Path) -> None:
    backend, inputs = TensorRtBackend(engine_of(small, library)), inputs_of(scan())
    for _ in range(3):
        chunk = run(backend, inputs)
    kept = backend.start(inputs[0])  # a chunk that the caller keeps does not keep the engine
    gpu.contexts.clear()
    gc.disable()
    try:
        backend.close()
    finally:
        gc.enable()
    assert gpu.gone == [("engine", True), ("context", False)]
    assert (gpu.used, gpu.host, gpu.graphs, gpu.retained) == (0, 0, {}, 0)
    np.testing.assert_array_equal(kept.result(), chunk[0])
    backend.close()
    assert gpu.retained == 0
    with pytest.raises(ParotidSegError, match=r"small\.engine: the engine is closed"):
        backend.start(inputs[0])


def test_two_backends_in_one_process(gpu: FakeGpu, library: str, small: Path, tmp_path: Path) -> None:
    first = TensorRtBackend(engine_of(small))
    second = TensorRtBackend(write_engine(tmp_path / "2.engine", small, CONTRACT, library, BATCH))
    reference, inputs = OnnxRuntimeBackend(small), inputs_of(scan())
    for _ in range(2):
        for each in inputs:
            one, other, expected = first.start(each), second.start(each), labels_of(reference, each)
            np.testing.assert_array_equal(other.result(), expected)
            np.testing.assert_array_equal(one.result(), expected)
    first.close()
    check(second, reference, inputs)
    second.close()
    assert (gpu.used, gpu.retained) == (0, 0)
