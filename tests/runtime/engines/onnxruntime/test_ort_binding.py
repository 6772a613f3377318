"""Bound inputs and outputs, tried on the CPU: the same code that runs on a GPU, but for the stream."""

from typing import Any

import nibabel
import numpy as np
import onnx
import onnxruntime
import pytest

from parotid_seg.errors import DeviceError, DeviceMemoryError, ModelError
from parotid_seg.models import DEFAULT_MODEL
from parotid_seg.runtime.engines.base import labels_of
from parotid_seg.runtime.engines.onnxruntime import io_binding
from parotid_seg.runtime.engines.onnxruntime.cpu import OnnxRuntimeBackend
from parotid_seg.runtime.engines.onnxruntime.io_binding import WITHOUT_GRAPH, IoBindingSession
from parotid_seg.runtime.engines.onnxruntime.stream import CudaRuntimeError
from parotid_seg.runtime.engines.padding import STEPS, pad_to_bucket
from parotid_seg.runtime.engines.rewriting.packed_labels import packed
from parotid_seg.scan.chunks import Inputs, chunks
from parotid_seg.scan.intensity import in_windows
from parotid_seg.scan.nifti import read_nifti
from tests.dicom_example import few_slices
from tests.runtime.engines.onnxruntime.host_stream import HostStream

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def plain() -> OnnxRuntimeBackend:
    return OnnxRuntimeBackend(DEFAULT_MODEL)


@pytest.fixture(scope="module")
def session() -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(DEFAULT_MODEL, providers=["CPUExecutionProvider"])


@pytest.fixture(scope="module")
def scan(
    plain: OnnxRuntimeBackend, head: nibabel.Nifti1Image, tmp_path_factory: pytest.TempPathFactory
) -> list[Inputs]:
    path = tmp_path_factory.mktemp("head") / "a.nii.gz"
    few_slices(head).to_filename(path)
    contract = plain.contract
    volume, windows = in_windows(read_nifti(path).volume, contract.channels, contract.windows)
    return [chunk.inputs for chunk in chunks(volume, windows, contract.grid, 4)]


class Watched:
    """A session that notes the graph asked for in every run, and can fail."""

    def __init__(self, session: Any) -> None:
        self._session = session
        self.graphs: list[str] = []
        self.released: list[int] = []
        self.failure: str | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)

    def run_with_iobinding(self, binding: Any, options: Any) -> None:
        self.graphs.append(options.get_run_config_entry("gpu_graph_id"))
        if self.failure:
            raise RuntimeError(self.failure)
        self._session.run_with_iobinding(binding, options)

    def release_captured_graph(self, graph: int) -> None:
        self.released.append(graph)


def test_padding_rounds_up_and_changes_no_label(plain: OnnxRuntimeBackend, scan: list[Inputs]) -> None:
    for inputs in scan:
        more, size = pad_to_bucket(inputs)
        assert more["slices"].shape[1] % STEPS["depth"] == more["rows_back"].shape[0] % STEPS["height"] == 0
        assert more["slices"].shape[3] % STEPS["width"] == more["slices_back"].shape[0] % STEPS["out"] == 0
        expected = labels_of(plain, inputs)
        found = size.of(labels_of(plain, more))
        assert found.shape == expected.shape
        assert np.count_nonzero(found != expected) <= 1
    assert any(labels_of(plain, inputs).any() for inputs in scan)


def test_padding_leaves_what_fits_alone(scan: list[Inputs]) -> None:
    once, _ = pad_to_bucket(scan[0])
    twice, size = pad_to_bucket(once)
    assert all(np.array_equal(once[name], twice[name]) for name in once)
    assert size == (len(once["slices_back"]), len(once["rows_back"]), len(once["columns_back"]))


def test_probabilities_are_cut_like_labels(scan: list[Inputs]) -> None:
    size = pad_to_bucket(scan[0])[1]
    scores = np.zeros((size.out + 3, 4, size.height + 5, size.width + 6), np.float32)
    assert size.of(scores).shape == (size.out, 4, size.height, size.width)


def test_chunks_of_one_shape_do_not_leak_into_each_other(
    plain: OnnxRuntimeBackend, session: onnxruntime.InferenceSession, scan: list[Inputs]
) -> None:
    bound = IoBindingSession(session, "labels", HostStream(), "cpu")
    first = bound.start(scan[0]).result()
    kept = first.copy()
    for inputs in (*scan, *reversed(scan)):
        assert np.count_nonzero(bound.start(inputs).result() != labels_of(plain, inputs)) <= 1
    np.testing.assert_array_equal(first, kept, err_msg="the output is the caller's own")


def test_packed_labels_are_the_labels(session: onnxruntime.InferenceSession, scan: list[Inputs]) -> None:
    content = packed(onnx.load(DEFAULT_MODEL), 3).SerializeToString()
    packing = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    one, other = (
        IoBindingSession(each, "labels", HostStream(), "cpu", labels_per_byte=4) for each in (session, packing)
    )
    for inputs in scan:
        np.testing.assert_array_equal(other.start(inputs).result(), one.start(inputs).result())
        np.testing.assert_array_equal(other.timed(inputs)[0], one.start(inputs).result())
        assert one.copied[0] == other.copied[0] > sum(array.nbytes for array in inputs.values())
        assert one.copied[1] == 4 * other.copied[1]


def test_a_graph_is_captured_at_the_second_chunk_of_a_shape_and_replayed(
    session: onnxruntime.InferenceSession, scan: list[Inputs]
) -> None:
    watched = Watched(session)
    bound = IoBindingSession(watched, "labels", HostStream(), "cpu", graphs=True)
    shorter = {**scan[0], "neighbours": scan[0]["neighbours"][:3], "slices_back": scan[0]["slices_back"][:, :3]}
    for inputs in (scan[0], scan[0], shorter, scan[0], shorter):
        bound.start(inputs).result()
    assert watched.graphs == [WITHOUT_GRAPH, "1", WITHOUT_GRAPH, "1", "2"]


def test_without_graphs_none_is_asked_for(session: onnxruntime.InferenceSession, scan: list[Inputs]) -> None:
    watched = Watched(session)
    bound = IoBindingSession(watched, "labels", HostStream(), "cpu")
    for _ in range(3):
        bound.start(scan[0]).result()
    assert watched.graphs == [WITHOUT_GRAPH] * 3
    bound.clear()
    assert not watched.released


def test_only_the_latest_shapes_are_kept_and_their_graphs_released(
    session: onnxruntime.InferenceSession, scan: list[Inputs], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(io_binding, "KEPT_SHAPES", 2)
    watched = Watched(session)
    bound = IoBindingSession(watched, "labels", HostStream(), "cpu", graphs=True)
    sizes = [
        {**scan[0], "neighbours": scan[0]["neighbours"][:n], "slices_back": scan[0]["slices_back"][:, :n]}
        for n in (1, 2, 3)
    ]
    for number in (0, 0, 1, 1, 0, 2):  # the second is the one not used for longest
        bound.start(sizes[number]).result()
    assert watched.released == [2]
    bound.start(sizes[1]).result()
    assert watched.graphs[-1] == WITHOUT_GRAPH, "a shape that was given up begins anew"
    assert watched.released == [2, 1]


@pytest.mark.parametrize(
    "words",
    [
        "BFCArena::AllocateRawInternal Failed to allocate memory for requested buffer of size 26214400",
        "CUDA failure 2: out of memory ; GPU=0",
        "CUBLAS failure 3: CUBLAS_STATUS_ALLOC_FAILED",
    ],
)
def test_no_memory_is_its_own_error_and_gives_up_what_was_kept(
    session: onnxruntime.InferenceSession, scan: list[Inputs], words: str
) -> None:
    watched = Watched(session)
    bound = IoBindingSession(watched, "labels", HostStream(), "cpu", graphs=True)
    bound.start(scan[0]).result()
    bound.start(scan[0]).result()
    watched.failure = words
    with pytest.raises(
        DeviceMemoryError, match=r"a chunk of 4 samples \(.* voxels\) does not fit into the memory of cuda:0; fewer"
    ):
        bound.start(scan[0]).result()
    assert watched.released == [1]
    watched.failure = None
    assert bound.start(scan[0]).result().any() == bound.start(scan[0]).result().any()


def test_other_failures_are_the_models(session: onnxruntime.InferenceSession, scan: list[Inputs]) -> None:
    watched = Watched(session)
    watched.failure = "something else"
    with pytest.raises(ModelError, match=r"onnxruntime cannot run the model \(something else\)"):
        IoBindingSession(watched, "labels", HostStream(), "cpu").start(scan[0]).result()


def test_two_chunks_are_in_flight_and_a_third_of_the_shape_waits_for_the_first(
    plain: OnnxRuntimeBackend, session: onnxruntime.InferenceSession, scan: list[Inputs]
) -> None:
    stream = HostStream()
    bound = IoBindingSession(session, "labels", stream, "cpu")
    inputs = [{**scan[0], "slices": np.roll(scan[0]["slices"], shift, axis=3)} for shift in (0, 3, 6)]
    started = [bound.start(each) for each in inputs[:2]]
    assert (stream.waits, len(stream.buffers)) == (0, 4), "inputs and output of two chunks"
    started.append(bound.start(inputs[2]))
    assert (stream.waits, len(stream.buffers)) == (1, 4)
    for chunk, each in zip(reversed(started), reversed(inputs), strict=True):
        assert np.count_nonzero(chunk.result() != labels_of(plain, each)) <= 1
        assert chunk.result() is chunk.result(), "it is waited for once"
    assert stream.waits == 3
    bound.clear()
    assert not stream.buffers


def test_chunks_one_after_the_other_use_the_same_buffers(
    session: onnxruntime.InferenceSession, scan: list[Inputs]
) -> None:
    stream = HostStream()
    bound = IoBindingSession(session, "labels", stream, "cpu")
    for _ in range(3):
        bound.start(scan[0]).result()
    assert len(stream.buffers) == 2


def test_a_failure_on_the_gpu_is_that_of_the_chunk_in_flight(
    session: onnxruntime.InferenceSession, scan: list[Inputs]
) -> None:
    stream = HostStream()
    bound = IoBindingSession(session, "labels", stream, "cpu")
    chunk = bound.start(scan[0])
    stream.failure = CudaRuntimeError("CUDA failure 719: unspecified launch failure ; cudaEventSynchronize")
    for _ in range(2):
        with pytest.raises(DeviceError, match=r"cuda:0 failed: CUDA: unspecified launch failure$"):
            chunk.result()
    bound.clear()


def test_times_are_of_the_steps(
    plain: OnnxRuntimeBackend, session: onnxruntime.InferenceSession, scan: list[Inputs]
) -> None:
    bound = IoBindingSession(session, "labels", HostStream(), "cpu")
    output, times = bound.timed(scan[0])
    assert np.count_nonzero(output != labels_of(plain, scan[0])) <= 1
    assert min(times) > 0
    assert max(times) == times.compute


def test_memory_that_runs_out_while_chunks_are_waited_for_ends_each_with_its_error(
    session: onnxruntime.InferenceSession, scan: list[Inputs]
) -> None:
    stream = HostStream()
    bound = IoBindingSession(session, "labels", stream, "cpu")
    started = [bound.start(scan[0]), bound.start(scan[0])]
    stream.failure = CudaRuntimeError("CUDA failure 2: out of memory ; cudaEventSynchronize")
    bound.clear()
    assert not stream.buffers
    for chunk in started:
        with pytest.raises(DeviceMemoryError, match=r"fewer samples at once may"):
            chunk.result()
