"""Statistics of noisy times: percentiles, and confidence intervals of medians."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

DRAWS = 1000
"""Of the bootstrap."""
LOW, HIGH = 2.5, 97.5
"""Percentiles of a 95 % interval."""


@dataclass(frozen=True)
class Latency:
    """Milliseconds of one chunk.

    Attributes:
        p50, p90, p95, p99: percentiles.
        count: chunks.
    """

    p50: float
    p90: float
    p95: float
    p99: float
    count: int

    @classmethod
    def of(cls, times_ms: Sequence[float]) -> Latency:
        """Percentiles of at least one time."""
        p50, p90, p95, p99 = (float(each) for each in np.percentile(times_ms, (50, 90, 95, 99)))
        return cls(p50, p90, p95, p99, len(times_ms))


def median_spread(values: Sequence[float]) -> float:
    """Half the width of the median's 95 % interval, over the median; infinite if there are fewer than six values.

    The interval is that between order statistics, which needs no assumption on how values are distributed.
    """
    count = len(values)
    if count < 6:
        return math.inf
    ordered = np.sort(values)
    reach = 0.98 * math.sqrt(count)
    low = ordered[max(0, math.floor(count / 2 - reach))]
    high = ordered[min(count - 1, math.ceil(count / 2 + reach))]
    return float((high - low) / 2 / np.median(ordered))


def ratio_interval(old: Sequence[Sequence[float]], new: Sequence[Sequence[float]]) -> tuple[float, float, float]:
    """The new median over the old one, with its 95 % interval.

    A two-level bootstrap: launches are resampled, then rounds within them, because differences between starts of a
    process are noise, too. With few launches the bootstrap underestimates the variance by (n - 1) / n; the interval is
    widened accordingly (Davison and Hinkley, Bootstrap Methods, 1997, section 3.8).

    Args:
        old, new: times of each round, by launch.

    Returns:
        ratio of the medians, and the interval's ends.
    """
    random = np.random.default_rng(0)
    draws = np.log(_drawn(new, random) / _drawn(old, random))
    middle = float(np.log(np.median(np.concatenate(new)) / np.median(np.concatenate(old))))
    launches = min(len(old), len(new))
    wider = math.sqrt(launches / (launches - 1)) if launches > 1 else 1.0
    low, high = (math.exp(middle + wider * (float(each) - middle)) for each in np.percentile(draws, (LOW, HIGH)))
    return math.exp(middle), low, high


def _drawn(launches: Sequence[Sequence[float]], random: np.random.Generator) -> NDArray[np.float64]:
    """Medians of so many resampled measurements."""
    lengths = np.array([len(launch) for launch in launches])
    times = np.full((len(launches), lengths.max()), np.nan)
    for row, launch in zip(times, launches, strict=True):
        row[: len(launch)] = launch
    chosen = random.integers(len(launches), size=(DRAWS, len(launches)))
    count = lengths[chosen][..., None]
    rounds = (random.random((*chosen.shape, times.shape[1])) * count).astype(np.intp)
    drawn = np.where(np.arange(times.shape[1]) < count, times[chosen[..., None], rounds], np.nan)
    return np.asarray(np.nanmedian(drawn.reshape(DRAWS, -1), axis=1))
