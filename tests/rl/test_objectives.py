"""Policy losses by name against float64 NumPy, their gradients against finite differences."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from mirg_jax import defaults
from mirg_jax.errors import ConfigError
from mirg_jax.rl import objective
from mirg_jax.rl.objective import OBJECTIVES, Bounds
from mirg_jax.runs.settings import read
from mirg_jax.training import rollouts
from mirg_jax.types import Rollout

BOUNDS = Bounds(0.2, 0.28, 0.0, 1.0, 1.5)
DUAL = BOUNDS._replace(dual_clip=1.4)
CASES = [*((name, BOUNDS) for name in OBJECTIVES), ("ppo", DUAL)]
NAMES = [*OBJECTIVES, "dual"]
SHAPE = (2, 3, 4)


def tokens(seed=0, apart=0.6):
    """Log-probabilities of two policies, advantages and a mask; one completion has no tokens."""
    rng = np.random.default_rng(seed)
    new = -rng.exponential(1.5, SHAPE)
    mask = np.arange(SHAPE[-1]) < rng.integers(1, SHAPE[-1] + 1, SHAPE[:2])[..., None]
    mask[0, 0] = False
    return new, new - rng.normal(0, apart, SHAPE), rng.normal(size=SHAPE[:2]), mask


def sketch(name, new, old, advantage, mask, bounds, held=None):
    """The loss of each token, a completion at a time; `held` is where CISPO takes its weights."""
    held, losses = new if held is None else held, np.zeros(new.shape)
    for b, g in np.ndindex(new.shape[:2]):
        A, counted = float(advantage[b, g]), np.flatnonzero(mask[b, g])
        for t in counted:
            ratio = np.exp(new[b, g, t] - old[b, g, t])
            if name == "gspo":
                ratio = np.exp(sum(new[b, g, i] - old[b, g, i] for i in counted) / len(counted))
            inside = min(max(ratio, 1 - bounds.clip_low), 1 + bounds.clip_high)
            if name in ("ppo", "gspo"):
                gain = min(ratio * A, inside * A)
                gain = max(gain, bounds.dual_clip * A) if bounds.dual_clip and A < 0 else gain
            elif name == "cispo":
                weight = np.exp(held[b, g, t] - old[b, g, t])
                weight = min(max(weight, 1 - bounds.clip_low), 1 + bounds.clip_high)
                gain = weight * A * new[b, g, t]
            elif name == "sapo":
                tau = bounds.tau_positive if A > 0 else bounds.tau_negative
                gain = 4 / tau / (1 + np.exp(-tau * (ratio - 1))) * A
            else:
                gain = A * new[b, g, t]
            losses[b, g, t] = -gain
    return losses


@pytest.mark.parametrize(("name", "bounds"), CASES, ids=NAMES)
def test_losses_and_gradients_match_float64(name, bounds):
    new, old, advantage, mask = given_arrays = tokens()
    with jax.enable_x64(True):

        def loss(new):
            found = OBJECTIVES[name](new, *map(jnp.asarray, given_arrays[1:]), bounds)
            return jnp.where(mask, found.loss, 0.0).sum(), found

        gradient, found = jax.jit(jax.grad(loss, has_aux=True))(jnp.asarray(new))
    assert found.loss.dtype == gradient.dtype == np.float64
    kept = np.where(mask, found.loss, 0)
    np.testing.assert_allclose(kept, sketch(name, *given_arrays, bounds), rtol=1e-9, atol=1e-12)
    for at in np.ndindex(SHAPE):
        step = np.zeros(SHAPE)
        step[at] = 1e-6
        ends = (sketch(name, new + d, old, advantage, mask, bounds, new) for d in (step, -step))
        slope = np.subtract(*(end.sum() for end in ends)) / 2e-6
        assert float(gradient[at]) == pytest.approx(slope, abs=1e-7), at


@pytest.mark.parametrize(("name", "bounds"), CASES, ids=NAMES)
def test_what_is_clipped_has_no_gradient_or_a_bounded_one(name, bounds):
    new, old, advantage, mask = tokens(1)
    found = OBJECTIVES[name](*map(jnp.asarray, (new, old, advantage, mask)), bounds)
    clipped = np.asarray(found.clipped) & mask
    if name in ("sapo", "reinforce"):
        assert not clipped.any()
    else:
        base = sketch(name, new, old, advantage, mask, bounds)
        moved = sketch(name, new + 1e-7, old, advantage, mask, bounds, new)
        still = np.abs(moved - base) < 1e-12
        assert clipped.any() and (name == "cispo" or (still[mask] == clipped[mask]).all())


def test_on_the_policy_that_sampled_all_gradients_are_those_of_log_pi():
    _, old, advantage, mask = map(jnp.asarray, tokens())

    def loss(new, name):
        values = OBJECTIVES[name](new, old, advantage, mask, BOUNDS).loss
        return objective.reduce_tokens(
            values, mask, "sequence", sequences=6.0, tokens=1.0, longest=9
        )

    found = jax.jit(lambda new: {name: jax.grad(loss)(new, name) for name in OBJECTIVES})(old)
    wanted = -advantage[..., None] * mask / np.maximum(mask.sum(-1, keepdims=True), 1) / 6
    for name, gradient in found.items():
        np.testing.assert_allclose(gradient, wanted, atol=1e-6, err_msg=name)


COMBINATIONS = [
    (label, name, bounds, kind, ("k1", "k2", "k3")[(i + j) % 3])  # each with all of the others
    for i, ((name, bounds), label) in enumerate(zip(CASES, NAMES, strict=True))
    for j, kind in enumerate(("sequence", "token", "constant"))
]


@jax.jit
def all_losses(new, old, reference, advantage, mask):
    """Loss and gradient of every objective with every normalisation and every KL estimator."""
    totals = {"sequences": 6.0, "tokens": jnp.maximum(mask.sum(), 1.0), "longest": 9}

    def loss(new, name, bounds, kind, kl):
        values = OBJECTIVES[name](new, old, advantage, mask, bounds).loss
        values += 0.04 * objective.kl_estimate(new, reference, kl)
        return objective.reduce_tokens(values, mask, kind, **totals)

    return {
        (label, kind, kl): jax.value_and_grad(loss)(new, name, bounds, kind, kl)
        for label, name, bounds, kind, kl in COMBINATIONS
    }


LOGS = arrays(np.float32, SHAPE, elements=st.floats(-80, 0, width=32))
A = arrays(np.float32, SHAPE[:2], elements=st.floats(-30, 30, width=32))
LENGTHS = arrays(np.int32, SHAPE[:2], elements=st.integers(0, SHAPE[-1]))


@given(LOGS, LOGS, LOGS, A, LENGTHS, st.sampled_from([0.0, -1e4, 1e30, -1e30]))
@settings(max_examples=40, deadline=None)
def test_nothing_is_nan_and_padding_counts_for_nothing(new, old, reference, A, lengths, padding):
    mask = np.arange(SHAPE[-1]) < lengths[..., None]
    found = all_losses(new, old, reference, A, mask)
    signs = zip((new, old, reference), (padding, -padding, 0.0), strict=True)
    other = all_losses(*(np.where(mask, x, np.float32(y)) for x, y in signs), A, mask)
    for case, (value, gradient) in found.items():
        assert np.isfinite(value) and np.isfinite(gradient).all(), case
        assert (np.asarray(gradient)[~mask] == 0).all(), case
        for a, b in zip((value, gradient), other[case], strict=True):
            np.testing.assert_array_equal(a, b, err_msg=str(case))


def test_importance_weights_match_float64():
    new, old, _, mask = map(jnp.asarray, tokens(apart=1.5))

    def weights(new):
        return objective.importance_weights(new, jnp.asarray(old, jnp.float32), mask, 2.0)

    found = np.asarray(weights(jnp.asarray(new, jnp.float32)))
    expected = np.where(mask, np.minimum(np.exp(new - old), 2.0), 1.0)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert 0.05 < (found == 2.0).mean() < 0.95
    assert not jax.grad(lambda new: weights(new).sum())(jnp.asarray(new, jnp.float32)).any()


def test_cut_completions_are_found_and_left_out():
    """Those that fill the limit without a stop token at the end; one that just fits is not cut."""
    drawn = np.array(
        [[[5, 5, 7, 0], [5, 5, 5, 7], [5, 5, 5, 8]], [[9, 0, 0, 0], [7, 5, 5, 9], [5] * 4]]
    )
    lengths = np.array([[3, 4, 4], [1, 4, 4]])
    mask = np.arange(4) < lengths[..., None]
    rollout = Rollout(*map(jnp.asarray, (drawn, mask, np.zeros(mask.shape, np.float32))))
    rollout = rollout._replace(logprobs=rollout.logprobs - 0.5)
    numbers, found, cut, logprobs = rollouts.measure(rollout, jnp.array([3, 1]), stops=(7, 9))
    np.testing.assert_array_equal(numbers, [3, 1])
    np.testing.assert_array_equal(found, lengths)
    np.testing.assert_array_equal(logprobs, -0.5 * lengths)
    np.testing.assert_array_equal(cut, [[False, False, True], [False, False, True]])
    left = rollouts.leave_out(rollout, cut)
    np.testing.assert_array_equal(left.mask, mask & ~np.asarray(cut)[..., None])
    assert left.tokens is rollout.tokens


def test_settings_of_objectives_are_checked():
    def refused(**changes):
        config = defaults.grpo()
        config.grpo.update(changes)
        with pytest.raises(ConfigError) as caught:
            read(config)
        assert len(str(caught.value).splitlines()) == 1
        return str(caught.value)

    assert "none of ppo, gspo, cispo, sapo, reinforce" in refused(objective="pop")
    assert "grpo.dual_clip=0.5 must be above 1" in refused(dual_clip=0.5)
    assert "is for grpo.objective='ppo' only" in refused(dual_clip=3.0, objective="gspo")
    assert "grpo.tau_negative=0 must be above 0" in refused(tau_negative=0.0)
    assert "grpo.importance_cap=-1 must be 0 or more" in refused(importance_cap=-1.0)
    assert "grpo.importance_cap=0.2 would lower all" in refused(importance_cap=0.2)


def test_the_default_is_the_papers():
    config = defaults.grpo()
    grpo = read(config).grpo
    given_arrays = [jnp.asarray(x, jnp.float32) for x in tokens()[:3]]
    mask = jnp.asarray(tokens()[3])
    plain = functools.partial(objective.policy_loss, clip_low=0.2, clip_high=0.2)
    chosen = lambda *x: OBJECTIVES[grpo.objective](*x, mask, grpo.bounds)  # noqa: E731
    programs = (str(jax.make_jaxpr(f)(*given_arrays)) for f in (plain, chosen))
    assert len(set(programs)) == 1
    assert grpo.advantage_scale == "std" and not grpo.difficulty_weight and not grpo.dual_clip


def test_configs_of_runs_made_before_mean_the_papers_objective():
    config = defaults.grpo()
    newer = "objective dual_clip tau_positive tau_negative mask_cut difficulty_weight more_rewards"
    for name in (*newer.split(), "overlong_buffer", "iou_thresholds"):
        del config.grpo[name]
    assert read(config).grpo == read(defaults.grpo()).grpo
