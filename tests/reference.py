"""The reference: transformers' models in torch, of test size, with lively random weights."""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    PreTrainedModel,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
)
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from mirg_jax.data.batching import Item
from mirg_jax.data.images import patchify
from mirg_jax.data.prompts import Encoded, mrope_positions
from mirg_jax.models.config import ModelConfig, TextConfig, VisionConfig

torch.set_num_threads(1)  # the models are small and the machine may be shared

MIN_PIXELS, MAX_PIXELS = 28 * 28, 140 * 140
IDS = {
    "image_token_id": 210,
    "video_token_id": 211,
    "vision_start_token_id": 212,
    "vision_end_token_id": 213,
    "bos_token_id": 214,
    "eos_token_id": 215,
}
WORDS = 200  # ids below are plain words
CLASSES = {
    "qwen2_vl": (Qwen2VLConfig, Qwen2VLForConditionalGeneration),
    "qwen2_5_vl": (Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration),
    "qwen3_vl": (Qwen3VLConfig, Qwen3VLForConditionalGeneration),
}


def small_config(
    *,
    width: int,
    heads: int,
    kv_heads: int,
    hidden: int,
    layers: int,
    section: tuple[int, int, int],
    tied: bool,
    theta: float,
    vision: VisionConfig,
    **flags,
) -> ModelConfig:
    text = TextConfig(
        vocab_size=224,
        hidden_size=width,
        intermediate_size=hidden,
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=kv_heads,
        rope_theta=theta,
        mrope_section=section,
        tie_word_embeddings=tied,
        **flags,
    )
    return ModelConfig(text=text, vision=vision, **IDS)


CONFIGS = {
    # Qwen2-VL-2B in small: grouped queries, tied.
    "tied": small_config(
        width=64,
        heads=4,
        kv_heads=2,
        hidden=160,
        layers=3,
        section=(2, 3, 3),
        tied=True,
        theta=1e6,
        vision=VisionConfig(depth=2, embed_dim=32, num_heads=2, mlp_ratio=4, out_dim=64),
    ),
    # The 7B's seven queries a key, with a head size that is no power of two.
    "untied": small_config(
        width=168,
        heads=7,
        kv_heads=1,
        hidden=192,
        layers=2,
        section=(4, 4, 4),
        tied=False,
        theta=1e4,
        vision=VisionConfig(depth=3, embed_dim=48, num_heads=4, mlp_ratio=2, out_dim=168),
    ),
    # The published head sizes and sections, and a key for every query.
    "wide": small_config(
        width=256,
        heads=2,
        kv_heads=2,
        hidden=128,
        layers=2,
        section=(16, 24, 24),
        tied=False,
        theta=1e6,
        vision=VisionConfig(depth=2, embed_dim=160, num_heads=2, mlp_ratio=3, out_dim=256),
    ),
}
# Qwen2.5-VL's: the same decoders, other towers. Windows of one, four and sixteen visual tokens.
WINDOWED = {
    "windows 28": dataclasses.replace(
        CONFIGS["tied"],
        vision=VisionConfig(
            depth=4, embed_dim=32, num_heads=2, mlp_dim=44, out_dim=64, window_size=28,
            full_blocks=(1, 2),
        ),
    ),
    "windows 56": dataclasses.replace(
        CONFIGS["untied"],
        vision=VisionConfig(
            depth=3, embed_dim=48, num_heads=4, mlp_dim=60, out_dim=168, window_size=56,
            full_blocks=(2,),
        ),
    ),
    # The published window, and a size that isn't whole visual tokens.
    "windows 112": dataclasses.replace(
        CONFIGS["wide"],
        vision=VisionConfig(
            depth=2, embed_dim=160, num_heads=2, mlp_dim=107, out_dim=256, window_size=113,
            full_blocks=(0,),
        ),
    ),
}  # fmt: skip
# Qwen3-VL's: heads whose size isn't the width over their number, features of one to three blocks.
_QWEN3 = {"mrope_interleaved": True, "qkv_bias": False, "qk_norm": True}
DEEP = {
    "deep tied": small_config(
        width=64, heads=4, kv_heads=2, hidden=160, layers=3, section=(4, 4, 4), tied=True,
        theta=5e6, head_size=24,
        vision=VisionConfig(
            depth=4, embed_dim=32, num_heads=2, mlp_dim=44, out_dim=64, patch_size=16,
            position_side=6, deepstack=(0, 2),
        ),
        **_QWEN3,
    ),
    # As many features as layers, the last of them of the last block.
    "deep untied": small_config(
        width=90, heads=6, kv_heads=2, hidden=128, layers=3, section=(4, 2, 2), tied=False,
        theta=1e4, head_size=16,
        vision=VisionConfig(
            depth=5, embed_dim=48, num_heads=4, mlp_dim=60, out_dim=90, patch_size=16,
            position_side=5, deepstack=(1, 2, 4),
        ),
        **_QWEN3,
    ),
    # The published head sizes, sections and grid of positions.
    "deep wide": small_config(
        width=128, heads=2, kv_heads=2, hidden=96, layers=2, section=(24, 20, 20), tied=False,
        theta=5e6, head_size=128,
        vision=VisionConfig(
            depth=3, embed_dim=144, num_heads=2, mlp_dim=107, out_dim=128, patch_size=16,
            position_side=48, deepstack=(1,),
        ),
        **_QWEN3,
    ),
}  # fmt: skip
ALL_CONFIGS = CONFIGS | WINDOWED | DEEP
# For fixtures: one config of the later families in every run of the tests, the others in the slow
# ones.
LATER = ("windows 56", "deep tied")
ALL_NAMES = [
    pytest.param(name, marks=[] if name in CONFIGS or name in LATER else [pytest.mark.slow])
    for name in ALL_CONFIGS
]
# One of each family, where one is enough.
FAMILIES = {
    "qwen2_vl": CONFIGS["untied"],
    "qwen2_5_vl": WINDOWED["windows 56"],
    "qwen3_vl": DEEP["deep tied"],
}


def torch_config(config: ModelConfig):
    """The same sizes for transformers."""
    return CLASSES[config.model_type][0](**config.to_hf())


def torch_model(config: ModelConfig, seed: int = 0) -> PreTrainedModel:
    """Weights that keep every part at work: logits of order one, attention neither flat nor hard,
    biases and norms away from their trivial values."""
    model = CLASSES[config.model_type][1](torch_config(config)).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if "embed_tokens" in name:
                tied = config.text.tie_word_embeddings
                scale = 0.5 * config.text.hidden_size**-0.5 if tied else 1.0  # else it echoes
                parameter.copy_(scale * noise)
            elif name.endswith("bias"):
                parameter.copy_(0.3 * noise)
            elif parameter.ndim == 1:  # norms
                parameter.copy_(1 + 0.2 * noise)
            else:
                fan_in = math.prod(parameter.shape[1:])
                gain = 1.5 if any(part in name for part in ("q_proj", "k_proj", "qkv")) else 1.0
                parameter.copy_(gain * fan_in**-0.5 * noise)
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    return model


def sample(
    rng: np.random.Generator,
    sizes: Sequence[tuple[int, int]],
    response: int,
    vision: VisionConfig = CONFIGS["tied"].vision,
) -> tuple[Item, list[Image.Image]]:
    """Random words before, between and after random images, then a response.

    Args:
      sizes: width and height of each image.
      response: how many of the last tokens are to be learned.
      vision: the tower that sees the images.
    """
    images = [
        Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
        for width, height in sizes
    ]
    limits = MIN_PIXELS, MAX_PIXELS, vision.patch_size
    patches = tuple(patchify(image, *limits) for image in images)
    grids = [(p.grid[0] // 2, p.grid[1] // 2) for p in patches]
    tokens, starts = list(rng.integers(0, WORDS, rng.integers(1, 6))), []
    for rows, columns in grids:
        starts.append(len(tokens) + 1)
        tokens += [IDS["vision_start_token_id"], *[IDS["image_token_id"]] * (rows * columns)]
        tokens += [IDS["vision_end_token_id"], *rng.integers(0, WORDS, rng.integers(0, 5))]
    tokens += list(rng.integers(0, WORDS, 2))
    prompt_length = len(tokens)
    tokens = np.array([*tokens, *rng.integers(0, WORDS, response)], np.int32)
    encoded = Encoded(
        tokens=tokens,
        positions=mrope_positions(tokens, grids, IDS["image_token_id"]),
        image_starts=tuple(starts),
        prompt_length=prompt_length,
    )
    return Item(encoded, patches), images


def torch_processor(vision: VisionConfig, min_pixels: int, max_pixels: int):
    """The images' part of transformers' processor, with the values that a family publishes."""
    own = {}
    if vision.patch_size == 16:
        own = {"patch_size": 16, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    size = {"shortest_edge": min_pixels, "longest_edge": max_pixels}
    return Qwen2VLImageProcessorPil(size=size, **own)


def torch_inputs(
    tokens: np.ndarray,
    images: Sequence[Image.Image],
    vision: VisionConfig = CONFIGS["tied"].vision,
) -> dict[str, torch.Tensor]:
    """What transformers' processor would make of one example."""
    processor = torch_processor(vision, MIN_PIXELS, MAX_PIXELS)
    ids = torch.from_numpy(np.asarray(tokens, np.int64))[None]
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "mm_token_type_ids": (ids == IDS["image_token_id"]).int(),
        **processor(images=list(images), return_tensors="pt"),
    }
