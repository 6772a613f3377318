"""Engines for tests: made by name in a process's process, so they live in a module that it can import."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import numpy as np
import pytest

from parotid_seg.bench import end_to_end, engine_process, measure, turns
from parotid_seg.bench.roofline import Peaks
from parotid_seg.errors import ModelError, OptionError
from parotid_seg.models import DEFAULT_MODEL
from parotid_seg.runtime.engines.autotune import Candidate
from parotid_seg.runtime.engines.base import Done
from parotid_seg.runtime.engines.onnxruntime.cpu import OnnxRuntimeBackend
from parotid_seg.scan.chunks import Inputs
from tests.processes.forked import ForkedPrograms, command

HOARDED_MIB = 300


class Limited(OnnxRuntimeBackend):
    """Takes four samples at once, as an engine that was built for them."""

    largest_batch = 4

    def __init__(self) -> None:
        super().__init__(DEFAULT_MODEL)


class Wrong(OnnxRuntimeBackend):
    """Finds the glands on the other side."""

    def __init__(self) -> None:
        super().__init__(DEFAULT_MODEL)

    def start(self, inputs: Inputs) -> Done:
        return Done((3 - super().start(inputs).result()) % 3)


class Blind(OnnxRuntimeBackend):
    """Finds nothing."""

    def __init__(self) -> None:
        super().__init__(DEFAULT_MODEL)

    def start(self, inputs: Inputs) -> Done:
        return Done(0 * super().start(inputs).result())


class Hoarder(OnnxRuntimeBackend):
    """Keeps memory of each load until its process ends."""

    kept: ClassVar[list[Any]] = []

    def __init__(self) -> None:
        super().__init__(DEFAULT_MODEL)
        self.kept.append(np.ones(HOARDED_MIB << 20, np.uint8))


@dataclass
class Pair:
    """A chunk that is computed when it is waited for."""

    compute: partial[Any]

    def result(self) -> Any:
        return self.compute()


class Ahead(OnnxRuntimeBackend):
    """Takes two chunks at once, in which time it computes them one after the other."""

    queue_depth = 2

    def __init__(self) -> None:
        super().__init__(DEFAULT_MODEL)

    def start(self, inputs: Inputs) -> Any:
        return Pair(partial(lambda: super(Ahead, self).start(inputs).result()))


def crash() -> None:
    """Ends the process while it loads."""
    os._exit(7)


def refuse() -> None:
    """Cannot be loaded."""
    raise ModelError("model.onnx: no such operator")


def lack() -> None:
    """Lacks a package."""
    raise OptionError("PyCUDA is not installed")


def stumble() -> None:
    """Meets a bug."""
    raise ZeroDivisionError("of a library")


def endless_whole_runs(*words: str) -> None:
    """The `parotid-seg` command, of which `bench` goes on with whole runs after a single short launch."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (turns, measure):
            patch.setattr(module, "LAUNCHES", 1)
        patch.setattr(end_to_end, "RUNS", 1000)
        patch.setattr(end_to_end, "SCANS_PER_RUN", 1)
        patch.setattr(measure, "measured_peaks", lambda: Peaks({}, {}, None))
        patch.setattr(engine_process, "subprocess", ForkedPrograms)
        command(*words)


def candidate(name: str, make: Any, precision: str = "fp32") -> Candidate:
    """By name."""
    return Candidate(name, "onnxruntime", precision, DEFAULT_MODEL, make)


PLAIN = candidate("plain", partial(OnnxRuntimeBackend, DEFAULT_MODEL))
