"""Operations of a step by formula: a multiplication and an addition count as two.

The compiler's own count takes a scanned layer once and no hand-written kernel.
"""

from mirg_jax.models.config import ModelConfig


def decoder_matrices(config: ModelConfig) -> int:
    """Elements of all matrices that every token is multiplied with, the head not among them."""
    text = config.text
    width, kv = text.hidden_size, text.num_kv_heads * text.head_dim
    layer = 2 * width * width + 2 * width * kv + 3 * width * text.intermediate_size
    return text.num_layers * layer


def head_matrix(config: ModelConfig) -> int:
    return config.text.hidden_size * config.text.vocab_size


def tower(config: ModelConfig, images: int, patches: int) -> float:
    """The vision tower's forward pass over full images."""
    vision = config.vision
    width = vision.embed_dim
    mlp = 3 * vision.mlp_dim if vision.window else 2 * vision.mlp_ratio * width
    block = (4 * width + mlp) * width
    merged = width * vision.merge_size**2
    merger = (merged * merged + merged * vision.out_dim) / vision.merge_size**2
    embed = 3 * vision.patch_size**2 * width
    products = 2.0 * patches * (vision.depth * block + merger + embed)
    whole = len(vision.full_blocks) if vision.window else vision.depth
    pairs = patches * (whole * patches + (vision.depth - whole) * min(vision.window**2, patches))
    return images * (products + 4.0 * width * pairs)


def decoder(config: ModelConfig, tokens: int, pairs: float, labels: int) -> float:
    """The decoder's forward pass.

    Args:
      tokens: that go through the layers.
      pairs: of a query and a key it sees.
      labels: tokens whose logits are computed.
    """
    text = config.text
    products = 2.0 * tokens * decoder_matrices(config) + 2.0 * labels * head_matrix(config)
    return products + 4.0 * text.num_layers * text.hidden_size * pairs


def causal(tokens: int) -> float:
    """Pairs of a query and a key among `tokens`, each seeing those up to itself."""
    return tokens * (tokens + 1) / 2
