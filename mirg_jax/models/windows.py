"""Attention within square windows of an image: Qwen2.5-VL's tower has it in most of its blocks.

Patches are put in the order of their windows, so that a window is a run of at most `size` patches
(fewer where the image ends). Cut into pieces of that length, a window lies in one piece or two
neighbours: queries of a piece look at three pieces of keys, whatever the image's shape and size.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from mirg_jax.models.attention import attend

PIECES = 3  # of keys that a piece of queries looks at: the one before, its own, the one behind


def numbers(positions: Int[Array, "*B P 2"], side: int) -> Int[Array, "*B P"]:
    """Each patch's window, numbered in reading order; the largest integer for padding.

    Args:
      positions: (row, column) of patches; -1 is padding.
      side: patches along a window's side.
    """
    row, column = positions[..., 0], positions[..., 1]
    number = row // side * positions.shape[-2] + column // side
    return jnp.where(row >= 0, number, jnp.iinfo(jnp.int32).max)


def order(windows: Int[Array, "*B P"]) -> tuple[Int[Array, "*B P"], Int[Array, "*B P"]]:
    """The patches window by window, else as they were, padding last; and the way back.

    `x[order]` is sorted, `sorted[back]` is x.
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
    """Softmax attention of each patch to those of its window, patches in the order of windows.

    Args:
      size: patches of a whole window.
    """
    B, K, S, P, D = q.shape
    length = min(size, P)
    pieces = -(-P // length)
    padding = pieces * length - P

    def cut(x, axis, value=0):
        """Pieces along two axes in place of patches."""
        widths = [(0, padding if i == axis else 0) for i in range(x.ndim)]
        x = jnp.pad(x, widths, constant_values=value)
        return x.reshape(*x.shape[:axis], pieces, length, *x.shape[axis + 1 :])

    def around(x, axis, value=0):
        """With each piece, those beside it."""
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
