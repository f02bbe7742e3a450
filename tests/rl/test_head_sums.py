"""The output head's gradient in 16 bits, summed over chunks of tokens."""

import jax
import jax.numpy as jnp
import numpy as np

from mirg_jax.rl.logprobs import token_logprobs


def test_sums_over_chunks_in_16_bits_stay_near_those_in_float32():
    """32 chunks, as GRPO on a v5e-16 has: 0.7 % of the gradient's length, without chunks 0.2 %."""
    rng = np.random.default_rng(0)
    hidden = jnp.asarray(rng.normal(size=(1, 2048, 64)), jnp.bfloat16)
    head = jnp.asarray(0.15 * rng.normal(size=(64, 512)), jnp.bfloat16)
    tokens = jnp.asarray(rng.integers(0, 512, (1, 2048)))
    advantages = jnp.asarray(rng.normal(size=(1, 2048)), jnp.float32)

    def loss(head, hidden, chunk):
        return (token_logprobs(hidden, head, tokens, chunk=chunk) * advantages).sum()

    gradient = jax.grad(loss)
    exact = np.asarray(gradient(*(x.astype(jnp.float32) for x in (head, hidden)), 0))
    found = np.asarray(gradient(head, hidden, 64), np.float32)
    assert np.linalg.norm(found - exact) < 0.01 * np.linalg.norm(exact)
