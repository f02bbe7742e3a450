"""Which tokens are never drawn."""

import numpy as np

from mirg_jax.data.prompts import FORBIDDEN
from mirg_jax.sampling.tokens import forbidden_ids


class Tokenizer:
    """Control tokens from 20 on, words at a few other IDs."""

    vocab = {"a": 0, "b": 1, "c": 40} | {name: 20 + n for n, name in enumerate(FORBIDDEN)}

    def get_vocab(self):
        return self.vocab

    def convert_tokens_to_ids(self, tokens):
        return [self.vocab[token] for token in tokens]


def test_ids_without_a_token_are_never_drawn_wherever_they_are():
    drawn = np.flatnonzero(~forbidden_ids(Tokenizer(), 64))
    ends = [Tokenizer.vocab[name] for name in ("<|im_end|>", "<|endoftext|>")]
    assert drawn.tolist() == sorted([0, 1, 40, *ends])
