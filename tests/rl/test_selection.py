"""Which groups are learned from, beside plain Python."""

import statistics

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from mirg_jax.rl import selection

REWARDS = arrays(
    np.float32,
    st.tuples(st.integers(1, 12), st.integers(2, 5)),
    elements=st.sampled_from([0.0, 0.1, 0.2, 0.5, 0.7, 1.0]),
)


def sketch(rewards, bound, size, order):
    """The chosen groups, one at a time in Python's own numbers."""
    rows = [[float(value) for value in row] for row in rewards]
    spread = [0.0 if len(set(row)) == 1 else statistics.pstdev(row) for row in rows]
    kept = [i for i, each in enumerate(spread) if bound is None or each > bound]
    if order == "sampled":
        return kept[:size]
    kept.sort(key=lambda i: (-statistics.fmean(rows[i]), i))
    taken = min(size, len(kept))
    return [kept[int((k + 0.5) * len(kept) / taken)] for k in range(taken)]


@settings(deadline=None, max_examples=200)
@given(
    REWARDS,
    st.sampled_from([None, 0.0, 0.06, 0.3]),
    st.integers(1, 12),
    st.sampled_from(selection.ORDERS),
)
def test_the_chosen_groups_are_those_of_plain_python(rewards, bound, size, order):
    spread = selection.reward_spread(rewards)
    found = selection.choose(rewards, spread, bound, size, order=order)
    assert found.tolist() == sketch(rewards, bound, size, order)
    assert len(set(found.tolist())) == len(found) <= size


def test_a_spread_is_a_standard_deviation_and_exactly_zero_for_equal_rewards():
    rewards = np.array([[0.1] * 7, [0.3, 0.1, 0.2, 0.3, 0.3, 0.3, 0.3]], np.float32)
    spread = selection.reward_spread(rewards)
    assert spread[0] == 0 and spread[1] == pytest.approx(0.0728431, rel=1e-5)
    assert selection.above(spread, 0.0).tolist() == [1]


def test_thresholds_take_turns_over_a_run():
    gate = (0.05, 0.025, 0.0125, 0.00625)
    found = [selection.threshold(gate, step, 10) for step in range(10)]
    assert [gate.index(each) for each in found] == [0, 0, 0, 1, 1, 2, 2, 2, 3, 3]
    assert selection.threshold((), 3, 10) is None
    assert selection.threshold(gate, 12, 10) == gate[-1]  # a run that was made longer


def test_more_groups_than_fit_are_taken_evenly_from_easy_to_hard():
    rewards = np.stack([np.full(4, mean) + [0, 0, 0, 0.1] for mean in np.arange(9) / 10])
    spread = selection.reward_spread(rewards)
    found = selection.choose(rewards.astype(np.float32), spread, 0.0, 3, order="reward")
    assert found.tolist() == [7, 4, 1]


def test_mini_batches_differ_by_one_group_at_most():
    parts = selection.mini_batches(np.array([4, 2, 9, 1, 0]), 3)
    assert [part.tolist() for part in parts] == [[4, 2], [9, 1], [0]]
    assert [len(part) for part in selection.mini_batches(np.arange(1), 2)] == [1, 0]


def test_another_order_is_refused():
    with pytest.raises(ValueError, match="none of sampled, reward"):
        selection.choose(np.zeros((1, 2), np.float32), np.zeros(1), None, 1, order="easy")
