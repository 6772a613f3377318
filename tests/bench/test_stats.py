"""Percentiles, spreads, and telling a change from noise, on times that are made up."""

import math

import numpy as np
import pytest

from parotid_seg.bench.stats import Latency, median_spread, ratio_interval


def launches(
    random: np.random.Generator, factor: float = 1.0, *, noise: float = 0.03, between: float = 0.005, rounds: int = 20
) -> list[list[float]]:
    """Three launches of rounds of 100 ms: each round disturbed upwards, each launch a little different."""
    return [
        list(100 * factor * (1 + between * random.standard_normal()) * (1 + noise * random.gamma(1.0, 1.0, rounds)))
        for _ in range(3)
    ]


def test_percentiles() -> None:
    found = Latency.of([float(each) for each in range(1, 102)])
    assert found == Latency(51.0, 91.0, 96.0, 100.0, 101)


def test_the_spread_of_a_median() -> None:
    """It covers the true median about as often as it says, and gets narrower with more values."""
    random = np.random.default_rng(1)
    few, many = (random.gamma(2.0, 1.0, (400, count)) for count in (25, 400))
    assert np.mean([median_spread(row) for row in many]) < 0.4 * np.mean([median_spread(row) for row in few])
    true = np.median(random.gamma(2.0, 1.0, 1_000_000))
    near = [abs(np.median(row) - true) < 2 * median_spread(row) * np.median(row) for row in few]
    assert np.mean(near) > 0.95
    assert median_spread([1.0] * 5) == math.inf
    assert median_spread([2.0] * 50) == 0


def test_equal_runs_are_equal_and_five_per_cent_are_found() -> None:
    random = np.random.default_rng(2)
    alarms = found = 0
    for _ in range(40):
        old = launches(random)
        _, low, high = ratio_interval(old, launches(random))
        alarms += low > 1.02 or high < 1 / 1.02
        ratio, low, _ = ratio_interval(old, launches(random, 1.05))
        found += low > 1.02
        assert ratio == pytest.approx(1.05, abs=0.04)
    assert alarms == 0
    assert found >= 36


def test_what_differs_from_launch_to_launch_is_noise() -> None:
    """Otherwise many rounds would make every difference between two starts a finding."""
    random = np.random.default_rng(3)
    alarms = 0
    for _ in range(30):
        old, new = (launches(random, between=0.06, noise=0.001, rounds=100) for _ in range(2))
        alarms += ratio_interval(old, new)[1] > 1.02
    assert alarms <= 6
