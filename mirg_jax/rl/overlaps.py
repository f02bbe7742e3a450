"""Measures of how well two boxes agree, on arrays of boxes x1, y1, x2, y2."""

import jax.numpy as jnp
from jaxtyping import Array, Float


def iou(a: Float[Array, "*#B 4"], b: Float[Array, "*#B 4"]) -> Float[Array, "*B"]:
    """Computes the intersection over union of boxes x1, y1, x2, y2.

    It is 0 if either box is empty or inverted.
    """
    size_a = jnp.maximum(a[..., 2:] - a[..., :2], 0)
    size_b = jnp.maximum(b[..., 2:] - b[..., :2], 0)
    overlap = jnp.minimum(a[..., 2:], b[..., 2:]) - jnp.maximum(a[..., :2], b[..., :2])
    shared = jnp.where((overlap > 0).all(-1), overlap.prod(-1), 0)
    union = size_a.prod(-1) + size_b.prod(-1) - shared
    return jnp.where(shared > 0, shared / jnp.where(union > 0, union, 1), 0)


def giou(a: Float[Array, "*#B 4"], b: Float[Array, "*#B 4"]) -> Float[Array, "*B"]:
    """Computes (1 + GIoU) / 2, from 0 to 1, with GIoU = IoU − |C \\ U| / |C| (arXiv 1902.09630).

    C is the smallest box around both and U their union. It is 0 if either box is empty or inverted.
    """
    size_a, size_b = _size(a), _size(b)
    overlap = jnp.minimum(a[..., 2:], b[..., 2:]) - jnp.maximum(a[..., :2], b[..., :2])
    shared = jnp.maximum(overlap, 0).prod(-1)
    union = size_a.prod(-1) + size_b.prod(-1) - shared
    around = _around(a, b).prod(-1)
    whole = _are_boxes(size_a, size_b)
    around, union = jnp.where(whole, around, 1), jnp.where(whole, union, 1)
    value = shared / union - (around - union) / around
    return jnp.where(whole, jnp.clip((1 + value) / 2, 0, 1), 0)


def ciou(a: Float[Array, "*#B 4"], b: Float[Array, "*#B 4"]) -> Float[Array, "*B"]:
    """Computes (1 + CIoU) / 2, at least 0, with CIoU = IoU − ρ² / c² − α v (arXiv 1911.08287).

    ρ is the distance of the centres, c the diagonal of the smallest box around both, v the
    difference of the aspect ratios, 4/π² (arctan w/h − arctan w'/h')², and α = v / (1 − IoU + v).
    It is 0 if either box is empty or inverted.
    """
    size_a, size_b = _size(a), _size(b)
    whole = _are_boxes(size_a, size_b)
    between = (a[..., :2] + a[..., 2:] - b[..., :2] - b[..., 2:]) / 2
    diagonal = jnp.where(whole, (_around(a, b) ** 2).sum(-1), 1)
    angles = jnp.arctan2(size_a[..., 0], size_a[..., 1]) - jnp.arctan2(
        size_b[..., 0], size_b[..., 1]
    )
    v, overlap = 4 / jnp.pi**2 * angles**2, iou(a, b)
    alpha = v / jnp.where(v > 0, 1 - overlap + v, 1)
    value = overlap - (between**2).sum(-1) / diagonal - alpha * v
    return jnp.where(whole, jnp.clip((1 + value) / 2, 0, 1), 0)


def bounded_iou(
    a: Float[Array, "*#B 4"], b: Float[Array, "*#B 4"], *, thresholds: tuple[float, float]
) -> Float[Array, "*B"]:
    """Computes the IoU, as 0 below the first threshold and as 1 from the second on.

    MG-Thinker (arXiv 2609.37374) has 0.1 and 0.9; two equal thresholds make hits of 0 or 1.
    """
    low, high = thresholds
    overlap = iou(a, b)
    return jnp.where(overlap >= high, 1.0, jnp.where(overlap < low, 0.0, overlap))


def _size(box: Array) -> Array:
    return jnp.maximum(box[..., 2:] - box[..., :2], 0)


def _are_boxes(size_a: Array, size_b: Array) -> Array:
    return (size_a > 0).all(-1) & (size_b > 0).all(-1)


def _around(a: Array, b: Array) -> Array:
    """Returns width and height of the smallest box around both."""
    return jnp.maximum(a[..., 2:], b[..., 2:]) - jnp.minimum(a[..., :2], b[..., :2])
