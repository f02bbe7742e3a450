"""Uncertainty of hit rates: bootstrap intervals, and a significance test for two runs.

Rows are redrawn with replacement (Efron 1979); 95 % intervals are the 2.5th and 97.5th percentile.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

SAMPLES = 10_000


class Interval(NamedTuple):
    """A mean and the ends of its 95 % bootstrap interval."""

    mean: float
    low: float
    high: float


def bootstrap(hits: Bool[np.ndarray, " n"], seed: int = 0, samples: int = SAMPLES) -> Interval:
    """Computes a run's hit rate with its interval."""
    values = np.asarray(hits, np.float64)
    return _interval(values.mean(), _redrawn_means(values, np.random.default_rng(seed), samples))


def bootstrap_average(
    groups: Sequence[Bool[np.ndarray, " n"]], seed: int = 0, samples: int = SAMPLES
) -> Interval:
    """Computes the mean of several groups' hit rates, the paper's AVE over tasks.

    Rows are redrawn within each group.
    """
    rng = np.random.default_rng(seed)
    groups = [np.asarray(group, np.float64) for group in groups]
    redrawn = np.mean([_redrawn_means(group, rng, samples) for group in groups], axis=0)
    return _interval(np.mean([group.mean() for group in groups]), redrawn)


def paired_bootstrap(
    hits_a: Bool[np.ndarray, " n"],
    hits_b: Bool[np.ndarray, " n"],
    seed: int = 0,
    samples: int = SAMPLES,
) -> Interval:
    """Computes the hit rate of run A minus that of run B on the same rows, redrawn in pairs.

    Raises:
      ValueError: if the runs have different numbers of rows.
    """
    a, b = np.asarray(hits_a, np.float64), np.asarray(hits_b, np.float64)
    if a.shape != b.shape:
        raise ValueError(f"paired runs score the same rows, got {a.shape} and {b.shape}")
    values = a - b
    return _interval(values.mean(), _redrawn_means(values, np.random.default_rng(seed), samples))


def mcnemar(gained: int, lost: int) -> float:
    """Computes the p-value of the exact two-sided McNemar test.

    It is the probability of a split at least as uneven, if a changed row is gained or lost with
    equal probability.

    Args:
      gained: number of rows hit by the second run only.
      lost: number of rows hit by the first run only.
    """
    changed = gained + lost
    ways = sum(math.comb(changed, k) for k in range(min(gained, lost) + 1))
    return min(1.0, 2 * ways / 2**changed)


def _redrawn_means(
    values: Float[np.ndarray, " n"], rng: np.random.Generator, samples: int
) -> Float[np.ndarray, " samples"]:
    # Hits take two values and their differences three, so redrawing n rows is one multinomial
    # draw of how often each value comes up.
    distinct, counts = np.unique(values, return_counts=True)
    draws = rng.multinomial(values.size, counts / values.size, size=samples)
    return draws @ distinct / values.size


def _interval(mean: float, redrawn: Float[np.ndarray, " samples"]) -> Interval:
    low, high = np.quantile(redrawn, (0.025, 0.975))
    return Interval(float(mean), float(low), float(high))
