"""How far a hit rate is to be trusted: bootstrap intervals, and a test for two runs.

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
    """Hit rate of one run."""
    values = np.asarray(hits, np.float64)
    return _interval(values.mean(), _redrawn_means(values, np.random.default_rng(seed), samples))


def bootstrap_average(
    groups: Sequence[Bool[np.ndarray, " n"]], seed: int = 0, samples: int = SAMPLES
) -> Interval:
    """Mean of the groups' hit rates, rows redrawn within each: the paper's AVE over tasks."""
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
    """Hit rate of run A less that of run B on the same rows, redrawn together."""
    a, b = np.asarray(hits_a, np.float64), np.asarray(hits_b, np.float64)
    if a.shape != b.shape:
        raise ValueError(f"paired runs score the same rows, got {a.shape} and {b.shape}")
    values = a - b
    return _interval(values.mean(), _redrawn_means(values, np.random.default_rng(seed), samples))


def mcnemar(gained: int, lost: int) -> float:
    """The chance of so uneven a split, or a more uneven one, if a changed row were as likely won as
    lost (exact McNemar test, two-sided)."""
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
