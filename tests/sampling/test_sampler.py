"""The sampler: its log-probs are the learner's, and what it may not draw it doesn't."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mirg_jax import sharding
from mirg_jax.models.config import ModelConfig, TextConfig, VisionConfig
from mirg_jax.models.layers import Precision
from mirg_jax.models.options import ModelOptions
from mirg_jax.models.qwen2_vl import create
from mirg_jax.rl.logprobs import token_logprobs
from mirg_jax.sampling import sampler
from mirg_jax.sampling.sampler import SamplingConfig, sample, sample_keys, top_p_filter
from mirg_jax.sampling.weights import make_weights
from mirg_jax.types import Images, Text

VOCAB, STOP = 60, 7
FORBIDDEN = np.arange(VOCAB) % 6 == 5
CONFIG = ModelConfig(
    text=TextConfig(VOCAB, 32, 64, 2, 4, 2, mrope_section=(1, 1, 2), tie_word_embeddings=True),
    vision=VisionConfig(1, 16, 2, 2, 32),
)


def prompts(lengths, width, seed=0):
    """Random prompts; the first four tokens of each are an image."""
    rng = np.random.default_rng(seed)
    B = len(lengths)
    tokens = rng.integers(0, VOCAB, (B, 40))[:, :width]
    segments = (np.arange(width) < np.array(lengths)[:, None]).astype(np.int32)
    positions = np.repeat(np.arange(width)[None, :, None], B, 0).repeat(3, -1)
    visual = np.where(np.arange(width) < 4, np.arange(width), -1)[None].repeat(B, 0)
    grid = np.stack(np.divmod(np.arange(16), 4), -1)[None, None].repeat(B, 0)
    pixels = np.random.default_rng(1).integers(0, 255, (B, 1, 16, 588)).astype(np.uint8)
    made = Text(tokens, positions, segments, visual), Images(pixels, grid)
    return jax.tree.map(jnp.asarray, made)


@pytest.fixture(scope="module")
def model():
    graph, params = create(CONFIG, 0)
    # Sharper than at initialisation, so that completions of one prompt differ from another's.
    return graph, jax.tree.map(lambda x: 4 * x if x.ndim > 1 else x, params)


def run(model, lengths=(9, 12), width=12, key=0, **options):
    config = SamplingConfig(**({"group": 3, "max_tokens": 10, "stop_tokens": (STOP,)} | options))
    graph, params = model
    text, images = prompts(lengths, width)
    keys = sample_keys(jax.random.key(key), jnp.arange(len(lengths)), config.group)
    function = jax.jit(functools.partial(sample, graph, forbidden=FORBIDDEN, config=config))
    return text, images, jax.device_get(function(params, text, images, keys))


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_logprobs_are_the_learners(model, temperature):
    text, images, rollout = run(model, temperature=temperature)
    network = nnx.merge(*model)
    learned = jax.tree.map(jnp.asarray, rollout)
    logprobs = token_logprobs(
        network.completion_hidden(text, images, learned),
        network.head(),
        learned.tokens,
        temperature=temperature,
        forbidden=FORBIDDEN,
        chunk=7,
    )
    difference = np.abs(np.where(rollout.mask, logprobs - rollout.logprobs, 0))
    assert difference.max() < 1e-4  # the bar is 1e-3
    assert (rollout.logprobs[rollout.mask] < 0).all()


def test_completions_end_at_the_stop_token(model):
    _, _, rollout = run(model, group=16, max_tokens=24)
    stopped = 0
    for tokens, mask in zip(
        rollout.tokens.reshape(-1, 24), rollout.mask.reshape(-1, 24), strict=True
    ):
        length = int(mask.sum())
        assert mask[:length].all()
        assert (tokens[: length - 1] != STOP).all()
        assert tokens[length - 1] == STOP or length == 24
        stopped += tokens[length - 1] == STOP
    assert stopped > 0


def test_forbidden_tokens_are_never_drawn(model):
    _, _, rollout = run(model, group=32, max_tokens=16, temperature=3.0)
    assert not FORBIDDEN[rollout.tokens[rollout.mask]].any()
    assert len(np.unique(rollout.tokens[rollout.mask])) > VOCAB // 3


def test_tokens_do_not_depend_on_padding_or_batch(model):
    _, _, together = run(model, lengths=(9, 12), width=16)
    _, _, alone = run(model, lengths=(9,), width=12)
    np.testing.assert_array_equal(together.tokens[:1], alone.tokens)
    _, _, other = run(model, lengths=(9, 12), width=16, key=1)
    assert (together.tokens != other.tokens).any()


def test_stages_of_the_cache_change_nothing(model, monkeypatch):
    _, _, whole = run(model, group=8, max_tokens=24)
    monkeypatch.setattr(sampler, "_MIN_STAGE", 6)
    _, _, staged = run(model, group=8, max_tokens=24)
    np.testing.assert_array_equal(whole.tokens, staged.tokens)
    np.testing.assert_array_equal(whole.mask, staged.mask)
    np.testing.assert_allclose(whole.logprobs, staged.logprobs, atol=1e-5)
    assert whole.mask.sum(-1).max() > 18  # into the last stage


@pytest.mark.parametrize("slots", [2, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 3))])
def test_slots_are_given_back_and_change_nothing(model, slots):
    """Seven prompts, one of them empty, of which a few are decoded at a time."""
    lengths = (9, 12, 5, 0, 7, 11, 8)
    for options in ({}, {"temperature": 0.0}, {"max_tokens": 3}):
        _, _, at_once = run(model, lengths=lengths, **options)
        _, _, in_turn = run(model, lengths=lengths, slots=slots, **options)
        np.testing.assert_array_equal(in_turn.tokens, at_once.tokens)
        np.testing.assert_array_equal(in_turn.mask, at_once.mask)
        np.testing.assert_allclose(in_turn.logprobs, at_once.logprobs, atol=1e-4)
    assert not in_turn.mask[3].any() and in_turn.mask.any(axis=(1, 2)).sum() == 6


def test_repeated_prompts_give_the_same_tokens(model):
    """Groups behind one prompt, and as many rows of their own with the same keys."""
    text, images, shared = run(model, group=4)
    graph, params = model
    keys = sample_keys(jax.random.key(0), jnp.arange(2), 4).reshape(8, 1)
    rows = jax.tree.map(lambda x: np.repeat(x, 4, axis=0), (text, images))
    config = SamplingConfig(group=1, max_tokens=10, stop_tokens=(STOP,))
    repeated = jax.jit(functools.partial(sample, graph, forbidden=FORBIDDEN, config=config))(
        params, *rows, keys
    )
    np.testing.assert_array_equal(shared.tokens.reshape(8, 1, -1), repeated.tokens)
    np.testing.assert_array_equal(shared.mask.reshape(8, 1, -1), repeated.mask)


def test_visual_tokens_in_place_of_images(model):
    graph, params = model
    text, images, seen = run(model)
    visual = nnx.merge(graph, params).visual(images)
    config = SamplingConfig(group=3, max_tokens=10, stop_tokens=(STOP,))
    keys = sample_keys(jax.random.key(0), jnp.arange(2), 3)
    given = functools.partial(sample, graph, forbidden=FORBIDDEN, config=config)
    np.testing.assert_array_equal(jax.jit(given)(params, text, visual, keys).tokens, seen.tokens)
    other = jax.jit(given)(params, text, visual[::-1] + 1, keys).tokens
    assert (other != seen.tokens).any()


def test_weights_cast_ahead_of_the_loop_give_the_same_tokens():
    """Masters in float32 for bfloat16: cast once by `make_weights`, at every use by `sample`."""
    graph, params = create(CONFIG, 0, ModelOptions(Precision(jnp.bfloat16, jnp.float32)))
    params = jax.tree.map(lambda x: 4 * x if x.ndim > 1 else x, params)
    config = SamplingConfig(group=3, max_tokens=10, stop_tokens=(STOP,))
    text, images = prompts((9, 12), 12)
    keys = sample_keys(jax.random.key(0), jnp.arange(2), 3)
    mesh = sharding.make_mesh(data=1, fsdp=-1, tensor=1)
    params = sharding.place_parameters(params, mesh)
    weights = make_weights(params, jnp.bfloat16, mesh)(params)
    assert weights["decoder"]["layers"]["up_proj"]["kernel"].dtype == jnp.bfloat16
    assert weights["decoder"]["layers"]["input_norm"]["scale"].dtype == jnp.float32
    ahead = sampler.make_sampler(graph, mesh, FORBIDDEN, config)
    at_use = jax.jit(functools.partial(sample, graph, forbidden=FORBIDDEN, config=config))
    for a, b in zip(
        ahead(weights, text, images, keys), at_use(params, text, images, keys), strict=True
    ):
        np.testing.assert_array_equal(a, b)


def test_padding_rows_are_not_sampled(model):
    _, _, rollout = run(model, lengths=(9, 0))
    assert rollout.mask[0].any() and not rollout.mask[1].any()


def test_greedy_takes_the_likeliest_token(model):
    text, images, rollout = run(model, group=2, temperature=0.0)
    np.testing.assert_array_equal(rollout.tokens[:, 0], rollout.tokens[:, 1])
    network = nnx.merge(*model)
    learned = jax.tree.map(jnp.asarray, rollout)
    logits = network.completion_hidden(text, images, learned) @ network.head()
    best = np.where(FORBIDDEN, -np.inf, logits).argmax(-1)
    np.testing.assert_array_equal(best[rollout.mask], rollout.tokens[rollout.mask])


def test_samples_follow_the_distribution(model):
    """Frequencies of the first token of many samples against its probabilities."""
    text, images, rollout = run(model, lengths=(9,), group=4000, max_tokens=1)
    network = nnx.merge(*model)
    hidden = network.completion_hidden(
        text, images, jax.tree.map(lambda x: jnp.asarray(x[:, :1]), rollout)
    )
    logits = np.where(FORBIDDEN, -np.inf, np.asarray(hidden[0, 0, 0] @ network.head(), np.float64))
    expected = np.exp(logits - np.logaddexp.reduce(logits))
    found = np.bincount(rollout.tokens.reshape(-1), minlength=VOCAB) / 4000
    assert np.abs(found - expected).max() < 4 * np.sqrt(0.25 / 4000)


@pytest.mark.parametrize("top_p", [0.01, 0.3, 0.7, 0.95, 1.0])
def test_top_p_keeps_the_smallest_sufficient_set(top_p):
    probabilities = np.random.default_rng(0).dirichlet(np.ones(9), 20)
    kept = np.isfinite(np.asarray(top_p_filter(jnp.log(probabilities), top_p)))
    for row, mask in zip(probabilities, kept, strict=True):
        order = np.sort(row)[::-1]
        count = int(np.searchsorted(np.cumsum(order), top_p - 1e-6)) + 1
        assert mask.sum() == min(count, 9)
        assert row[mask].min() >= row[~mask].max(initial=0)
