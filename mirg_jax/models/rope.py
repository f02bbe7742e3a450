"""Rotary position embeddings: three-axis for text and images (M-RoPE), two-axis for patches."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int


def mrope_angles(
    positions: Int[Array, "*B T 3"], section: tuple[int, int, int], theta: float
) -> Float[Array, "*B T half"]:
    """Rotation angles of M-RoPE (Qwen2-VL, arXiv 2409.12191, section 2.1).

    Frequency i turns by the time, height or width position, whichever section i falls in.

    Args:
      positions: (time, height, width) of each token; all equal for text.
      section: how many frequencies each of the three axes gets; they add up to `half`.
      theta: base of the frequencies.
    """
    half = sum(section)
    frequencies = theta ** (-np.arange(half, dtype=np.float64) / half)
    axis = np.repeat(np.arange(3), section)
    return positions[..., axis].astype(jnp.float32) * jnp.asarray(frequencies, jnp.float32)


def patch_angles(
    positions: Int[Array, "*B P 2"], head_dim: int, theta: float = 10000.0
) -> Float[Array, "*B P half"]:
    """Rotation angles of patches: the first half of the frequencies turns by row, then column."""
    quarter = head_dim // 4
    frequencies = theta ** (-np.arange(quarter, dtype=np.float64) / quarter)
    angles = positions[..., None].astype(jnp.float32) * jnp.asarray(frequencies, jnp.float32)
    return angles.reshape(*positions.shape[:-1], 2 * quarter)


def rotate(
    x: Float[Array, "*B T H D"], angles: Float[Array, "*B T half"]
) -> Float[Array, "*B T H D"]:
    """Turns each pair (x[i], x[i + D/2]) by its angle; in float32, returned in x's dtype."""
    cos, sin = jnp.cos(angles)[..., None, :], jnp.sin(angles)[..., None, :]
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return turned.astype(x.dtype)
