"""The reference implementation: transformers' model in PyTorch, used as in TRL's GRPOTrainer.

Inputs are those that transformers' processor would create. As in TRL, each completion is a row with
its whole prompt, and log-probs are computed from the row's last logits.
"""

import numpy as np
import torch
from transformers import Qwen2VLForConditionalGeneration

from mirg_jax.data.batching import Item
from mirg_jax.data.images import ImagePatches
from mirg_jax.models.vision import MEAN, STD


def torch_model(base: str) -> Qwen2VLForConditionalGeneration:
    """Loads the model of a Hugging Face folder in float32; it generates without a stop token."""
    model = Qwen2VLForConditionalGeneration.from_pretrained(base, dtype=torch.float32)
    model.generation_config.eos_token_id = None
    return model


def torch_images(images: list[ImagePatches]) -> dict[str, torch.Tensor]:
    """Returns what transformers' processor would return for these images."""
    pixels = np.concatenate([image.patches for image in images]).reshape(-1, 3, 196) / 255
    pixels = np.repeat(((pixels - MEAN[:, None]) / STD[:, None])[:, :, None], 2, axis=2)
    return {
        "pixel_values": torch.tensor(pixels.reshape(-1, 1176), dtype=torch.float32),
        "image_grid_thw": torch.tensor([[1, *image.grid] for image in images]),
    }


def torch_inputs(items: list[Item], model, *, left: bool) -> dict[str, torch.Tensor]:
    """Returns what transformers' processor would return for these prompts and images."""
    longest = max(len(item.encoded.tokens) for item in items)
    ids = np.zeros((len(items), longest), np.int64)
    held = np.zeros_like(ids)
    for row, item in enumerate(items):
        tokens = item.encoded.tokens
        span = slice(longest - len(tokens), None) if left else slice(len(tokens))
        ids[row, span], held[row, span] = tokens, 1
    return {
        "input_ids": torch.tensor(ids),
        "attention_mask": torch.tensor(held),
        "mm_token_type_ids": torch.tensor((ids == model.config.image_token_id).astype(np.int64)),
        **torch_images([image for item in items for image in item.images]),
    }


def torch_generate(model, inputs: dict[str, torch.Tensor], group: int, new: int) -> torch.Tensor:
    """Samples `group` completions of `new` tokens per prompt; returns prompts and completions."""
    with torch.no_grad():
        return model.generate(
            **inputs,
            do_sample=True,
            top_k=0,
            num_return_sequences=group,
            max_new_tokens=new,
            min_new_tokens=new,
        )


def torch_logprobs(model, inputs: dict[str, torch.Tensor], length: int) -> torch.Tensor:
    """Computes the log-probs of the last `length` tokens of each row."""
    logits = model(**inputs, logits_to_keep=length + 1).logits[:, :-1]
    chosen = logits.gather(-1, inputs["input_ids"][:, -length:, None])[..., 0]
    return chosen - torch.logsumexp(logits, dim=-1)


def torch_loss(logprobs, old, reference, advantages, beta: float) -> torch.Tensor:
    """Computes the loss of equation 5 with the k3 penalty, for rows of equal length."""
    ratio = torch.exp(logprobs - old)
    policy = -torch.minimum(ratio * advantages, ratio.clamp(0.8, 1.2) * advantages)
    delta = (reference - logprobs).clamp(-10, 10)
    return (policy + beta * (torch.exp(delta) - 1 - delta)).mean()
