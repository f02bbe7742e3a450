"""Attention within square windows of an image, used in most blocks of Qwen2.5-VL's vision tower.

Patches are sorted by window, so that a window is a contiguous run of at most `size` patches (fewer
at the image's edges). The sequence is cut into pieces of that length. A window then lies within one
piece or two adjacent ones, so queries of a piece need the keys of three pieces only, whatever the
image's shape and size.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from mirg_jax.models.attention import attend

PIECES = 3  # pieces of keys per piece of queries: the previous one, its own, the next one


def numbers(positions: Int[Array, "*B P 2"], side: int) -> Int[Array, "*B P"]:
    """Returns each patch's window index; windows are numbered row by row.

    Args:
      positions: (row, column) of patches; -1 is padding.
      side: patches along a window's side.

    Returns:
      Window indices; padding has the largest int32, so that it sorts last.
    """
    row, column = positions[..., 0], positions[..., 1]
    number = row // side * positions.shape[-2] + column // side
    return jnp.where(row >= 0, number, jnp.iinfo(jnp.int32).max)


def order(windows: Int[Array, "*B P"]) -> tuple[Int[Array, "*B P"], Int[Array, "*B P"]]:
    """Returns the permutation that sorts patches by window (stable, padding last) and its inverse.

    Args:
      windows: window indices from `numbers`.
    """
    there = jnp.argsort(windows, axis=-1, stable=True)
    return there, jnp.argsort(there, axis=-1)


def attend_within(
    q: Float[Array, "B K S P D"],
    k: Float[Array, "B K S P D"],
    v: Float[Array, "B K S P D"],
    windows: Int[Array, "B S P"],
    size: int,
) -> Float[Array, "B K S P D"]:
    """Computes softmax attention of each patch to the patches of its window.

    Args:
      q: queries, with patches sorted by window.
      k: keys, in the same order.
      v: values, in the same order.
      windows: window indices, in the same order.
      size: patches in a full window.
    """
    B, K, S, P, D = q.shape
    length = min(size, P)
    pieces = -(-P // length)
    padding = pieces * length - P

    def cut(x, axis, value=0):
        """Splits the patch axis into two axes: pieces and patches within a piece."""
        widths = [(0, padding if i == axis else 0) for i in range(x.ndim)]
        x = jnp.pad(x, widths, constant_values=value)
        return x.reshape(*x.shape[:axis], pieces, length, *x.shape[axis + 1 :])

    def around(x, axis, value=0):
        """Concatenates each piece with the pieces before and after it."""
        if pieces == 1:
            return x
        widths = [(1, 1) if i == axis else (0, 0) for i in range(x.ndim)]
        x = jnp.pad(x, widths, constant_values=value)
        parts = [jax.lax.slice_in_dim(x, i, i + pieces, axis=axis) for i in range(PIECES)]
        return jnp.concatenate(parts, axis=axis + 1)

    own = cut(windows, 2, -1)
    q, k, v = cut(q, 3), around(cut(k, 3), 3), around(cut(v, 3), 3)
    k, v = (x.reshape(B, -1, x.shape[-2], D) for x in (k, v))
    out = attend(
        q.reshape(B, K, S * pieces, 1, length, D),
        k,
        v,
        own.reshape(B, S * pieces, length),
        around(own, 2, -1).reshape(B, S * pieces, -1),
        causal=False,
    )
    return out.reshape(B, K, S, -1, D)[:, :, :, :P]
