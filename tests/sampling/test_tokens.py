"""Which tokens are never drawn, and which end a completion."""

import numpy as np

from mirg_jax.data.prompts import FORBIDDEN
from mirg_jax.sampling.tokens import decode, forbidden_ids, stop_ids


class Tokenizer:
    """Control tokens from 20 on, words at a few other IDs."""

    vocab = {"a": 0, "b": 1, "c": 40} | {name: 20 + n for n, name in enumerate(FORBIDDEN)}

    def get_vocab(self):
        return self.vocab

    def convert_tokens_to_ids(self, tokens):
        return [self.vocab[token] for token in tokens]

    def decode(self, ids, *, skip_special_tokens):
        assert not skip_special_tokens
        names = {number: name for name, number in self.vocab.items()}
        return " ".join(names[number] for number in ids)


def test_ids_without_a_token_are_never_drawn_wherever_they_are():
    drawn = np.flatnonzero(~forbidden_ids(Tokenizer(), 64))
    ends = [Tokenizer.vocab[name] for name in ("<|im_end|>", "<|endoftext|>")]
    assert drawn.tolist() == sorted([0, 1, 40, *ends])


def test_end_tokens_of_a_models_files_end_a_completion_and_are_no_text():
    own = tuple(Tokenizer.vocab[name] for name in ("<|im_end|>", "<|endoftext|>"))
    assert stop_ids(Tokenizer()) == own and stop_ids(Tokenizer(), (own[1], 40)) == (*own, 40)
    tokens = np.array([[0, 40, 1], [0, 1, 40], [0, own[0], 0]])
    mask = np.array([[1, 1, 1], [1, 1, 1], [1, 1, 0]], bool)
    assert decode(Tokenizer(), tokens, mask) == ["a c b", "a b c", "a <|im_end|>"]
    assert decode(Tokenizer(), tokens, mask, (own[0], 40)) == ["a c b", "a b", "a <|im_end|>"]
