"""Floating-point operations of a step by formula; a multiply-add counts as two.

The compiler's own count includes a scanned layer only once, and omits custom kernels.
"""

from collections.abc import Sequence
from typing import NamedTuple

from mirg_jax.models.config import ModelConfig


def decoder_matrices(config: ModelConfig) -> int:
    """Returns the number of elements of the decoder's matrices, without the output head."""
    text = config.text
    width = text.hidden_size
    queries, kv = (count * text.head_dim for count in (text.num_heads, text.num_kv_heads))
    layer = 2 * width * queries + 2 * width * kv + 3 * width * text.intermediate_size
    return text.num_layers * layer


def head_matrix(config: ModelConfig) -> int:
    """Returns the number of elements of the output head."""
    return config.text.hidden_size * config.text.vocab_size


def tower(config: ModelConfig, images: int, patches: int) -> float:
    """Returns the operations of the vision tower's forward pass.

    Args:
      config: the model's configuration.
      images: number of images.
      patches: patches per image, without padding.
    """
    vision = config.vision
    width = vision.embed_dim
    mlp = (3 if vision.window else 2) * vision.mlp_width
    block = (4 * width + mlp) * width
    merged = width * vision.merge_size**2
    merger = (merged * merged + merged * vision.out_dim) / vision.merge_size**2
    merger *= 1 + len(vision.deepstack)
    embed = 3 * vision.patch_size**2 * width
    products = 2.0 * patches * (vision.depth * block + merger + embed)
    whole = len(vision.full_blocks) if vision.window else vision.depth
    pairs = patches * (whole * patches + (vision.depth - whole) * min(vision.window**2, patches))
    return images * (products + 4.0 * width * pairs)


def decoder(config: ModelConfig, tokens: int, pairs: float, labels: int) -> float:
    """Returns the operations of the decoder's forward pass.

    Args:
      config: the model's configuration.
      tokens: number of tokens that pass through the layers.
      pairs: number of pairs of a query and a key that it attends to.
      labels: number of tokens whose logits are computed.
    """
    text = config.text
    products = 2.0 * tokens * decoder_matrices(config) + 2.0 * labels * head_matrix(config)
    return products + 4.0 * text.num_layers * text.num_heads * text.head_dim * pairs


def causal(tokens: int) -> float:
    """Returns the number of query-key pairs of causal attention over `tokens` tokens."""
    return tokens * (tokens + 1) / 2


class Forward(NamedTuple):
    """Operations of a forward pass over some examples, by part of the model."""

    decoder: float
    tower: float


def forward(config: ModelConfig, tokens: Sequence[int], patches: Sequence[int]) -> Forward:
    """Returns the operations of the forward pass of examples.

    Args:
      config: the model's configuration.
      tokens: tokens of each example; logits are computed of all.
      patches: patches of each of their images.
    """
    pairs = sum(map(causal, tokens))
    return Forward(
        decoder(config, sum(tokens), pairs, sum(tokens)),
        sum(tower(config, 1, count) for count in patches),
    )
