"""The arrays that travel between host and device, and between sampling and training.

Axes: B rows, S image slots a row, P patches a slot, T text tokens, G completions a prompt,
L completion tokens, K key/value heads, R query heads a key/value head, D head size.
"""

from typing import NamedTuple

from jaxtyping import Array, Bool, Float, Int, UInt8


class Images(NamedTuple):
    """The images of each row, one a slot; a slot may be empty."""

    patches: UInt8[Array, "B S P 588"]  # one frame of 3×14×14 pixels, in 2×2 merge-block order
    positions: Int[Array, "B S P 2"]  # (row, column) in the image's patch grid; -1 is padding


class Text(NamedTuple):
    """Token rows; each may hold several packed examples."""

    tokens: Int[Array, "B T"]
    positions: Int[Array, "B T 3"]  # M-RoPE: time, height, width
    segments: Int[Array, "B T"]  # 1, 2, … number the examples of a row; 0 is padding
    visual_index: Int[Array, "B T"]  # which of the row's S·P/4 visual tokens; -1 for text


class KeyValues(NamedTuple):
    """Keys and values of all layers, for tokens that later tokens look back on."""

    keys: Float[Array, "layers B K T D"]
    values: Float[Array, "layers B K T D"]
    segments: Int[Array, "B T"]


class Rollout(NamedTuple):
    """Sampled completions of each prompt. The mask covers the stop token, nothing after it."""

    tokens: Int[Array, "B G L"]
    mask: Bool[Array, "B G L"]
    logprobs: Float[Array, "B G L"]
