"""Log-probabilities of tokens, chunk by chunk, so that full logits never exist.

At 152k words, the logits of 8k tokens take 5 GB in float32; a chunk's are made, used and made
again in the backward pass.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


def log_softmax(
    hidden: Float[Array, "*N M"],
    head: Float[Array, "M vocab"],
    *,
    temperature: float = 1.0,
    forbidden: Bool[Array, " vocab"] | None = None,
) -> Float[Array, "*N vocab"]:
    """log π(· | hidden) of the distribution that is sampled: forbidden tokens have no mass."""
    return jax.nn.log_softmax(_logits(hidden, head, temperature, forbidden), axis=-1)


def _logits(hidden, head, temperature, forbidden):
    logits = jnp.matmul(hidden, head, preferred_element_type=jnp.float32) / temperature
    return logits if forbidden is None else jnp.where(forbidden, -jnp.inf, logits)


def _in_chunks(function, chunk: int, *arrays):
    """Maps `function` over the leading axis, `chunk` rows at a time, recomputed in the backward."""
    count = arrays[0].shape[0]
    if count <= chunk:
        return function(*arrays)
    padded = -(-count // chunk) * chunk
    split = [
        jnp.pad(a, [(0, padded - count)] + [(0, 0)] * (a.ndim - 1)).reshape(-1, chunk, *a.shape[1:])
        for a in arrays
    ]
    out = jax.lax.map(jax.checkpoint(lambda xs: function(*xs)), tuple(split))
    return jax.tree.map(lambda o: o.reshape(padded, *o.shape[2:])[:count], out)


def token_logprobs(
    hidden: Float[Array, "*N M"],
    head: Float[Array, "M vocab"],
    tokens: Int[Array, "*N"],
    *,
    temperature: float = 1.0,
    forbidden: Bool[Array, " vocab"] | None = None,
    chunk: int = 1024,
) -> Float[Array, "*N"]:
    """log π(token | hidden) in float32; the temperature and forbidden tokens as when sampling."""

    def one(hidden, tokens):
        logits = _logits(hidden, head, temperature, forbidden)
        # A comparison fuses with the sum; a gather's gradient would be a scatter.
        chosen = jnp.arange(logits.shape[-1]) == tokens[:, None]
        return jnp.where(chosen, logits, 0.0).sum(-1) - jax.nn.logsumexp(logits, axis=-1)

    flat = _in_chunks(one, chunk, hidden.reshape(-1, hidden.shape[-1]), tokens.reshape(-1))
    return flat.reshape(tokens.shape)


def exact_kl(
    hidden: Float[Array, "*N M"],
    head: Float[Array, "M vocab"],
    reference_hidden: Float[Array, "*N M"],
    reference_head: Float[Array, "M vocab"],
    *,
    temperature: float = 1.0,
    forbidden: Bool[Array, " vocab"] | None = None,
    chunk: int = 1024,
) -> Float[Array, "*N"]:
    """KL(π ‖ π_ref) over the whole vocabulary at each token."""

    def one(hidden, reference_hidden):
        options = {"temperature": temperature, "forbidden": forbidden}
        policy = log_softmax(hidden, head, **options)
        reference = log_softmax(reference_hidden, reference_head, **options)
        possible = jnp.isfinite(policy)  # −inf − −inf would make the gradient NaN
        ratio = jnp.where(possible, policy, 0.0) - jnp.where(possible, reference, 0.0)
        return (jnp.exp(policy) * ratio).sum(axis=-1)

    def rows(h):
        return h.reshape(-1, h.shape[-1])

    return _in_chunks(one, chunk, rows(hidden), rows(reference_hidden)).reshape(hidden.shape[:-1])
