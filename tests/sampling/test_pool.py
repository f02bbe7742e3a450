"""Prompts fed to slots call after call: their completions are those of one call for all."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_sampler import CONFIG, FORBIDDEN, model, prompts, run

from mirg_jax import sharding
from mirg_jax.sampling.pool import NO_PROMPT, make_feeding
from mirg_jax.sampling.sampler import SamplingConfig

model = model  # a fixture
LENGTHS = (9, 12, 5, 0, 7, 11, 8, 10, 3, 12)
SLOTS, GROUP = 3, 2
STOPS = tuple(range(7, 48, 4))


def feed_all(model, **options):
    """Rollouts by the prompts' numbers, how often each came, and how many came in each call."""
    graph, params = model
    config = SamplingConfig(group=GROUP, **options)
    mesh = sharding.make_mesh(1, 1, 1, devices=jax.devices()[:1])
    feeding = make_feeding(graph, mesh, FORBIDDEN, config, CONFIG.text.num_kv_heads)
    text, images = prompts(LENGTHS, 12)
    pool, found, counts = None, {}, []
    for at in range(0, len(LENGTHS) + SLOTS, SLOTS):  # the last call brings none
        rows = np.arange(at, at + SLOTS)
        numbers = np.where(rows < len(LENGTHS), rows, NO_PROMPT).astype(np.int32)
        rows = rows % len(LENGTHS)  # those without a number are not looked at
        part = jax.tree.map(lambda leaf, rows=rows: leaf[rows], (text, images))
        pool = pool or feeding.open(params, *part)
        more = jnp.array(at < len(LENGTHS))
        pool, ended = feeding.feed((), params, pool, *part, jnp.asarray(numbers), more)
        ended = jax.device_get(ended)
        known = np.flatnonzero(ended.numbers != NO_PROMPT)
        counts.append(len(known))
        for row in known:
            number = int(ended.numbers[row])
            assert number not in found
            found[number] = [leaf[row] for leaf in ended.rollout]
    return [found[number] for number in range(len(LENGTHS))], counts, int(pool.steps[0])


@pytest.mark.parametrize("options", [{"temperature": 0.0}, {"max_tokens": 24}], ids=str)
def test_what_is_fed_in_turn_is_what_is_sampled_at_once(model, options):
    options = {"max_tokens": 10, "stop_tokens": STOPS} | options
    _, _, at_once = run(model, lengths=LENGTHS, group=GROUP, **options)
    found, counts, steps = feed_all(model, **options)
    tokens, mask, logprobs = (np.stack(leaves) for leaves in zip(*found, strict=True))
    np.testing.assert_array_equal(mask, at_once.mask)
    np.testing.assert_array_equal(tokens, at_once.tokens)
    np.testing.assert_allclose(logprobs, at_once.logprobs, atol=1e-4)
    lengths = mask.sum(-1).max(-1)
    assert lengths.min() == 0 and len(set(lengths)) > 3, lengths
    # Some are handed out before all have come in, and slots never wait for the longest.
    assert sum(counts[:2]) > 0 and counts[-1] < len(LENGTHS) - SLOTS
    in_turn = sum(lengths[at : at + SLOTS].max() for at in range(0, len(LENGTHS), SLOTS))
    assert lengths.sum() / SLOTS <= steps < in_turn
