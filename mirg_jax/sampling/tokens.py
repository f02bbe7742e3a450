"""Completion tokens: stop tokens, forbidden tokens, and decoding to text."""

from collections.abc import Sequence

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


def stop_ids(tokenizer, end_tokens: Sequence[int] = ()) -> tuple[int, ...]:
    """Returns the IDs of the tokens that end a completion.

    Args:
      tokenizer: the model's tokenizer, whose own tokens for that come first.
      end_tokens: those that the model's files name.
    """
    own = tokenizer.convert_tokens_to_ids(list(_STOPS))
    return tuple(dict.fromkeys([*own, *end_tokens]))


def forbidden_ids(tokenizer, vocab_size: int) -> Bool[np.ndarray, " vocab"]:
    """Returns a mask of the tokens that are never sampled.

    These are control tokens, and IDs without a token: `vocab_size`, the number of rows of the
    embedding table, is often larger than the tokenizer's vocabulary.
    """
    mask = np.ones(vocab_size, bool)
    mask[list(tokenizer.get_vocab().values())] = False
    mask[tokenizer.convert_tokens_to_ids(list(_FORBIDDEN))] = True
    return mask


def decode(
    tokenizer,
    tokens: Int[np.ndarray, "*B L"],
    mask: Bool[np.ndarray, "*B L"],
    end_tokens: Sequence[int] = (),
    opening: str = "",
) -> list[str]:
    """Decodes completions to text; special tokens are kept, since boxes consist of them.

    Args:
      tokenizer: the model's tokenizer.
      tokens: the completions.
      mask: which of their tokens are meant.
      end_tokens: tokens that may end a completion besides the tokenizer's own; they are no text.
      opening: their first words, which the prompt ends with.
    """
    others = set(end_tokens) - set(stop_ids(tokenizer))
    flat, held = tokens.reshape(-1, tokens.shape[-1]), mask.reshape(-1, mask.shape[-1])
    texts = []
    for row, keep in zip(flat, held, strict=True):
        ids = row[keep].tolist()
        if ids and ids[-1] in others:
            del ids[-1]
        texts.append(opening + tokenizer.decode(ids, skip_special_tokens=False))
    return texts
