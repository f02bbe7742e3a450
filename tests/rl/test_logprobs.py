"""Chunked log-probs against float64, gradients included."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mirg_jax.rl.logprobs import exact_kl, token_logprobs

FORBIDDEN = np.arange(11) % 5 == 3


def numpy_logprobs(hidden, head, temperature, forbidden):
    logits = hidden.astype(np.float64) @ head.astype(np.float64) / temperature
    if forbidden is not None:
        logits = np.where(forbidden, -np.inf, logits)
    peak = logits.max(-1, keepdims=True)
    return logits - peak - np.log(np.exp(logits - peak).sum(-1, keepdims=True))


@pytest.fixture
def numbers():
    rng = np.random.default_rng(0)
    hidden, head = rng.normal(size=(2, 13, 5)), rng.normal(size=(5, 11))
    tokens = rng.choice(np.flatnonzero(~FORBIDDEN), (2, 13))
    return hidden.astype(np.float32), head.astype(np.float32), tokens


@pytest.mark.parametrize("chunk", [1, 4, 26, 1000])
@pytest.mark.parametrize("forbidden", [None, FORBIDDEN])
def test_token_logprobs(numbers, chunk, forbidden):
    hidden, head, tokens = numbers
    options = {"temperature": 0.7, "forbidden": forbidden, "chunk": chunk}
    expected = np.take_along_axis(
        numpy_logprobs(hidden, head, 0.7, forbidden), tokens[..., None], -1
    )[..., 0]
    found = token_logprobs(jnp.array(hidden), jnp.array(head), jnp.array(tokens), **options)
    np.testing.assert_allclose(np.asarray(found), expected, atol=1e-5)

    def chunked(h, w):
        return token_logprobs(h, w, jnp.array(tokens), **options).sum()

    def whole(h, w):
        logits = h @ w / 0.7
        logits = logits if forbidden is None else jnp.where(forbidden, -1e30, logits)
        return jnp.take_along_axis(
            jax.nn.log_softmax(logits), jnp.array(tokens)[..., None], -1
        ).sum()

    given = jnp.array(hidden), jnp.array(head)
    ours, theirs = (jax.grad(function, (0, 1))(*given) for function in (chunked, whole))
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), atol=1e-5)


def test_exact_kl(numbers):
    hidden, head, _ = numbers
    other = hidden[::-1].copy()
    p = numpy_logprobs(hidden, head, 1.0, FORBIDDEN)
    q = numpy_logprobs(other, head * 2, 1.0, FORBIDDEN)
    keep = ~FORBIDDEN
    expected = (np.exp(p[..., keep]) * (p[..., keep] - q[..., keep])).sum(-1)
    hidden, head, other = (jnp.array(x) for x in (hidden, head, other))
    found, gradient = jax.value_and_grad(
        lambda h: exact_kl(h, head, other, head * 2, forbidden=FORBIDDEN, chunk=4).sum()
    )(hidden)
    assert float(found) == pytest.approx(expected.sum(), rel=1e-4)
    assert np.isfinite(np.asarray(gradient)).all()
    same = exact_kl(hidden, head, hidden, head, forbidden=FORBIDDEN)
    np.testing.assert_allclose(np.asarray(same), 0, atol=1e-6)
