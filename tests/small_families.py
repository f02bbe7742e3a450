"""A small model of each family, for tests that are the same for all of them."""

from mirg_jax.models.config import ModelConfig, TextConfig, VisionConfig

TOWERS = {
    "qwen2_vl": VisionConfig(2, 32, 4, 2, 32),
    "qwen2_5_vl": VisionConfig(
        2, 32, 4, out_dim=32, mlp_dim=48, window_size=28, full_blocks=(1,)
    ),
    "qwen3_vl": VisionConfig(
        3, 32, 4, out_dim=32, mlp_dim=48, patch_size=16, position_side=5, deepstack=(0, 2)
    ),
}  # fmt: skip
LATER = tuple(TOWERS)[1:]  # where the first family has tests of its own
# Heads that are wider than their share of the width.
DECODERS = {
    "qwen3_vl": {
        "mrope_section": (4, 2, 2), "mrope_interleaved": True, "head_size": 16,
        "qkv_bias": False, "qk_norm": True,
    },
}  # fmt: skip


def config(family: str, vocab: int, *, layers: int = 2, tied: bool = False) -> ModelConfig:
    """The family's model, of four heads with two keys and values."""
    flags = {"mrope_section": (1, 1, 2)} | DECODERS.get(family, {})
    text = TextConfig(vocab, 32, 64, layers, 4, 2, tie_word_embeddings=tied, **flags)
    model = ModelConfig(text, TOWERS[family])
    assert model.model_type == family
    return model


def patch_bytes(model: ModelConfig) -> int:
    return 3 * model.vision.patch_size**2
