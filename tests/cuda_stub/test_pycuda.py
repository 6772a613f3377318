"""PyCUDA itself on the stub: contexts, streams, page-locked memory, CUDA graphs and errors as our TensorRT backend uses
them. The execution context is ours; TensorRT needs a GPU."""

from __future__ import annotations

import subprocess
from typing import Any

import pytest

from tests.cuda_stub.conftest import PYTHON, RunStub

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def found(stub: RunStub) -> Any:
    if subprocess.run([PYTHON, "-c", "import pycuda"], capture_output=True, check=False).returncode:
        pytest.skip("no PyCUDA: .venv-cuda-stub/bin/python tests/cuda_stub/install_pycuda.py constraints.txt")
    return stub(program="pycuda_child.py")


def test_chunks_are_right_plain_captured_and_replayed(found: Any) -> None:
    slot = found["slot"]
    assert slot["right"] == [True] * 9
    assert slot["replays"] >= 4
    events = slot["events"]
    assert events.count("replay") == slot["replays"]
    assert events.count("begin capture 1") == events.count("end capture") == events.count("graph destroyed") >= 2
    assert slot["times"] == [1e-3, 0.0, 1e-3]


def test_everything_is_freed_and_no_context_stays(found: Any) -> None:
    slot, events = found["slot"], found["slot"]["events"]
    kinds = [event.split()[0] for event in events]
    assert kinds.count("alloc") == kinds.count("free") >= 3
    assert kinds.count("pinned") == kinds.count("unpinned") >= 2
    assert (kinds.count("retain"), kinds.count("release")) == (1, 1)
    assert (slot["depth"], slot["depth at the end"]) == (0, 0)
    assert "stream 1" in events, "one that does not wait for the default stream"


def test_a_capture_neither_allocates_nor_waits(found: Any) -> None:
    events = found["slot"]["events"]
    inside = events[events.index("begin capture 1") + 1 : events.index("end capture")]
    assert [event.split()[1] for event in inside] == ["up", "device", "down"]


@pytest.mark.parametrize(
    ("failure", "kind", "text"),
    [
        (
            "out_of_memory",
            "DeviceMemoryError",
            "TensorRT: out of GPU memory for a chunk of 2 samples (cuMemAlloc failed: ",
        ),
        ("lost", "DeviceError", "TensorRT: the GPU cannot be used for a chunk (cuStreamSynchronize failed: "),
        ("no_driver", "DeviceError", "TensorRT: the GPU cannot be used for an engine (cuInit failed: "),
    ],
)
def test_errors_of_pycuda_are_ours(found: Any, failure: str, kind: str, text: str) -> None:
    found_kind, found_text = found[failure]
    assert found_kind == kind
    assert found_text.startswith(text)
