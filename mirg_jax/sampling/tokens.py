"""Tokens of completions: those that end one, those that are never drawn, and their text."""

import numpy as np
from jaxtyping import Bool, Int

# What a completion must not hold: an image that isn't there, or another turn.
_FORBIDDEN = (
    "<|im_start|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
_STOPS = ("<|im_end|>", "<|endoftext|>")


def stop_ids(tokenizer) -> tuple[int, ...]:
    """The tokens that end a completion."""
    return tuple(tokenizer.convert_tokens_to_ids(list(_STOPS)))


def forbidden_ids(tokenizer, vocab_size: int) -> Bool[np.ndarray, " vocab"]:
    """A mask of the tokens that are never drawn: control tokens, and rows that no token has."""
    mask = np.arange(vocab_size) >= len(tokenizer)
    mask[tokenizer.convert_tokens_to_ids(list(_FORBIDDEN))] = True
    return mask


def decode(tokenizer, tokens: Int[np.ndarray, "*B L"], mask: Bool[np.ndarray, "*B L"]) -> list[str]:
    """The texts of completions, special tokens kept: boxes are made of them."""
    flat, held = tokens.reshape(-1, tokens.shape[-1]), mask.reshape(-1, mask.shape[-1])
    return [
        tokenizer.decode(row[keep].tolist(), skip_special_tokens=False)
        for row, keep in zip(flat, held, strict=True)
    ]
