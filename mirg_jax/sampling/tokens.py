"""Completion tokens: stop tokens, forbidden tokens, and decoding to text."""

import numpy as np
from jaxtyping import Bool, Int

# A completion must not contain image tokens or begin another chat turn.
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
    """Returns the IDs of the tokens that end a completion."""
    return tuple(tokenizer.convert_tokens_to_ids(list(_STOPS)))


def forbidden_ids(tokenizer, vocab_size: int) -> Bool[np.ndarray, " vocab"]:
    """Returns a mask of the tokens that are never sampled.

    These are control tokens, and IDs without a token: `vocab_size`, the number of rows of the
    embedding table, is often larger than the tokenizer's vocabulary.
    """
    mask = np.ones(vocab_size, bool)
    mask[list(tokenizer.get_vocab().values())] = False
    mask[tokenizer.convert_tokens_to_ids(list(_FORBIDDEN))] = True
    return mask


def decode(tokenizer, tokens: Int[np.ndarray, "*B L"], mask: Bool[np.ndarray, "*B L"]) -> list[str]:
    """Decodes completions to text; special tokens are kept, since boxes consist of them."""
    flat, held = tokens.reshape(-1, tokens.shape[-1]), mask.reshape(-1, mask.shape[-1])
    return [
        tokenizer.decode(row[keep].tolist(), skip_special_tokens=False)
        for row, keep in zip(flat, held, strict=True)
    ]
