"""What the tests of the stub run in the environment with onnxruntime-gpu: `child.py SCENARIO MODEL` prints JSON."""

from __future__ import annotations

import ctypes
import json
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from parotid_seg.runtime.engines import engine_benchmark
from parotid_seg.runtime.engines.base import Backend, PendingChunk
from parotid_seg.runtime.engines.engine_benchmark import EngineBenchmark, usual_chunk
from parotid_seg.runtime.engines.load import load_backend
from parotid_seg.runtime.engines.onnxruntime import cuda
from parotid_seg.runtime.engines.onnxruntime.cuda import OnnxRuntimeCudaBackend
from parotid_seg.runtime.engines.onnxruntime.onnxruntime_engine import candidates
from parotid_seg.runtime.engines.registry import Request, compute_a_sample
from parotid_seg.scan.chunks import Inputs
from parotid_seg.scan.volume import Volume

BATCH = 16
REACH = 8
"""Slices beyond a chunk of usual slices, 3 mm apart, that its first and last sample need."""
GLANDS = slice(80, 96)
"""Some slices of the example scan that show the glands."""
SCENARIOS: dict[str, Callable[[Path], object]] = {}
FAILURES = {
    "no device": ("cudaGetDeviceCount", 100),
    "an old driver": ("*", 35),
    "no memory": ("cudaMalloc", 2),
    "no kernels": ("cudaLaunchKernel", 209),
    "cuDNN fails": ("cudnnBackendExecute", 5000),
    "cuBLAS fails": ("cublasCreate_v2", 1),
    "lost": ("cudaMemcpy", 719),
}
"""A function of CUDA, or all, and the error that it returns."""
LATER = {
    "no memory later": ("cudaMalloc", 2),
    "lost later": ("*", 719),
    "lost in a replay": ("cudaGraphLaunch", 719),
}


class Stub:
    """The stub's own functions, see cudart.c."""

    def __init__(self) -> None:
        self._library = ctypes.CDLL("libcudart.so.13")
        self._library.stub_events.restype = ctypes.c_char_p

    def fail(self, function: str, code: int) -> None:
        """Let a function of CUDA return an error from now on."""
        self._library.stub_fail(function.encode(), code)

    @contextmanager
    def events(self) -> Iterator[list[str]]:
        """The events within the block."""
        self._library.stub_forget()
        lines: list[str] = []
        yield lines
        lines += self._library.stub_events().decode().splitlines()


STUB = Stub()


def scenario(function: Callable[[Path], object]) -> Callable[[Path], object]:
    """Register a scenario under its name."""
    SCENARIOS[function.__name__] = function
    return function


@scenario
def chunks(model: Path) -> object:
    """Four chunks of one shape: computed, captured and twice replayed."""
    backend = OnnxRuntimeCudaBackend(model)
    chunk = usual_chunk(backend.contract, BATCH)
    found = []
    for _ in range(4):
        with STUB.events() as events:
            labels = backend.start(chunk).result()
        found.append(counted(events))
    nodes: dict[str, Counter[str]] = {}
    for part in backend._bound.session.get_provider_graph_assignment_info():
        nodes.setdefault(part.ep_name, Counter()).update(node.op_type for node in part.get_nodes())
    return {
        "ran": [backend.ran.backend, backend.ran.device, backend.ran.precision],
        "chunks": found,
        "bytes": sum(array.nbytes for array in chunk.values()),
        "voxels": labels.size,
        "nodes": nodes,
    }


@scenario
def traffic(model: Path) -> object:
    """Bytes over the bus for a labelled voxel in the steady state, by samples of a chunk: of a whole scan, and of a
    chunk in the middle of one, with neighbours on both sides."""
    backend = OnnxRuntimeCudaBackend(model)
    found = {}
    for size in (16, 64, 256):
        whole = usual_chunk(backend.contract, size)
        more = usual_chunk(backend.contract, size + 2 * REACH)
        inside = slice(REACH, -REACH)
        part = {"neighbours": more["neighbours"][inside], "slices_back": more["slices_back"][inside, inside]}
        found[size] = [bytes_a_voxel(backend, chunk) for chunk in (whole, {**more, **part})]
    return found


def bytes_a_voxel(backend: Backend, chunk: Inputs) -> float:
    """Bytes up and down for a voxel that a replayed chunk labels."""
    for _ in range(2):
        backend.start(chunk).result()
    with STUB.events() as events:
        labels = backend.start(chunk).result()
    copied = counted(events)
    return round((copied["up"] + copied["down"]) / labels.size, 3)


@scenario
def shapes_in_turn(model: Path) -> object:
    """Chunks of several shapes in turn: how often each kind of event occurred, for each chunk."""
    backend = OnnxRuntimeCudaBackend(model)
    backend.batch_size = 24
    of_size = {size: usual_chunk(backend.contract, size) for size in (24, 15, 7)}
    found = []
    for size in (24, 24, 24, 15, 24, 15, 24, 15, 7, 24, 15, 7, 7, 24, 15, 7):
        with STUB.events() as events:
            backend.start(of_size[size]).result()
        found.append((size, counted(events)))
    return found


@scenario
def in_flight(model: Path) -> object:
    """Two chunks of a known shape submitted one after the other, then both results taken: events of each step."""
    backend = OnnxRuntimeCudaBackend(model)
    chunk = usual_chunk(backend.contract, BATCH)
    found: list[Counter[str]] = []
    for _ in range(4):
        found.clear()
        pending = []
        for _ in range(2):
            with STUB.events() as events:
                pending.append(backend.start(chunk))
            found.append(Counter(event.split()[0] for event in events))
        for each in pending:
            with STUB.events() as events:
                each.result()
            found.append(Counter(event.split()[0] for event in events))
    return found


@scenario
def failures(model: Path) -> object:
    """The error of each failure, in a process of its own: class, text and when it is raised."""
    return {name: forked(lambda failure=failure: at_loading(model, failure)) for name, failure in FAILURES.items()} | {  # type: ignore[misc]
        name: forked(lambda failure=failure: later(model, failure))  # type: ignore[misc]
        for name, failure in LATER.items()
    }


def at_loading(model: Path, failure: tuple[str, int]) -> object:
    """What a failure becomes that is there from the beginning."""
    STUB.fail(*failure)
    return loading(model)


def later(model: Path, failure: tuple[str, int]) -> object:
    """What a failure becomes after some chunks."""
    backend = OnnxRuntimeCudaBackend(model)
    known, larger = usual_chunk(backend.contract, 2), usual_chunk(backend.contract, 64)
    for _ in range(3):
        backend.start(known).result()
    STUB.fail(*failure)
    chunk: Inputs = larger if failure[0] == "cudaMalloc" else known
    found = outcome(lambda: backend.start(chunk).result())
    backend.close()
    return found


@scenario
def loading(model: Path) -> object:
    """The error of loading, if there is one."""
    return outcome(lambda: compute_a_sample(OnnxRuntimeCudaBackend(model)))


@scenario
def trial(model: Path) -> object:
    """What `auto` chooses between: the choice, and the batch sizes of the chunks that were computed."""
    said: list[str] = []
    sizes: Counter[int] = Counter()

    class Counting(OnnxRuntimeCudaBackend):
        def start(self, inputs: Inputs) -> PendingChunk:
            sizes[len(inputs["neighbours"])] += 1
            return super().start(inputs)

    cuda.OnnxRuntimeCudaBackend = Counting  # type: ignore[misc]
    backend = load_backend(model, device="cuda", say=said.append, allow_unverified=True)
    return {"batch size": backend.batch_size, "ran": str(backend.ran), "said": said, "sizes": sizes}


@scenario
def first_use(model: Path) -> object:
    """What `auto` says of the graphs that it makes, if they are faster, and what they run as."""
    order = [f"onnxruntime CUDA {graph}" for graph in ("FP32", "FP32 fused", "FP16", "FP16 fused")]

    class Pretended(EngineBenchmark):
        def speeds(self, backends: Mapping[str, Backend], failed: object) -> dict[str, float]:
            return {name: 1 + order.index(name) for name in backends}

    example = EngineBenchmark._example

    def short(benchmark: EngineBenchmark) -> Volume:
        whole = example(benchmark)
        return replace(whole, voxels=whole.voxels[:, GLANDS])

    EngineBenchmark._example = short  # type: ignore[assignment, method-assign]
    engine_benchmark.EngineBenchmark = Pretended  # type: ignore[misc]
    with TemporaryDirectory() as cache:
        os.environ["XDG_CACHE_HOME"] = cache
        said: list[str] = []
        backend = load_backend(model, device="cuda", say=said.append)
        others = candidates(Request(model, backend.contract, 0, None, "labels", said.append))[1:]
        made = [each.load() for each in others]
    ran = [(str(each.ran), each.model_sha256 == backend.model_sha256) for each in made]
    return {"said": said, "ran": str(backend.ran), "made": ran}


@scenario
def auto_without_kernels(model: Path) -> object:
    """Where `auto` goes on a GPU without kernels, and what it says."""
    said: list[str] = []
    STUB.fail("cudaLaunchKernel", 209)
    return {"ran": str(load_backend(model, say=said.append).ran), "said": said}


def outcome(work: Callable[[], object]) -> tuple[str, str]:
    """Class and text of the error that a function raises."""
    try:
        work()
    except Exception as error:
        return type(error).__name__, str(error)
    return "", ""


def forked(work: Callable[[], object]) -> object:
    """What a function returns in a forked process."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(write, json.dumps(work()).encode())
        os._exit(0)
    os.close(write)
    os.waitpid(child, 0)
    with os.fdopen(read) as file:
        return json.loads(file.read() or "null")


def counted(events: list[str]) -> dict[str, Any]:
    """Events by kind, and what is worth a number of its own."""
    copies = [event.split()[1:3] for event in events if event.startswith("copy ")]
    return {
        "kinds": Counter(event.split()[0] for event in events),
        "transposes": sum("ranspose" in event for event in events if event.startswith("launch ")),
        "up": sum(int(size) for where, size in copies if where == "up"),
        "down": sum(int(size) for where, size in copies if where == "down"),
        "while capturing": [event for event in events if event.endswith("while capturing")],
    }


if __name__ == "__main__":
    sys.stdout.write(json.dumps(SCENARIOS[sys.argv[1]](Path(sys.argv[2]))))
