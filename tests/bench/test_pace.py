"""The machine's pace: that it is measured, and which rounds it lets count."""

import contextlib

import numpy as np
import pytest

from parotid_seg.bench.pace import LEAST_ROUNDS, Pace, at_full_pace, best_pace, median_at_full_pace


def test_the_pace_is_a_time_that_repeats():
    with contextlib.closing(Pace()) as pace:
        found = [pace.ms() for _ in range(15)]
    assert min(found) > 0
    assert np.percentile(found, 50) < 10 * min(found)


def test_rounds_with_the_machine_disturbed_do_not_count():
    paces = [[1.0, 1.1, 1.0, 1.6, 1.5], [1.7, 1.5, 1.0, 1.6, 1.5]]
    rounds = [[10.0, 10.1, 10.2, 15.0, 15.1], [15.0, 15.1, 10.0, 15.2, 15.3]]
    assert best_pace(paces) == pytest.approx(1.0)
    assert at_full_pace(rounds, paces, 1.0) == [[10.0, 10.1, 10.2]], "a launch of one such round is left out"
    assert median_at_full_pace(rounds, paces) == 10.1
    assert at_full_pace(rounds, paces, 0.5) == []


def test_without_enough_such_rounds_all_count():
    rounds, paces = [[10.0, 12.0, 14.0]], [[1.0, 2.0, 2.0]]
    assert LEAST_ROUNDS > 1
    assert median_at_full_pace(rounds, paces) == 12.0
