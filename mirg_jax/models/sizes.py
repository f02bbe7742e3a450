"""The sizes of the published models, as in their config.json, by their names on the hub."""

import dataclasses

from mirg_jax.models.config import QWEN3_TEXT, ModelConfig, TextConfig, VisionConfig

QWEN2_VL_2B = ModelConfig(
    text=TextConfig(
        vocab_size=151936,
        hidden_size=1536,
        intermediate_size=8960,
        num_heads=12,
        num_kv_heads=2,
        tie_word_embeddings=True,
    ),
    vision=VisionConfig(out_dim=1536),
)
QWEN2_VL_7B = ModelConfig()
QWEN2_VL_72B = ModelConfig(
    text=TextConfig(
        hidden_size=8192, intermediate_size=29568, num_layers=80, num_heads=64, num_kv_heads=8
    ),
    vision=VisionConfig(out_dim=8192),
)
_WINDOWED = VisionConfig(window_size=112, full_blocks=(7, 15, 23, 31), mlp_dim=3420)
QWEN2_5_VL_3B = ModelConfig(
    text=TextConfig(
        vocab_size=151936,
        hidden_size=2048,
        intermediate_size=11008,
        num_layers=36,
        num_heads=16,
        num_kv_heads=2,
        tie_word_embeddings=True,
    ),
    vision=dataclasses.replace(_WINDOWED, out_dim=2048),
)
QWEN2_5_VL_7B = ModelConfig(vision=_WINDOWED)


def _qwen3_vl(
    hidden: int, mlp: int, layers: int, heads: int, vision: VisionConfig, *, tied: bool
) -> ModelConfig:
    """Returns the configuration of a Qwen3-VL; all have eight key/value heads."""
    text = dataclasses.replace(
        QWEN3_TEXT,
        vocab_size=151936,
        hidden_size=hidden,
        intermediate_size=mlp,
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=8,
        rope_theta=5e6,
        tie_word_embeddings=tied,
    )
    return ModelConfig(text=text, vision=dataclasses.replace(vision, out_dim=hidden))


_DEEPSTACK = VisionConfig(
    depth=27, embed_dim=1152, mlp_dim=4304, patch_size=16, position_side=48, deepstack=(8, 16, 24)
)
_DEEPSTACK_SMALL = dataclasses.replace(
    _DEEPSTACK, depth=24, embed_dim=1024, mlp_dim=4096, deepstack=(5, 11, 17)
)
QWEN3_VL_2B = _qwen3_vl(2048, 6144, 28, 16, _DEEPSTACK_SMALL, tied=True)
QWEN3_VL_4B = _qwen3_vl(2560, 9728, 36, 32, _DEEPSTACK_SMALL, tied=True)
QWEN3_VL_8B = _qwen3_vl(4096, 12288, 36, 32, _DEEPSTACK, tied=False)
QWEN3_VL_32B = _qwen3_vl(5120, 25600, 64, 64, _DEEPSTACK, tied=False)
PUBLISHED = {
    "Qwen/Qwen2-VL-2B-Instruct": QWEN2_VL_2B,
    "Qwen/Qwen2-VL-7B-Instruct": QWEN2_VL_7B,
    "Qwen/Qwen2-VL-72B-Instruct": QWEN2_VL_72B,
    "Qwen/Qwen2.5-VL-3B-Instruct": QWEN2_5_VL_3B,
    "Qwen/Qwen2.5-VL-7B-Instruct": QWEN2_5_VL_7B,
}
for _size, _config in {
    "2B": QWEN3_VL_2B,
    "4B": QWEN3_VL_4B,
    "8B": QWEN3_VL_8B,
    "32B": QWEN3_VL_32B,
}.items():
    PUBLISHED[f"Qwen/Qwen3-VL-{_size}-Instruct"] = _config
    PUBLISHED[f"Qwen/Qwen3-VL-{_size}-Thinking"] = _config
