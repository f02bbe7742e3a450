"""Grouped-query attention over each branch's own keys and, optionally, over a shared prefix.

Axes: B rows, G branches of a row (completions of one prompt, or the images of one row),
K key/value heads, R query heads per key/value head, T queries, S keys, P prefix keys, D head size.
Own keys and values have K and G merged into one axis (KG), the layout of the decoding cache.
"""

import functools

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from mirg_jax.models import flash
from mirg_jax.sharding import GATHERED, spec

_MASKED = -1e30  # finite, so that fully masked rows (padding) don't become NaN
_MIN_BLOCK = 64  # queries per block; smaller blocks make the matrix products too small to be fast
_MAX_BLOCKS = 8


def attend(
    q: Float[Array, "B K G R T D"],
    k: Float[Array, "B KG S D"],
    v: Float[Array, "B KG S D"],
    q_segments: Int[Array, "B G T"],
    k_segments: Int[Array, "B G S"],
    *,
    causal: bool,
    packed: bool = True,
    prefix_k: Float[Array, "B K P D"] | None = None,
    prefix_v: Float[Array, "B K P D"] | None = None,
    prefix_segments: Int[Array, "B P"] | None = None,
    engine: str = "xla",
) -> Float[Array, "B K G R T D"]:
    """Computes softmax attention; scores and softmax are in float32.

    Queries are divided by sqrt(D) in float32 and rounded to their dtype again before the product,
    as kernels need it, so that 16-bit rollouts and losses see the same scores with every engine.
    Only float32 without a kernel scales the scores instead.

    A query attends to the keys of its own branch that have its segment ID (if `causal`, only up to
    its own position; then T = S) and to all prefix keys that have its segment ID. For a row with
    segments `[a a b b 0]` and `causal`:

        a a b b 0
      a x . . . .
      a x x . . .
      b . . x . .
      b . . x x .
      0 . . . . x   (padding attends to padding; its output is unused)

    The XLA implementation reads the prefix keys once for all G·R·T queries, as one matrix product.
    It splits causal queries into a few blocks, each with the keys up to the block's end, so that
    most of the masked scores are not computed.

    Args:
      q: queries.
      k: keys of each branch.
      v: values of each branch.
      q_segments: segment IDs of the queries.
      k_segments: segment IDs of the keys.
      causal: whether a query is restricted to keys up to its own position.
      packed: whether a branch may hold several segments. If not, its IDs are ones, then zeros
        (padding), and the output of padding may be anything finite; kernels then need no mask.
      prefix_k: keys that all branches of a row share; None without a prefix.
      prefix_v: values of the prefix.
      prefix_segments: segment IDs of the prefix.
      engine: "xla", which runs on every backend, or a key of `flash.ENGINES`. Single queries, as
        in decoding, always use "xla", since their scores are small.
    """
    kernel, scale = engine != "xla" and q.shape[4] > 1, q.shape[-1] ** -0.5
    if kernel or q.dtype != jnp.float32:
        q, scale = (q.astype(jnp.float32) * scale).astype(q.dtype), 1.0
    if kernel:
        prefix = prefix_k, prefix_v, prefix_segments
        return _flash(engine, q, k, v, q_segments, k_segments, (causal, packed), prefix)
    T = q.shape[4]
    blocks = min(_MAX_BLOCKS, max(1, T // _MIN_BLOCK)) if causal else 1
    ends = [T * (i + 1) // blocks for i in range(blocks)]
    outs = []
    for start, end in zip([0, *ends[:-1]], ends, strict=True):
        seen = end if causal else k.shape[2]
        mask = q_segments[..., start:end, None] == k_segments[..., None, :seen]
        if causal:
            mask &= jnp.tril(jnp.ones((end - start, end), bool), start)
        prefix = None
        if prefix_k is not None:
            prefix_mask = q_segments[..., start:end, None] == prefix_segments[:, None, None, :]
            prefix = prefix_k, prefix_v, prefix_mask
        outs.append(
            _softmax(q[..., start:end, :], k[..., :seen, :], v[..., :seen, :], mask, prefix, scale)
        )
    return outs[0] if blocks == 1 else jnp.concatenate(outs, axis=4)


_einsum = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)


# The gradients of keys and values are computed as [D, S] and transposed. JAX's default is [S, D],
# for which XLA's CPU compiler reads the [T, S] scores column by column: five times slower.


@jax.custom_vjp
def _scores(q: Float[Array, "*B T D"], k: Float[Array, "*B S D"]) -> Float[Array, "*B T S"]:
    return _einsum("...td,...sd->...ts", q, k)


def _scores_backward(saved, g):
    q, k = saved
    to_q = _einsum("...ts,...sd->...td", g, k)
    to_k = _einsum("...td,...ts->...ds", q, g).mT
    return to_q.astype(q.dtype), to_k.astype(k.dtype)


_scores.defvjp(lambda q, k: (_scores(q, k), (q, k)), _scores_backward)


@jax.custom_vjp
def _mix(
    logits: Float[Array, "*B T S"], v: Float[Array, "*B S D"]
) -> tuple[Float[Array, "*B T D"], Float[Array, "*B T 1"]]:
    """Returns the sum of the values weighted by exp(logits), and of the weights, in float32."""
    return _mix_forward(logits, v)[0]


def _mix_forward(logits, v):
    weights = jnp.exp(logits)
    out = _einsum("...ts,...sd->...td", weights.astype(v.dtype), v)
    return (out, weights.sum(axis=-1, keepdims=True)), (weights, v)  # the weights are saved once


def _mix_backward(saved, gradients):
    weights, v = saved
    # The sum of the weights equals their product with a column of ones; appending that column to
    # the values gives both gradients in one matrix product.
    v_and_ones = jnp.concatenate([v, jnp.ones_like(v[..., :1])], axis=-1)
    to_weights = _einsum("...td,...sd->...ts", jnp.concatenate(gradients, axis=-1), v_and_ones)
    to_v = _einsum("...td,...ts->...ds", gradients[0], weights.astype(v.dtype)).mT
    return to_weights * weights, to_v.astype(v.dtype)


_mix.defvjp(_mix_forward, _mix_backward)


def _softmax(
    q: Float[Array, "B K G R T D"],
    k: Float[Array, "B KG S D"],
    v: Float[Array, "B KG S D"],
    mask: Bool[Array, "B G T S"],
    prefix: tuple[Float[Array, "B K P D"], Float[Array, "B K P D"], Bool[Array, "B G T P"]] | None,
    scale: float,
) -> Float[Array, "B K G R T D"]:
    """Computes attention with one softmax over own keys and prefix keys together.

    Batch axes come first and heads are merged into rows, which gives plain batched matrix products;
    the CPU runs these several times faster than the same einsum over five axes. The softmax's
    division is applied last, on [T, D] instead of [T, S], which makes its gradient cheaper too.
    """
    B, K, G, R, T, D = q.shape
    own, shared = (B, K * G, R * T, D), (B, K, G * R * T, D)

    def scores(queries, keys, mask):
        logits = _scores(queries, keys)
        logits = logits.reshape(B, K, G, R, T, -1) * scale
        return jnp.where(mask[:, None, :, None], logits, _MASKED)

    def mix(logits, values, shape):
        out, total = _mix((logits - largest).reshape(*shape[:-1], -1), values)
        return out.reshape(q.shape), total.reshape(*q.shape[:-1], 1)

    logits = scores(q.reshape(own), k, mask)
    largest = logits.max(axis=-1, keepdims=True)
    if prefix is not None:
        prefix_k, prefix_v, prefix_mask = prefix
        prefix_logits = scores(q.reshape(shared), prefix_k, prefix_mask)
        largest = jnp.maximum(largest, prefix_logits.max(axis=-1, keepdims=True))
    largest = jax.lax.stop_gradient(largest)

    out, total = mix(logits, v, own)
    if prefix is not None:
        prefix_out, prefix_total = mix(prefix_logits, prefix_v, shared)
        out, total = out + prefix_out, total + prefix_total
    return (out / total).astype(q.dtype)


def _flash(engine, q, k, v, q_segments, k_segments, kind, prefix) -> Float[Array, "B K G R T D"]:
    """Computes `attend` with a kernel of `flash.ENGINES`."""
    B, K, G, R, T, D = q.shape
    S = k.shape[2]
    prefix_k, prefix_v, prefix_segments = prefix
    if G > 1 and (prefix_k is None or engine not in flash.SKIP_MASKED):
        # Branches become rows, each with the prefix if there is one: a kernel that skips nothing
        # would compute the scores between branches only to mask them.
        def rows(x):
            return x.reshape(B, K, G, S, D).swapaxes(1, 2).reshape(B * G, K, S, D)

        queries = q.swapaxes(1, 2).reshape(B * G, K, 1, R, T, D)
        segments = q_segments.reshape(B * G, 1, T), k_segments.reshape(B * G, 1, S)
        repeated = [None if x is None else jnp.repeat(x, G, axis=0) for x in prefix]
        out = _flash(engine, queries, rows(k), rows(v), *segments, kind, repeated)
        return out.reshape(B, G, K, R, T, D).swapaxes(1, 2)
    q_segments, k_segments = q_segments.reshape(B, G * T), k_segments.reshape(B, G * S)
    k, v = (x.reshape(B, K, G * S, D) for x in (k, v))
    if prefix_k is not None:
        k = jnp.concatenate([prefix_k.astype(k.dtype), k], axis=2)
        v = jnp.concatenate([prefix_v.astype(v.dtype), v], axis=2)
        k_segments = jnp.concatenate([prefix_segments, k_segments], axis=1)
    pattern = flash.Pattern(G, T, S, k.shape[2] - G * S, *kind)
    q = q.transpose(0, 1, 3, 2, 4, 5).reshape(B, K, R, G * T, D)
    out = _on_devices(engine, pattern, q, k, v, q_segments, k_segments)
    return out.reshape(B, K, R, G, T, D).transpose(0, 1, 3, 2, 4, 5)


def _on_devices(engine, pattern, q, k, v, q_segments, k_segments) -> Float[Array, "B K R T D"]:
    """Calls the kernel under `shard_map`, on each device's rows and heads.

    The compiler can't partition the kernel itself.
    """
    B, K, R, T, D = q.shape

    def run(q, k, v, q_segments, k_segments):
        flat = q.reshape(q.shape[0], -1, T, D)
        out = flash.ENGINES[engine](flat, k, v, q_segments, k_segments, pattern)
        return out.reshape(q.shape)

    mesh = jax.sharding.get_abstract_mesh()
    free = {n: s for n, s in mesh.shape.items() if n not in mesh.manual_axes}
    if free:
        layout = functools.partial(spec, sizes=free, rules=GATHERED)
        heads = layout(("rows", "heads"), (B, K))
        rows = PartitionSpec(heads[0])
        run = jax.shard_map(
            run,
            in_specs=(heads, heads, heads, rows, rows),
            out_specs=heads,
            axis_names=set(free),
            check_vma=False,
        )
    return run(q, k, v, q_segments, k_segments)
