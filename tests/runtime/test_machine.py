"""Cores and memory are the container's, not the machine's."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from parotid_seg import system as machine
from parotid_seg.models import DEFAULT_MODEL
from parotid_seg.runtime.engines.onnxruntime.cpu import OnnxRuntimeBackend


@pytest.fixture
def limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Write what a container's cgroup would say of itself, on a machine of 64 cores."""
    monkeypatch.setattr(machine, "CGROUP_QUOTA", tmp_path / "cpu.max")
    monkeypatch.setattr(machine, "CGROUP_LIMIT", tmp_path / "memory.max")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)), raising=False)

    def write(cpu: str = "", memory: str = "") -> None:
        (tmp_path / "cpu.max").write_text(cpu)
        (tmp_path / "memory.max").write_text(memory)

    return write


@pytest.mark.parametrize(
    ("quota", "cores"),
    [
        ("400000 100000\n", 4),
        ("250000 100000\n", 3),
        ("50000 100000\n", 1),
        ("20000 5000\n", 4),
        ("9000000 100000\n", 64),
        ("max 100000\n", 64),
        ("", 64),
        ("400000 0\n", 64),
        ("nonsense\n", 64),
    ],
)
def test_a_quota_of_processor_time_counts_as_cores(limits: Callable[..., None], quota: str, cores: int) -> None:
    limits(cpu=quota)
    assert machine.available_cores() == cores


def test_without_a_container_all_cores_count(limits: Callable[..., None]) -> None:
    assert machine.quota_cores() is None
    assert machine.available_cores() == 64


def test_cores_that_are_named_to_the_process_bound_the_quota(
    limits: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    limits(cpu="800000 100000\n")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3, 5}, raising=False)
    assert machine.available_cores() == 2


def test_memory_is_the_container_s(limits: Callable[..., None]) -> None:
    whole = machine.memory_bytes()
    limits(memory="1048576\n")
    assert machine.memory_bytes() == 1048576
    limits(memory="max\n")
    assert machine.memory_bytes() == whole


@pytest.mark.parametrize(
    ("quota", "named", "threads"),
    [("200000 100000\n", 64, 2), ("max 100000\n", 2, 2), ("400000 100000\n", 2, 2), ("max 100000\n", 64, 0)],
)
def test_onnxruntime_is_told_if_it_may_not_have_all_cores(
    limits: Callable[..., None], monkeypatch: pytest.MonkeyPatch, quota: str, named: int, threads: int
) -> None:
    limits(cpu=quota)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(named)), raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    session = OnnxRuntimeBackend(DEFAULT_MODEL)._session
    assert session.get_session_options().intra_op_num_threads == threads
