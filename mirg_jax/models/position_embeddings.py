"""Learned position embeddings of image patches, interpolated to each image's grid (Qwen3-VL)."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def interpolate(
    table: Float[Array, "positions E"], where: Int[Array, "*B P 2"], side: int
) -> Float[Array, "*B P E"]:
    """Returns the embedding of each patch, in float32.

    The corners of the table's grid lie on the corners of the image's, whatever its shape; between
    the table's places, the embedding is bilinear.

    Args:
      table: embeddings of a square grid, row by row.
      where: (row, column) of the patches of each image; -1 is padding.
      side: rows and columns of the table's grid.
    """
    last = jnp.maximum(where.max(axis=-2, keepdims=True), 1)
    at = jnp.maximum(where, 0).astype(jnp.float32) * (side - 1) / last
    low = jnp.floor(at).astype(jnp.int32)
    share = at - low  # of the next place
    row, column = (_two(low[..., i], share[..., i], side) for i in range(2))
    total = jnp.zeros((), jnp.float32)
    for index, weight in row:
        for other, other_weight in column:
            taken = table[index * side + other].astype(jnp.float32)
            total += (weight * other_weight)[..., None] * taken
    return total


def _two(low: jax.Array, share: jax.Array, side: int) -> tuple[tuple[jax.Array, jax.Array], ...]:
    """Returns the two places around a coordinate, each with its weight."""
    return (low, 1 - share), (jnp.minimum(low + 1, side - 1), share)
