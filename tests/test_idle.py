"""The share of a trace's time in which devices wait, and what is compiled."""

import jax
import numpy as np
import pytest

from benchmarks import idle
from mirg_jax.training import selecting
from mirg_jax.types import Rollout


@pytest.mark.parametrize(
    ("intervals", "share"),
    [
        ([(0, 10)], 0),
        ([(5, 10), (0, 4)], 0.1),
        ([(0, 8), (2, 3), (7, 9), (10, 20)], 0.05),
        ([], 1),
    ],
)
def test_time_that_no_program_covers_is_idle(intervals, share):
    assert idle.idle(intervals) == pytest.approx(share)


def test_a_trace_that_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no \\*.xplane.pb"):
        idle.read_trace(tmp_path)


def test_completions_are_cut_by_one_program_a_length():
    rollout = Rollout(*(jax.device_put(np.ones((5, 3, 12), d)) for d in (int, bool, np.float32)))
    with idle.programs() as compiled:
        for longest in (3, 4, 5, 12):
            selecting.shorten(rollout, longest, (4, 8, 12))
    assert compiled == ["jit(_cut)", "jit(_cut)"]
    jax.jit(lambda x: x + 1)(np.ones(5))
    assert len(compiled) == 2
