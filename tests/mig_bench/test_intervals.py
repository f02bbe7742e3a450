"""Intervals against plain resampling, the paired test against SciPy's."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from mirg_jax.mig_bench import intervals

RNG = np.random.default_rng


def test_bootstrap_agrees_with_plain_resampling_and_pairing_narrows_it():
    rng = RNG(0)
    base = rng.random(400) < 0.6
    other = base ^ (rng.random(400) < 0.05)
    interval = intervals.bootstrap(base, seed=1)
    means = rng.choice(base, (10_000, 400)).mean(axis=1)
    np.testing.assert_allclose(
        interval, [base.mean(), *np.quantile(means, (0.025, 0.975))], atol=0.006
    )
    assert intervals.bootstrap(base, seed=1) == interval
    assert intervals.bootstrap(np.ones(5, bool)) == (1, 1, 1)

    paired = intervals.paired_bootstrap(other, base)
    assert paired.mean == pytest.approx(other.mean() - base.mean())
    assert paired.low <= paired.mean <= paired.high
    assert paired.high - paired.low < 0.6 * (interval.high - interval.low)
    with pytest.raises(ValueError, match="same rows"):
        intervals.paired_bootstrap(other, base[1:])


def test_an_average_is_redrawn_within_its_groups():
    rng = RNG(1)
    groups = [rng.random(n) < rate for n, rate in ((30, 0.2), (500, 0.5), (80, 0.9))]
    found = intervals.bootstrap_average(groups)
    redrawn = [rng.choice(group, (10_000, len(group))).mean(axis=1) for group in groups]
    low, high = np.quantile(np.mean(redrawn, axis=0), (0.025, 0.975))
    expected = np.mean([group.mean() for group in groups]), low, high
    np.testing.assert_allclose(found, expected, atol=0.004)
    # Drawn from all rows together, it would be as narrow as the large group alone makes it.
    assert found.high - found.low > 1.2 * np.ptp(intervals.bootstrap(np.concatenate(groups))[1:])


@given(st.integers(0, 300), st.integers(0, 300))
def test_the_paired_test_is_the_binomial_one(gained, lost):
    expected = stats.binomtest(gained, gained + lost).pvalue if gained + lost else 1.0
    assert intervals.mcnemar(gained, lost) == pytest.approx(expected, rel=1e-9)


def test_the_paired_test_holds_for_many_rows():
    assert 0 < intervals.mcnemar(2000, 2295) < 1e-4
