"""The machine's pace: how it is measured, and which rounds it lets count."""

import contextlib
import os

import numpy as np
import pytest

from parotid_seg.bench.machine_probe import (
    HANDOVERS,
    LEAST_ROUNDS,
    MOST_CORES,
    TRIES,
    MachineProbe,
    at_full_pace,
    best_pace,
    median_at_full_pace,
)


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="threads cannot be placed here")
def test_the_work_is_done_on_each_core_in_turn() -> None:
    with contextlib.closing(MachineProbe()) as pace:
        assert pace.ms() > 0
        places = [thread.submit(os.sched_getaffinity, 0).result() for thread in pace._threads]
    np.testing.assert_array_equal(pace._memory, TRIES * HANDOVERS)
    assert all(len(place) == 1 for place in places)
    assert len(set.union(*places)) == len(places) == min(MOST_CORES, len(os.sched_getaffinity(0)))


def test_what_disturbs_one_of_several_tries_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([3.0, 1.5, 9.0])
    monkeypatch.setattr(MachineProbe, "_once_ms", lambda _: next(times))
    with contextlib.closing(MachineProbe()) as pace:
        assert pace.ms() == 1.5


def test_rounds_with_the_machine_disturbed_do_not_count() -> None:
    paces = [[1.0, 1.1, 1.0, 1.6, 1.5], [1.7, 1.5, 1.0, 1.6, 1.5]]
    rounds = [[10.0, 10.1, 10.2, 15.0, 15.1], [15.0, 15.1, 10.0, 15.2, 15.3]]
    assert best_pace(paces) == pytest.approx(1.0)
    assert at_full_pace(rounds, paces, 1.0) == [[10.0, 10.1, 10.2]], "a launch of one such round is left out"
    assert median_at_full_pace(rounds, paces) == 10.1
    assert at_full_pace(rounds, paces, 0.5) == []


def test_without_enough_such_rounds_all_count() -> None:
    rounds, paces = [[10.0, 12.0, 14.0]], [[1.0, 2.0, 2.0]]
    assert LEAST_ROUNDS > 1
    assert median_at_full_pace(rounds, paces) == 12.0
