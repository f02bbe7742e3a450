"""Attention of grouped queries to their own keys and, if given, to a shared prefix.

Axes: B rows, G branches of a row (completions of one prompt, or the images of one row),
K key/value heads, R query heads that share one, T queries, S keys, P prefix keys, D head size.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

_MASKED = -1e30  # finite, so that a row that sees nothing (padding) stays free of NaN


def attend(
    q: Float[Array, "B K G R T D"],
    k: Float[Array, "B K G S D"],
    v: Float[Array, "B K G S D"],
    q_segments: Int[Array, "B G T"],
    k_segments: Int[Array, "B G S"],
    *,
    causal: bool,
    prefix_k: Float[Array, "B K P D"] | None = None,
    prefix_v: Float[Array, "B K P D"] | None = None,
    prefix_segments: Int[Array, "B P"] | None = None,
) -> Float[Array, "B K G R T D"]:
    """Softmax attention, in float32 inside, in the plain form that every backend has.

    A query sees the keys of its own branch with its own segment number, up to itself if
    `causal` (then T = S), and every prefix key with its segment number. For a row
    `[a a b b 0]` of segments, `causal`:

        a a b b 0
      a x . . . .
      a x x . . .
      b . . x . .
      b . . x x .
      0 . . . . x   (padding sees padding; nothing reads it)

    The prefix's keys are read once for all G·R·T queries, as one matrix product.
    """
    B, K, G, R, T, D = q.shape
    scale = D**-0.5
    mask = q_segments[..., :, None] == k_segments[..., None, :]
    if causal:
        mask &= jnp.tril(jnp.ones((T, T), bool))

    def scores(queries, keys, mask):
        logits = jnp.einsum("...td,...sd->...ts", queries, keys, preferred_element_type=jnp.float32)
        return jnp.where(mask, logits.reshape(B, K, G, R, T, -1) * scale, _MASKED)

    # Batch axes lead and heads are merged into rows: plain batched matrix products, which the
    # CPU runs several times faster than the same einsum over five axes.
    logits = scores(q.reshape(B, K, G, R * T, D), k, mask[:, None, :, None])
    if prefix_k is not None:
        seen = q_segments[..., None] == prefix_segments[:, None, None, :]
        shared = scores(q.reshape(B, K, G * R * T, D), prefix_k, seen[:, None, :, None])
        logits = jnp.concatenate([shared, logits], axis=-1)

    weights = jax.nn.softmax(logits, axis=-1).astype(v.dtype)
    own = weights[..., -k.shape[-2] :].reshape(B, K, G, R * T, -1)
    out = (own @ v).reshape(q.shape)
    if prefix_v is not None:
        shared = weights[..., : prefix_v.shape[-2]].reshape(B, K, G * R * T, -1)
        out += (shared @ prefix_v).reshape(q.shape)
    return out
