"""The transfer between cores: how it is timed, and which rounds it lets count."""

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
    best_transfer_ms,
    undisturbed_median,
    undisturbed_rounds,
)


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="threads cannot be placed here")
def test_the_work_is_done_on_each_core_in_turn() -> None:
    with contextlib.closing(MachineProbe()) as probe:
        assert probe.ms() > 0
        places = [thread.submit(os.sched_getaffinity, 0).result() for thread in probe._threads]
    np.testing.assert_array_equal(probe._memory, TRIES * HANDOVERS)
    assert all(len(place) == 1 for place in places)
    assert len(set.union(*places)) == len(places) == min(MOST_CORES, len(os.sched_getaffinity(0)))


def test_what_disturbs_one_of_several_tries_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([3.0, 1.5, 9.0])
    monkeypatch.setattr(MachineProbe, "_once_ms", lambda _: next(times))
    with contextlib.closing(MachineProbe()) as probe:
        assert probe.ms() == 1.5


def test_rounds_with_the_machine_disturbed_do_not_count() -> None:
    transfers = [[1.0, 1.1, 1.0, 1.6, 1.5], [1.7, 1.5, 1.0, 1.6, 1.5]]
    rounds = [[10.0, 10.1, 10.2, 15.0, 15.1], [15.0, 15.1, 10.0, 15.2, 15.3]]
    assert best_transfer_ms(transfers) == pytest.approx(1.0)
    assert undisturbed_rounds(rounds, transfers, 1.0) == [[10.0, 10.1, 10.2]], "a launch of one such round is left out"
    assert undisturbed_median(rounds, transfers) == 10.1
    assert undisturbed_rounds(rounds, transfers, 0.5) == []


def test_without_enough_such_rounds_all_count() -> None:
    rounds, transfers = [[10.0, 12.0, 14.0]], [[1.0, 2.0, 2.0]]
    assert LEAST_ROUNDS > 1
    assert undisturbed_median(rounds, transfers) == 12.0
