"""Flash attention, which never stores the full score matrix: splash on TPU, cuDNN on GPU.

Both engines take scaled queries [B, N, T, D] with N = K·R heads, keys and values [B, K, S, D],
segment IDs and a static mask (`Pattern`). A query attends to the keys that the mask allows and that
have its segment ID.
"""

import contextlib
import dataclasses
from collections.abc import Iterator
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from jax._src.cudnn import fused_attention_stablehlo as cudnn
from jax.experimental.pallas.ops.tpu import splash_attention as splash
from jaxtyping import Array, Bool, Float, Int

# Splash's tile sizes in tokens, largest preferred; lengths are padded to multiples of the last.
_BLOCKS = (512, 256, 128)
# Splash can compute all gradients in one kernel, with 5 matrix products a block instead of 7. Then
# it writes the queries' gradient once for each block of keys, which may take this much.
_MAX_PARTIAL_BYTES = 1 << 29


@dataclasses.dataclass(frozen=True)
class Pattern(splash.Mask):
    """Static attention mask: branches that each attend to themselves and to a shared prefix.

    For two branches (a, b) of three tokens each, a prefix (p) of two tokens and `causal`, x marks
    what a query (row) attends to:

          p p a a a b b b
        a x x x . . . . .
        a x x x x . . . .
        a x x x x x . . .
        b x x . . . x . .
        b x x . . . x x .
        b x x . . . x x x

    Attributes:
      branches: number of branches.
      queries: queries per branch.
      keys: keys per branch.
      prefix: number of prefix keys, which come first.
      causal: whether own keys after the query are masked (then queries = keys).
      packed: whether segments may be anything; otherwise they are ones, then zeros (padding), and
        what padding attends to doesn't matter.
      padding: numbers of padding queries and padding keys at the end.
    """

    branches: int
    queries: int
    keys: int
    prefix: int
    causal: bool
    packed: bool = True
    padding: tuple[int, int] = (0, 0)

    @property
    def shape(self) -> tuple[int, int]:
        """Numbers of all queries and of all keys, including padding."""
        queries = self.branches * self.queries + self.padding[0]
        return queries, self.prefix + self.branches * self.keys + self.padding[1]

    def seen(self, query, key):
        """Returns whether queries attend to keys, given their indices (arrays that broadcast)."""
        own = key - self.prefix
        seen = (query // self.queries == own // self.keys) & (own < self.branches * self.keys)
        if self.causal:
            seen &= own % self.keys <= query % self.queries
        # Padding queries attend to everything: a fully masked row would divide by zero.
        return seen | (own < 0) | (query >= self.branches * self.queries)

    def __getitem__(self, index: tuple[slice, slice]) -> Bool[np.ndarray, "queries keys"]:
        rows, columns = (
            np.arange(*part.indices(size)) for part, size in zip(index, self.shape, strict=True)
        )
        return self.seen(rows[:, None], columns[None, :])


def splash_attention(
    q: Float[Array, "B N T D"],
    k: Float[Array, "B K S D"],
    v: Float[Array, "B K S D"],
    q_segments: Int[Array, "B T"],
    k_segments: Int[Array, "B S"],
    pattern: Pattern,
    *,
    interpret: bool = False,
) -> Float[Array, "B N T D"]:
    """Computes attention with Pallas' splash kernel on TPU, which skips fully masked blocks.

    Args:
      q: queries, divided by sqrt(D).
      k: keys.
      v: values.
      q_segments: segment IDs of the queries.
      k_segments: segment IDs of the keys.
      pattern: the static mask.
      interpret: whether to run the kernel in Pallas' interpreter, on any backend, for tests.
    """
    B, N, T, D = q.shape
    K, S = k.shape[1:3]
    pad_q, pad_k = -T % _BLOCKS[-1], -S % _BLOCKS[-1]
    pattern = dataclasses.replace(pattern, padding=(pad_q, pad_k))
    block_q = next(b for b in _BLOCKS if (T + pad_q) % b == 0)
    block_k = next(b for b in _BLOCKS if (S + pad_k) % b == 0)
    backward = {"block_kv_dkv": block_k, "block_q_dq": block_q, "block_kv_dq": block_k}
    wide = 2 * block_k if (S + pad_k) % (2 * block_k) == 0 else block_k
    if (S + pad_k) // wide * q.size * q.dtype.itemsize <= _MAX_PARTIAL_BYTES:
        backward = {"block_kv_dkv": wide, "use_fused_bwd_kernel": True}
    sizes = splash.BlockSizes(block_q=block_q, block_kv=block_k, block_q_dkv=block_q, **backward)
    kernel = splash.make_splash_mqa_single_device(
        splash.MultiHeadMask([pattern] * (N // K)), block_sizes=sizes, interpret=interpret
    )

    def pad(x, length, axis, value=0):
        widths = [(0, length if i == axis else 0) for i in range(x.ndim)]
        return jnp.pad(x, widths, constant_values=value)

    segments = splash.SegmentIds(pad(q_segments, pad_q, 1, -1), pad(k_segments, pad_k, 1, -1))
    q = pad(q, pad_q, 2).reshape(B, K, N // K, T + pad_q, D)
    heads = jax.vmap(kernel, in_axes=(0, 0, 0, None))  # over the key/value heads
    out = jax.vmap(heads)(q, pad(k, pad_k, 2), pad(v, pad_k, 2), segments)
    return out.reshape(B, N, T + pad_q, D)[:, :, :T].astype(v.dtype)


def dense_mask(
    pattern: Pattern, q_segments: Int[Array, "B T"], k_segments: Int[Array, "B S"]
) -> Bool[Array, "B T S"]:
    """Returns which keys each query attends to, by pattern and segments."""
    rows, columns = (jnp.arange(size) for size in pattern.shape)
    seen = pattern.seen(rows[:, None], columns[None, :])
    return seen & (q_segments[:, :, None] == k_segments[:, None, :])


def cudnn_attention(
    q: Float[Array, "B N T D"],
    k: Float[Array, "B K S D"],
    v: Float[Array, "B K S D"],
    q_segments: Int[Array, "B T"],
    k_segments: Int[Array, "B S"],
    pattern: Pattern,
    *,
    implementation: str = "cudnn",
) -> Float[Array, "B N T D"]:
    """Computes attention with cuDNN's fused kernel on GPU.

    What causality and lengths say is told to the kernel by a flag and by lengths, so that it skips
    those keys. The rest of pattern and segment IDs is one dense boolean mask [B, T, S].

    Args:
      q: queries, divided by sqrt(D).
      k: keys.
      v: values.
      q_segments: segment IDs of the queries.
      k_segments: segment IDs of the keys.
      pattern: the static mask.
      implementation: of `jax.nn.dot_product_attention`; "xla" runs on any backend, for tests.
    """
    given = {"is_causal": False, "scale": 1.0}
    if pattern.branches == 1 and not pattern.prefix:
        given["is_causal"] = pattern.causal
    if pattern.packed or pattern.branches > 1 or pattern.prefix:
        given["mask"] = dense_mask(pattern, q_segments, k_segments)[:, None]
    else:
        # A row of padding alone counts as one token: a softmax over no keys is NaN.
        for name, segments in (("query", q_segments), ("key_value", k_segments)):
            lengths = jnp.maximum((segments > 0).sum(axis=1, dtype=jnp.int32), 1)
            given[f"{name}_seq_lengths"] = lengths
    q, k, v = (x.transpose(0, 2, 1, 3) for x in (q, k, v))
    with _no_gradient_of_the_mask():
        out = jax.nn.dot_product_attention(q, k, v, implementation=implementation, **given)
    return out.transpose(0, 2, 1, 3)


@contextlib.contextmanager
def _no_gradient_of_the_mask() -> Iterator[None]:
    """Keeps cuDNN from computing the gradient of a mask, which JAX hands it as a bias.

    JAX asks for it even where the mask is boolean: as many bytes as the scores of a head.
    """
    name = "should_export_dbias"
    if not hasattr(cudnn, name):  # a later JAX, which may have stopped asking
        yield
        return
    with mock.patch.object(cudnn, name, lambda *_: False):
        yield


ENGINES = {"splash": splash_attention, "cudnn": cudnn_attention}
SKIP_MASKED = ("splash",)  # engines that skip blocks of scores that a pattern masks
