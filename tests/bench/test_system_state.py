"""What the machine was doing, from files and a driver made for the test."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest

from parotid_seg.bench import system_state as module
from parotid_seg.bench.system_state import SystemState, about_machine, gpu_memory_mib, remarks, system_state

QUIET = SystemState(cpu_mhz=2500.0, throttled=3, stolen_share=0.001, load=0.1, gpu=None)
SAID = "580.65.06, 81559 MiB, {used} MiB, 700.00 W, 1980 MHz, 1755 MHz, 41, {reasons}"


@pytest.fixture
def driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """A program named nvidia-smi that says this."""

    def say(text: str, status: int = 0) -> None:
        program = tmp_path / "nvidia-smi"
        program.write_text(f"#!/bin/sh\necho '{text}'\nexit {status}\n")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path), prepend=":")

    return say


def test_this_machine() -> None:
    found = system_state()
    assert found.gpu is None
    assert found.load is None or found.load >= 0
    about = about_machine()
    assert about["cores"] >= 1
    assert about["versions"]["onnxruntime"]


def test_clocks_heat_and_other_guests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cpuinfo").write_text("cpu MHz\t\t: 2000.0\ncpu MHz\t\t: 3000.0\ncpu MHz\t\t: 3100.0\nother: 7\n")
    (tmp_path / "stat").write_text("cpu  50 0 20 20 0 0 0 10 0 0\ncpu0 1 1 1\n")
    for core, count in enumerate((2, 5)):
        heat = tmp_path / f"devices/system/cpu/cpu{core}/thermal_throttle/core_throttle_count"
        heat.parent.mkdir(parents=True)
        heat.write_text(f"{count}\n")
    monkeypatch.setattr(module, "CPU_INFO", tmp_path / "cpuinfo")
    monkeypatch.setattr(module, "CPU_TIMES", tmp_path / "stat")
    monkeypatch.setattr(module, "SYSTEM", tmp_path)
    found = system_state()
    assert (found.cpu_mhz, found.throttled, found.stolen_share) == (3000.0, 7, 0.1)


def test_a_system_that_tells_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CPU_INFO", "CPU_TIMES", "SYSTEM"):
        monkeypatch.setattr(module, name, tmp_path / "missing")
    found = system_state()
    assert (found.cpu_mhz, found.throttled, found.stolen_share) == (None, None, None)
    assert remarks(found, found, 10_000) == []


def test_what_may_have_disturbed() -> None:
    assert remarks(QUIET, QUIET, 2) == []
    busy = dataclasses.replace(QUIET, load=1.9)
    assert remarks(busy, QUIET, 2) == ["other work was going on at the start: a load of 1.9 on 2 cores"]
    hot = dataclasses.replace(QUIET, throttled=5)
    assert remarks(QUIET, hot, 2) == ["cores were slowed down by heat 2 times"]
    (shared,) = remarks(QUIET, dataclasses.replace(QUIET, stolen_share=0.05), 2)
    assert shared.startswith("other guests of the host take 5% of the cores' time")


def test_a_gpu(driver: Callable[..., None]) -> None:
    driver(SAID.format(used=1234, reasons="0x0000000000000001"))
    found = system_state(0)
    assert found.gpu is not None
    assert found.gpu["clocks.sm"] == "1755 MHz"
    assert gpu_memory_mib(0) == 1234
    assert remarks(QUIET, dataclasses.replace(QUIET, gpu=found.gpu), 2) == []
    driver(SAID.format(used=1, reasons="0x0000000000000021"))
    assert remarks(QUIET, dataclasses.replace(QUIET, gpu=system_state(0).gpu), 2) == [
        "the GPU was slowed down (clocks_throttle_reasons.active 0x20)"
    ]


@pytest.mark.parametrize("said", ["", "NVIDIA-SMI has failed", "1, 2"])
def test_a_driver_that_says_something_else(driver: Callable[..., None], said: str) -> None:
    driver(said, status=9)
    assert system_state(0).gpu is None
    assert gpu_memory_mib(0) is None


def test_a_driver_that_does_not_tell_of_throttling(driver: Callable[..., None]) -> None:
    driver(SAID.format(used="[N/A]", reasons="[N/A]"))
    found = system_state(0)
    assert gpu_memory_mib(0) is None
    assert remarks(QUIET, dataclasses.replace(QUIET, gpu=found.gpu), 2) == []
