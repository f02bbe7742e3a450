"""attend() against a float64 loop over queries."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mirg_jax.models import attention

B, K, G, R, T, P, D = 2, 2, 3, 2, 7, 5, 8


def attend(q, k, v, *args, **kwargs):
    """`attention.attend` takes the heads and branches of keys and values as one axis."""
    k, v = (x.reshape(x.shape[0], -1, *x.shape[-2:]) for x in (k, v))
    arrays = {name: kwargs.pop(name) for name in list(kwargs) if name.startswith("prefix")}
    whole = jax.jit(functools.partial(attention.attend, **kwargs))  # not operation by operation
    return whole(*map(jnp.asarray, (q, k, v, *args)), **arrays)


def reference(q, k, v, q_segments, k_segments, *, causal, prefix=None):
    """One query at a time, in float64; NaN where a query sees nothing."""
    out = np.full(q.shape, np.nan)
    for b, h, g, r, t in np.ndindex(q.shape[:-1]):
        seen = [
            (k[b, h, g, s], v[b, h, g, s])
            for s in range(k.shape[3])
            if k_segments[b, g, s] == q_segments[b, g, t] and (s <= t or not causal)
        ]
        if prefix is not None:
            prefix_k, prefix_v, prefix_segments = prefix
            seen += [
                (prefix_k[b, h, s], prefix_v[b, h, s])
                for s in range(prefix_k.shape[2])
                if prefix_segments[b, s] == q_segments[b, g, t]
            ]
        if seen:
            keys, values = (np.stack(part).astype(np.float64) for part in zip(*seen, strict=True))
            scores = keys @ q[b, h, g, r, t].astype(np.float64) / np.sqrt(q.shape[-1])
            weights = np.exp(scores - scores.max())
            out[b, h, g, r, t] = weights @ values / weights.sum()
    return out


@pytest.fixture
def arrays():
    rng = np.random.default_rng(0)

    def normal(*shape):
        return (2 * rng.standard_normal(shape)).astype(np.float32)

    q, k, v = normal(B, K, G, R, T, D), normal(B, K, G, T, D), normal(B, K, G, T, D)
    segments = np.array(
        [
            [[1, 1, 1, 2, 2, 0, 0], [1, 2, 2, 2, 2, 3, 3], [0, 0, 0, 0, 0, 0, 0]],
            [[1, 1, 1, 1, 1, 1, 1], [1, 1, 0, 0, 0, 0, 0], [1, 2, 3, 4, 5, 0, 0]],
        ],
        np.int32,
    )
    prefix = (
        normal(B, K, P, D),
        normal(B, K, P, D),
        np.array([[1, 1, 1, 2, 0], [1, 1, 1, 1, 1]], np.int32),
    )
    return q, k, v, segments, prefix


@pytest.mark.parametrize("with_prefix", [False, True])
@pytest.mark.parametrize("causal", [False, True])
def test_equals_float64_reference(arrays, causal, with_prefix):
    q, k, v, segments, prefix = arrays
    options = {}
    if with_prefix:
        options = dict(
            zip(("prefix_k", "prefix_v", "prefix_segments"), map(jnp.asarray, prefix), strict=True)
        )
    ours = attend(q, k, v, jnp.asarray(segments), jnp.asarray(segments), causal=causal, **options)
    expected = reference(
        q, k, v, segments, segments, causal=causal, prefix=prefix if with_prefix else None
    )
    assert np.isfinite(expected).all()  # padding sees padding, itself at least
    np.testing.assert_allclose(ours, expected, atol=2e-5)


@pytest.mark.parametrize("length", [127, 128, 200, 300])  # one, two, three and four blocks
def test_blocks_of_queries_change_nothing(length, monkeypatch):
    rng = np.random.default_rng(length)
    q = rng.standard_normal((1, 2, 1, 2, length, D), np.float32)
    k, v = rng.standard_normal((2, 1, 2, 1, length, D), np.float32)
    segments = jnp.asarray(np.sort(rng.integers(1, 4, (1, 1, length))))

    def total(q, k, v):
        out = attend(q, k, v, segments, segments, causal=True)
        return (out**2).sum(), out

    def gradient():  # traced anew at each call
        return jax.jit(jax.value_and_grad(total, argnums=(0, 1, 2), has_aux=True))(q, k, v)

    ours = gradient()
    monkeypatch.setattr(attention, "_MAX_BLOCKS", 1)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(gradient()), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


def test_one_query_sees_what_is_written(arrays):
    """As in decoding: fewer queries than keys, and keys not yet written."""
    q, k, v, _, prefix = arrays
    q = q[..., :1, :]
    q_segments = np.ones((B, G, 1), np.int32)
    k_segments = np.broadcast_to((np.arange(T) < 4).astype(np.int32), (B, G, T))
    ours = attend(
        q,
        k,
        v,
        jnp.asarray(q_segments),
        jnp.asarray(k_segments),
        causal=False,
        prefix_k=jnp.asarray(prefix[0]),
        prefix_v=jnp.asarray(prefix[1]),
        prefix_segments=jnp.asarray(prefix[2]),
    )
    expected = reference(q, k, v, q_segments, k_segments, causal=False, prefix=prefix)
    np.testing.assert_allclose(ours, expected, atol=2e-5)


def test_rows_that_see_nothing_stay_finite(arrays):
    """In value and in gradient: a NaN there would spread through the batch's sum."""
    q, k, v, _, _ = arrays
    q_segments = jnp.ones((B, G, T), jnp.int32).at[:, :, -2:].set(9)  # 9: no key has it
    k_segments = jnp.ones((B, G, T), jnp.int32)

    def total(q, k, v):
        return (attend(q, k, v, q_segments, k_segments, causal=True) ** 2).sum()

    value, gradients = jax.jit(jax.value_and_grad(total, argnums=(0, 1, 2)))(q, k, v)
    assert np.isfinite(value)
    assert all(np.isfinite(g).all() for g in gradients)


def test_bfloat16_keeps_the_softmax_in_float32(arrays):
    """Equal keys, many of them: in bfloat16 sums the weights would not add up to one."""
    count = 1001
    q = jnp.ones((1, 1, 1, 1, 1, D), jnp.bfloat16)
    k = jnp.ones((1, 1, 1, count, D), jnp.bfloat16)
    v = jnp.ones((1, 1, 1, count, D), jnp.bfloat16)
    segments = jnp.ones((1, 1, count), jnp.int32)
    out = attend(q, k, v, segments[..., :1], segments, causal=False)
    assert out.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(out, np.float32), 1.0, atol=2**-7)
