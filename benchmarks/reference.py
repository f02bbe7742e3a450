"""The reference: transformers' model in torch, and the inputs that its processor would make."""

import numpy as np
import torch
from transformers import Qwen2VLForConditionalGeneration

from mirg_jax.data.batching import Item
from mirg_jax.models.vision import MEAN, STD


def torch_model(base: str) -> Qwen2VLForConditionalGeneration:
    """The model of a Hugging Face folder in float32, which generates without a stop token."""
    model = Qwen2VLForConditionalGeneration.from_pretrained(base, dtype=torch.float32)
    model.generation_config.eos_token_id = None
    return model


def torch_inputs(items: list[Item], model, *, left: bool) -> dict[str, torch.Tensor]:
    """What transformers' processor would give for the same prompts and images."""
    longest = max(len(item.encoded.tokens) for item in items)
    ids = np.zeros((len(items), longest), np.int64)
    held = np.zeros_like(ids)
    for row, item in enumerate(items):
        tokens = item.encoded.tokens
        span = slice(longest - len(tokens), None) if left else slice(len(tokens))
        ids[row, span], held[row, span] = tokens, 1
    images = [image for item in items for image in item.images]
    pixels = np.concatenate([image.patches for image in images]).reshape(-1, 3, 196) / 255
    pixels = np.repeat(((pixels - MEAN[:, None]) / STD[:, None])[:, :, None], 2, axis=2)
    return {
        "input_ids": torch.tensor(ids),
        "attention_mask": torch.tensor(held),
        "pixel_values": torch.tensor(pixels.reshape(-1, 1176), dtype=torch.float32),
        "image_grid_thw": torch.tensor([[1, *image.grid] for image in images]),
        "mm_token_type_ids": torch.tensor((ids == model.config.image_token_id).astype(np.int64)),
    }
