"""The benchmark of loaded engines, with engines and a clock that only pretend: nothing is timed for real."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from parotid_seg.errors import ModelError, ParotidSegError
from parotid_seg.models import DEFAULT_MODEL
from parotid_seg.runtime.engines.base import Done
from parotid_seg.runtime.engines.engine_benchmark import BUDGET_S, MOST_ROUNDS, EngineBenchmark, usual_chunk
from parotid_seg.runtime.engines.model_file import read_model
from parotid_seg.runtime.engines.onnxruntime.cpu import OnnxRuntimeBackend
from parotid_seg.scan.chunks import Inputs
from tests.runtime.engines.pretended import Clock, Engine

CONTRACT = read_model(DEFAULT_MODEL).contract


def test_speeds_are_medians_after_a_first_round(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    slow_first = iter([50.0, 50.0, 0.5, 0.1, 0.5, *[0.5] * 99])
    engines = {
        "steady": Engine("steady", clock, lambda looks: looks / 64),
        "slow at first": Engine("slow", clock, lambda looks: next(slow_first)),
    }
    speeds = EngineBenchmark(CONTRACT, clock).speeds(engines, {})
    assert speeds == pytest.approx({"steady": 64.0, "slow at first": 16 / 0.3})
    assert [engine.runs for engine in engines.values()] == [4, 4], "the budget was gone after the least rounds"


def test_a_trial_ends_by_its_budget_or_its_rounds() -> None:
    clock = Clock()
    quick = Engine("quick", clock, lambda looks: 1e-4)
    EngineBenchmark(CONTRACT, clock).speeds({"quick": quick}, {})
    assert quick.runs == MOST_ROUNDS + 2
    clock.now, medium = 0.0, Engine("medium", clock, lambda looks: 0.9)
    EngineBenchmark(CONTRACT, clock).speeds({"medium": medium}, {})
    assert clock.now == pytest.approx(0.9 + BUDGET_S, abs=0.9)


def test_an_engine_that_works_ahead_is_timed_with_its_chunks_in_flight() -> None:
    clock = Clock()
    engine = Engine("ahead", clock, lambda looks: 1.0)
    engine.queue_depth = 2
    assert EngineBenchmark(CONTRACT, clock).speeds({"ahead": engine}, {})["ahead"] == pytest.approx(16.0)
    assert engine.runs == 8


@pytest.mark.parametrize(
    ("seconds", "memory", "expected"),
    [
        (lambda looks: 1 + looks, 99, 16),  # 32 gains 3 %: noise
        (lambda looks: 8 + looks, 99, 32),
        (lambda looks: 8 + looks, 16, 16),  # 32 does not fit
        (lambda looks: looks**2, 99, 8),
        (lambda looks: {8: 8.2, 16: 40.0, 32: 32.0}[looks], 99, 8),  # 32 gains 2 % over 8, which both gain over 16
        (lambda looks: looks, 8, 8),
        (lambda looks: looks, 7, 1),
    ],
)
def test_the_batch_size_is_the_usual_one_unless_another_gains(
    seconds: Callable[[int], float], memory: int, expected: int
) -> None:
    clock = Clock()
    engine = Engine("any", clock, seconds, memory)
    assert EngineBenchmark(CONTRACT, clock).batch_size(engine, (8, 16, 32)) == expected


def test_a_built_engine_is_measured_in_its_own_batch_size_and_in_no_larger_ones() -> None:
    clock = Clock()
    engine = Engine("built", clock, lambda looks: 1.0 + looks / 1000)
    engine.batch_size, engine.largest_batch = 24, 40
    assert EngineBenchmark(CONTRACT, clock).batch_size(engine, (16, 32, 64)) == 32
    assert engine.specialised == {16, 24, 32}, "and prepared for each before it is timed"


def test_speeds_are_of_smaller_chunks_where_the_usual_ones_do_not_fit() -> None:
    clock = Clock()
    engines = {"one": Engine("one", clock, lambda looks: looks / 10), "small": Engine("two", clock, memory=5)}
    engines["small"].seconds = lambda looks: looks / 20
    speeds = EngineBenchmark(CONTRACT, clock).speeds(engines, {})
    assert speeds == pytest.approx({"one": 10.0, "small": 20.0})


class Failing(Engine):
    """One that fails once it has run so often."""

    def __init__(self, clock: Clock, after: int) -> None:
        super().__init__("failing", clock)
        self.after = after

    def start(self, inputs: Inputs) -> Done:
        if self.runs == self.after:
            raise ModelError("no more")
        return super().start(inputs)


@pytest.mark.parametrize("after", [0, 1, 3])
def test_an_engine_that_cannot_compute_is_left_out_and_the_others_are_timed(after: int) -> None:
    clock, failed = Clock(), dict[str, ParotidSegError]()
    engines = {"failing": Failing(clock, after), "steady": Engine("steady", clock, lambda looks: looks / 64)}
    assert EngineBenchmark(CONTRACT, clock).speeds(engines, failed) == {"steady": pytest.approx(64.0)}
    assert str(failed["failing"]) == "no more"
    with pytest.raises(ModelError, match="no more"):
        EngineBenchmark(CONTRACT, clock).batch_size(Failing(clock, after), (8, 16))


@pytest.mark.parametrize("samples", [1, 40, 50, 96, 100, 150])
def test_the_usual_chunk_is_in_hounsfield_units_for_any_number_of_samples(samples: int) -> None:
    """As every scan it is checked; some numbers of slices were refused, so that no engine could be chosen."""
    contract = read_model(DEFAULT_MODEL).contract
    assert len(usual_chunk(contract, samples)["neighbours"]) == samples


def test_the_usual_chunk_is_what_an_ordinary_ct_gives() -> None:
    inputs = usual_chunk(CONTRACT, 8)
    assert len(inputs["neighbours"]) == 8
    assert inputs["slices"].shape[0] == 1
    assert 200 < inputs["slices"].shape[2] < 512, "the grid covers a part of 512 rows"
    assert inputs["slices"].min() == -1000
    assert OnnxRuntimeBackend(DEFAULT_MODEL).start(inputs).result().shape == inputs["slices"].shape[1:]
