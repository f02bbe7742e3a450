"""Log-probabilities of tokens, computed in chunks so that the full logits are never stored.

With a vocabulary of 152k, the logits of 8k tokens take 5 GB in float32. Each chunk's logits are
recomputed in the backward pass.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int


def log_softmax(
    hidden: Float[Array, "*N M"],
    head: Float[Array, "M vocab"],
    *,
    temperature: float = 1.0,
    forbidden: Bool[Array | np.ndarray, " vocab"] | None = None,
) -> Float[Array, "*N vocab"]:
    """Computes log π(· | hidden) of the distribution that is sampled from.

    Args:
      hidden: hidden states.
      head: the output head.
      temperature: divides the logits.
      forbidden: tokens with probability 0.
    """
    return jax.nn.log_softmax(_logits(hidden, head, temperature, forbidden), axis=-1)


@jax.custom_vjp
def _project(hidden: Float[Array, "*N M"], head: Float[Array, "M vocab"]) -> Array:
    """Computes hidden · head in float32, with gradients computed in the head's dtype.

    By default JAX would compute the head's gradient, which is as large as the head, in float32.
    """
    return jnp.matmul(hidden, head, preferred_element_type=jnp.float32)


def _project_backward(saved, g):
    hidden, head = saved
    g = g.astype(head.dtype)
    return g @ head.T, jnp.einsum("...m,...v->mv", hidden, g)


_project.defvjp(lambda hidden, head: (_project(hidden, head), (hidden, head)), _project_backward)


def _logits(hidden, head, temperature, forbidden):
    logits = _project(hidden, head) / temperature
    return logits if forbidden is None else jnp.where(forbidden, -jnp.inf, logits)


def _in_chunks(function, chunk: int, *arrays):
    """Applies `function` to arrays [B, N, …] in chunks along N, with rematerialisation.

    The batch axis is kept, so that each device works on its own rows.
    """
    rows, count = arrays[0].shape[:2]
    if not chunk or count <= chunk:
        return function(*arrays)
    steps = -(-count // chunk)

    def split(x):
        widths = [(0, 0), (0, steps * chunk - count)] + [(0, 0)] * (x.ndim - 2)
        return jnp.pad(x, widths).reshape(rows, steps, chunk, *x.shape[2:]).swapaxes(0, 1)

    out = jax.lax.map(jax.checkpoint(lambda xs: function(*xs)), tuple(map(split, arrays)))
    return out.swapaxes(0, 1).reshape(rows, steps * chunk)[:, :count]


def _rows(x, shape):
    """Merges all token axes of a row into one: [B, *N, …] → [B, N, …]; `shape` is [B, *N]."""
    return x.reshape(shape[0], -1, *x.shape[len(shape) :])


def token_logprobs(
    hidden: Float[Array, "B *N M"],
    head: Float[Array, "M vocab"],
    tokens: Int[Array, "B *N"],
    *,
    temperature: float = 1.0,
    forbidden: Bool[Array | np.ndarray, " vocab"] | None = None,
    chunk: int = 1024,
) -> Float[Array, "B *N"]:
    """Computes log π(token | hidden) in float32.

    Args:
      hidden: hidden states that predict the tokens.
      head: the output head.
      tokens: the tokens.
      temperature: the sampling temperature.
      forbidden: tokens that are never sampled.
      chunk: tokens of each row whose logits are in memory at a time; 0: all.
    """

    def one(hidden, tokens):
        logits = _logits(hidden, head, temperature, forbidden)
        # The comparison is fused with the sum; the gradient of a gather would be a scatter.
        chosen = jnp.arange(logits.shape[-1]) == tokens[..., None]
        return jnp.where(chosen, logits, 0.0).sum(-1) - jax.nn.logsumexp(logits, axis=-1)

    rows = (_rows(x, tokens.shape) for x in (hidden, tokens))
    return _in_chunks(one, chunk, *rows).reshape(tokens.shape)


def exact_kl(
    hidden: Float[Array, "B *N M"],
    head: Float[Array, "M vocab"],
    reference_hidden: Float[Array, "B *N M"],
    reference_head: Float[Array, "M vocab"],
    *,
    temperature: float = 1.0,
    forbidden: Bool[Array | np.ndarray, " vocab"] | None = None,
    chunk: int = 1024,
) -> Float[Array, "B *N"]:
    """Computes KL(π ‖ π_ref) over the whole vocabulary at each token.

    Args:
      hidden: the policy's hidden states.
      head: the policy's output head.
      reference_hidden: the reference model's hidden states.
      reference_head: the reference model's output head.
      temperature: the sampling temperature.
      forbidden: tokens that are never sampled.
      chunk: tokens of each row whose logits are in memory at a time; 0: all.
    """

    def one(hidden, reference_hidden):
        options = {"temperature": temperature, "forbidden": forbidden}
        policy = log_softmax(hidden, head, **options)
        reference = log_softmax(reference_hidden, reference_head, **options)
        possible = jnp.isfinite(policy)  # −inf − −inf would make the gradient NaN
        ratio = jnp.where(possible, policy, 0.0) - jnp.where(possible, reference, 0.0)
        return (jnp.exp(policy) * ratio).sum(axis=-1)

    shape = hidden.shape[:-1]
    rows = (_rows(x, shape) for x in (hidden, reference_hidden))
    return _in_chunks(one, chunk, *rows).reshape(shape)
