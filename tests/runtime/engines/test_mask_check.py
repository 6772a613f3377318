"""An engine's masks of the example scan are compared with those of the reference before it is taken."""

import numpy as np
import pytest

from parotid_seg.errors import InputError, ModelError
from parotid_seg.models import DEFAULT_MODEL
from parotid_seg.runtime.engines.base import Done
from parotid_seg.runtime.engines.engine_benchmark import EngineBenchmark
from parotid_seg.runtime.engines.model_file import read_model
from parotid_seg.runtime.engines.onnxruntime.cpu import OnnxRuntimeBackend
from parotid_seg.scan.chunks import Inputs

pytestmark = pytest.mark.slow

CONTRACT = read_model(DEFAULT_MODEL).contract


class Backwards(OnnxRuntimeBackend):
    """The packaged model with left and right exchanged."""

    def start(self, inputs: Inputs) -> Done:
        return Done(np.array([0, 2, 1], np.uint8)[super().start(inputs).result()])


class Broken(OnnxRuntimeBackend):
    """One that loads and cannot compute."""

    def start(self, inputs: Inputs) -> Done:
        raise ModelError("cannot run it")


@pytest.mark.usefixtures("short_example")
def test_masks_are_compared_on_the_example_scan() -> None:
    trial, reference = EngineBenchmark(CONTRACT), OnnxRuntimeBackend(DEFAULT_MODEL)
    assert trial.failure(reference, OnnxRuntimeBackend(DEFAULT_MODEL, threads=1), "fp32") == ""
    assert trial.failure(reference, Backwards(DEFAULT_MODEL), "int8").startswith("other masks of the example scan: ")
    with pytest.raises(ModelError, match="cannot run it"):
        trial.failure(Broken(DEFAULT_MODEL), reference, "fp32")
    assert trial.failure(reference, Broken(DEFAULT_MODEL), "fp32") == "cannot run it"
    assert len(trial._expected) == 1, "those of the reference are computed once"


@pytest.mark.usefixtures("short_example")
def test_what_cannot_be_compared_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    trial, reference = EngineBenchmark(CONTRACT), OnnxRuntimeBackend(DEFAULT_MODEL)

    class Blind(OnnxRuntimeBackend):
        def start(self, inputs: Inputs) -> Done:
            return Done(np.zeros_like(reference.start(inputs).result()))

    assert "nothing is found" in trial.failure(Blind(DEFAULT_MODEL), reference, "int8")
    other = EngineBenchmark(type(CONTRACT)(CONTRACT.labels, ("T1",), (None,), CONTRACT.grid))
    assert other.failure(reference, reference, "int8") == "not to be checked (the example scan is a CT)"

    def missing() -> None:
        raise InputError("the example scan is not installed")

    monkeypatch.setattr("parotid_seg.runtime.engines.engine_benchmark.example_folder", missing)
    assert "not installed" in trial.failure(reference, reference, "int8")
