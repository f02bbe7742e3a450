"""Array types passed between host and device, and between sampling and training.

Axes: B rows, S image slots per row, P patches per slot, T text tokens, G completions per prompt,
L completion tokens, K key/value heads, R query heads per key/value head, D head size.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt8


class Images(NamedTuple):
    """Images of each row, one per slot; a slot may be empty."""

    # One frame of each patch, 3×14×14 pixels (3×16×16), in 2×2 merge-block order.
    patches: UInt8[Array, "B S P bytes"]
    positions: Int[Array, "B S P 2"]  # (row, column) in the image's patch grid; -1 is padding


class Text(NamedTuple):
    """Token sequences; each row may hold several packed examples."""

    tokens: Int[Array, "B T"]
    positions: Int[Array, "B T 3"]  # M-RoPE: time, height, width
    segments: Int[Array, "B T"]  # segment IDs: 1, 2, … for a row's examples; 0 is padding
    visual_index: Int[Array, "B T"]  # index into the row's S·P/4 visual tokens; -1 for text


# Metrics of a step by name, on the host.
Scalars = dict[str, float | np.generic | np.ndarray]


class KeyValues(NamedTuple):
    """Keys and values of all layers for a prompt that later tokens attend to.

    The layers are stacked for a scan over them, or separate for decoding.
    """

    keys: Float[Array, "layers B K T D"] | tuple[Float[Array, "B K T D"], ...]
    values: Float[Array, "layers B K T D"] | tuple[Float[Array, "B K T D"], ...]
    segments: Int[Array, "B T"]


class Rollout(NamedTuple):
    """Sampled completions of each prompt; the mask includes the stop token and nothing after it."""

    tokens: Int[Array, "B G L"]
    mask: Bool[Array, "B G L"]
    logprobs: Float[Array, "B G L"]
