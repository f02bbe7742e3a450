"""Rotary position embeddings: three-axis for the decoder (M-RoPE), two-axis for image patches."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int


def mrope_angles(
    positions: Int[Array, "*B T 3"],
    section: tuple[int, int, int],
    theta: float,
    *,
    interleaved: bool = False,
) -> Float[Array, "*B T half"]:
    """Computes the rotation angles of M-RoPE (Qwen2-VL, arXiv 2409.12191, section 2.1).

    Each frequency is multiplied by the time, height or width position, depending on the section
    that it belongs to.

    Args:
      positions: (time, height, width) of each token; all equal for text.
      section: number of frequencies of each of the three axes; their sum is `half`.
      theta: base of the frequencies.
      interleaved: whether the axes take turns, as in Qwen3-VL: time, height, width, time, …; time
        has what remains when the others have theirs. Otherwise each has a run of frequencies.
    """
    half = sum(section)
    frequencies = theta ** (-np.arange(half, dtype=np.float64) / half)
    axis = np.repeat(np.arange(3), section)
    if interleaved:
        axis = np.zeros(half, int)
        for which in (1, 2):
            axis[which : 3 * section[which] : 3] = which
    return positions[..., axis].astype(jnp.float32) * jnp.asarray(frequencies, jnp.float32)


def patch_angles(
    positions: Int[Array, "*B P 2"], head_dim: int, theta: float = 10000.0
) -> Float[Array, "*B P half"]:
    """Computes the rotation angles of image patches.

    The first half of the angles depends on a patch's row, the second half on its column.

    Args:
      positions: (row, column) of each patch.
      head_dim: head size.
      theta: base of the frequencies.
    """
    quarter = head_dim // 4
    frequencies = theta ** (-np.arange(quarter, dtype=np.float64) / quarter)
    angles = positions[..., None].astype(jnp.float32) * jnp.asarray(frequencies, jnp.float32)
    return angles.reshape(*positions.shape[:-1], 2 * quarter)


def rotate(
    x: Float[Array, "*B T H D"], angles: Float[Array, "*B T half"]
) -> Float[Array, "*B T H D"]:
    """Rotates each pair (x[i], x[i + D/2]) by its angle, in float32; returns x's dtype."""
    cos, sin = jnp.cos(angles)[..., None, :], jnp.sin(angles)[..., None, :]
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    rotated = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return rotated.astype(x.dtype)
