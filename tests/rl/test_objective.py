"""GRPO's mathematics against float64 NumPy, and its gradient against one written by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from mirg_jax.rl import objective
from mirg_jax.rl.advantages import group_advantages, zero_spread

# XLA takes numbers below the normal ones for zero; rewards are none of them.
REWARDS = arrays(np.float32, (3, 6), elements=st.floats(0, 3, width=32, allow_subnormal=False))


@given(REWARDS)
@settings(max_examples=200, deadline=None)
def test_advantages_match_float64(rewards):
    r = rewards.astype(np.float64)
    spread = r.max(-1) > r.min(-1)
    expected = np.where(
        spread[:, None], (r - r.mean(-1, keepdims=True)) / (r.std(-1, keepdims=True) + 1e-4), 0
    )
    found = np.asarray(group_advantages(jnp.array(rewards)))
    np.testing.assert_allclose(found, expected, atol=5e-3, rtol=1e-3)
    np.testing.assert_array_equal(np.asarray(zero_spread(jnp.array(rewards))), ~spread)
    np.testing.assert_allclose(
        np.asarray(group_advantages(jnp.array(rewards), scale="none")),
        r - r.mean(-1, keepdims=True),
        atol=1e-6,
    )


@pytest.mark.parametrize("value", [0.0, 1.1, 2.9999, 0.1 + 0.2])
def test_equal_rewards_have_zero_advantage(value):
    rewards = jnp.full((2, 8), value, jnp.float32)
    assert (np.asarray(group_advantages(rewards)) == 0).all()


def test_kl_estimators_match_float64_and_stay_finite():
    rng = np.random.default_rng(0)
    policy, reference = -rng.exponential(2, (2, 1000))
    d = np.clip(reference - policy, -10, 10)
    for kind, expected in {"k1": -d, "k2": d**2 / 2, "k3": np.exp(d) - 1 - d}.items():
        found = objective.kl_estimate(jnp.array(policy), jnp.array(reference), kind)
        np.testing.assert_allclose(np.asarray(found), expected, rtol=2e-5, atol=1e-5)
    extreme = objective.kl_estimate(jnp.array([-500.0, 0.0]), jnp.array([0.0, -500.0]))
    assert np.isfinite(np.asarray(extreme)).all() and (np.asarray(extreme) >= 0).all()


def test_k1_and_k3_estimate_the_kl():
    """Their means over samples of π approach KL(π ‖ π_ref)."""
    rng = np.random.default_rng(0)
    p, q = rng.dirichlet(np.ones(6)), rng.dirichlet(np.ones(6))
    true = (p * np.log(p / q)).sum()
    drawn = rng.choice(6, 200_000, p=p)
    for kind in ("k1", "k3"):
        found = objective.kl_estimate(jnp.log(p[drawn]), jnp.log(q[drawn]), kind)
        assert float(found.mean()) == pytest.approx(true, rel=0.05)


@pytest.mark.parametrize("kind", ["sequence", "token", "constant"])
def test_normalisations_match_float64_and_add_up_over_micro_batches(kind):
    rng = np.random.default_rng(1)
    values = rng.normal(size=(4, 3, 7))
    mask = np.arange(7) < rng.integers(1, 8, (4, 3))[..., None]
    kept = np.where(mask, values, 0)
    expected = {
        "sequence": (kept.sum(-1) / mask.sum(-1)).mean(),
        "token": kept.sum() / mask.sum(),
        "constant": kept.sum() / (12 * 9),
    }[kind]
    totals = {"sequences": 12.0, "tokens": float(mask.sum()), "longest": 9}

    def share(rows, padding=0):
        given = (np.pad(each[rows], ((0, 0), (0, 0), (0, padding))) for each in (values, mask))
        return float(objective.reduce_tokens(*map(jnp.array, given), kind, **totals))

    assert share(slice(None)) == pytest.approx(expected, abs=1e-6)
    for padding in (0, 2):  # micro-batches are padded to lengths of their own
        apart = share(slice(0, 1)) + share(slice(1, 4), padding)
        assert apart == pytest.approx(expected, abs=1e-6)


def test_clipped_objective_matches_float64():
    rng = np.random.default_rng(2)
    new, old = -rng.exponential(1, (2, 5, 4, 6))
    advantage = rng.normal(size=(5, 4))
    ratio = np.exp(new - old)
    A = advantage[..., None]
    expected = -np.minimum(ratio * A, np.clip(ratio, 0.8, 1.3) * A)
    found = objective.policy_loss(
        jnp.array(new), jnp.array(old), jnp.array(advantage), clip_low=0.2, clip_high=0.3
    )
    np.testing.assert_allclose(np.asarray(found.loss), expected, rtol=1e-4, atol=1e-5)
    held = ((ratio > 1.3) & (A > 0)) | ((ratio < 0.8) & (A < 0))
    np.testing.assert_array_equal(np.asarray(found.clipped), held)


def test_gradient_of_a_toy_policy_is_the_hand_written_one():
    """One token a completion, softmax logits θ: the gradient of equation 5 at π = π_old.

    ∂/∂θ of −mean(A log π(o)) + β mean(k3) is −mean((A + β (e^d − 1)) (onehot(o) − π)),
    with d = log π_ref(o) − log π(o).
    """
    rng = np.random.default_rng(3)
    theta, reference = rng.normal(size=(2, 7))
    actions = rng.integers(0, 7, 8)
    rewards = rng.random((1, 8))
    beta = 0.3

    def log_softmax(x):
        return x - np.log(np.exp(x - x.max()).sum()) - x.max()

    advantage = (rewards - rewards.mean()) / (rewards.std() + 1e-4)
    policy, ref = log_softmax(theta), log_softmax(reference)
    d = (ref - policy)[actions]
    score = np.eye(7)[actions] - np.exp(policy)
    expected = -((advantage[0] + beta * (np.exp(d) - 1))[:, None] * score).mean(axis=0)

    def loss(theta):
        logprobs = jax.nn.log_softmax(theta)[jnp.array(actions)].reshape(1, 8, 1)
        old = jax.lax.stop_gradient(logprobs)
        A = group_advantages(jnp.array(rewards))
        policy_loss = objective.policy_loss(logprobs, old, A).loss
        kl = objective.kl_estimate(logprobs, jnp.array(ref[actions]).reshape(1, 8, 1))
        return objective.reduce_tokens(
            policy_loss + beta * kl,
            jnp.ones((1, 8, 1), bool),
            "sequence",
            sequences=8.0,
            tokens=8.0,
            longest=1,
        )

    np.testing.assert_allclose(np.asarray(jax.grad(loss)(jnp.array(theta))), expected, atol=2e-6)


@pytest.mark.parametrize(
    "call",
    [
        lambda: group_advantages(jnp.ones((1, 2)), scale="no"),
        lambda: objective.kl_estimate(jnp.ones(1), jnp.ones(1), "k9"),
        lambda: objective.reduce_tokens(
            jnp.ones((1, 1, 1)), jnp.ones((1, 1, 1), bool), "no", sequences=1, tokens=1, longest=1
        ),
    ],
)
def test_unknown_names_are_refused(call):
    with pytest.raises(ValueError, match="n(either|one)"):
        call()
