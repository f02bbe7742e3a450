"""Slots by themselves: when they are refilled, and how rings become rows of results."""

import itertools
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mirg_jax.models.language import Cache
from mirg_jax.models.qwen2_vl import Qwen2VL
from mirg_jax.sampling.config import SamplingConfig
from mirg_jax.sampling.slots import keep_results
from mirg_jax.sampling.state import Context, DecodingState, Prompts, Signals, Slots, make_signals
from mirg_jax.types import KeyValues, Rollout, Text

PROMPTS, SLOTS, GROUP, LENGTH = 5, 2, 3, 4
TEXT = Text(None, None, None, None)


def context(slots):
    return Context(
        model=mock.Mock(spec=Qwen2VL),
        head=jnp.zeros((1, 1)),
        layers=(),
        prompts=Prompts(TEXT._replace(tokens=jnp.zeros((PROMPTS, 1), jnp.int32)), None),
        keys=jax.random.split(jax.random.key(0), (PROMPTS, GROUP)),
        forbidden=np.zeros(1, bool),
        config=SamplingConfig(group=GROUP, slots=slots, max_tokens=LENGTH),
        together=(),
    )


@pytest.mark.parametrize("finished", itertools.product((0, 2, 3), repeat=SLOTS))
@pytest.mark.parametrize("taken", [SLOTS, PROMPTS])
def test_a_slot_is_refilled_once_all_its_completions_have_finished(finished, taken):
    """`finished` completions of each slot, `taken` prompts that have had one."""
    done = jnp.arange(GROUP) < jnp.array(finished)[:, None]
    signals = make_signals(context(SLOTS), done, jnp.array(taken))
    assert bool(signals.running) == (finished != (GROUP, GROUP))
    assert bool(signals.vacant) == (GROUP in finished and taken < PROMPTS)
    assert not make_signals(context(0), done, jnp.array(PROMPTS)).vacant


def test_results_are_rotated_to_their_first_token_and_put_into_their_rows():
    rows, starts = [3, 1], [6, 9]
    steps = np.zeros((SLOTS, GROUP, LENGTH), np.int32)
    for slot, start in enumerate(starts):
        for step in range(start, start + LENGTH):
            steps[slot, :, step % LENGTH] = step
    slots = Slots(
        jnp.array(rows), jnp.array(starts), TEXT, KeyValues((), (), None), jnp.array(PROMPTS)
    )
    state = DecodingState(
        tokens=jnp.array(steps),
        logprobs=-jnp.array(steps, jnp.float32),
        mask=jnp.array(steps % 2 == 0),
        finished=jnp.ones((SLOTS, GROUP), bool),
        next_logprobs=None,
        cache=Cache((), (), jnp.array(13)),
        signals=Signals(jnp.array(False), jnp.array(False)),
    )
    before = np.full((PROMPTS, GROUP, LENGTH), 99)
    results = jax.tree.map(jnp.array, Rollout(before, before > 0, before * 1.0))
    kept = keep_results(results, slots, state)
    expected = before.copy()
    expected[3], expected[1] = [6, 7, 8, 9], [9, 10, 11, 12]
    np.testing.assert_array_equal(kept.tokens, expected)
    np.testing.assert_array_equal(kept.logprobs[jnp.array(rows)], -expected[rows])
    np.testing.assert_array_equal(kept.mask[jnp.array(rows)], expected[rows] % 2 == 0)
    others = [0, 2, 4]
    assert kept.mask[jnp.array(others)].all() and (kept.logprobs[jnp.array(others)] == 99).all()
