"""Prefilling prompts: each goes through the model once, whatever the number of its completions."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from mirg_jax.models.qwen2_vl import last_token
from mirg_jax.sampling.decoding import token_logprobs
from mirg_jax.sampling.state import Context, Prompts
from mirg_jax.types import KeyValues

_PREFILL_TOKENS = 4096  # that a device computes at a time


class Prefilled(NamedTuple):
    """What the completions of some prompts start from."""

    prefix: KeyValues  # keys and values of each prompt, an array a layer
    empty: Bool[Array, "B G"]  # rows without a prompt, which are not sampled
    first_logprobs: Float[Array, "B G vocab"]  # the distribution of the first token


def _last_hidden(context: Context, prompts: Prompts) -> tuple[Float[Array, "B M"], KeyValues]:
    """Each prompt's last hidden state, and what its completions look back on, an array a layer.

    A few rows at a time where prompts are long: that keeps a device as busy, and less in memory.
    """

    def some(prompts: Prompts):
        visual = context.model.see(prompts.images)
        hidden, prefix = context.model.prefill(prompts.text, visual)
        return last_token(prompts.text, hidden), (tuple(prefix.keys), tuple(prefix.values))

    B, T = prompts.text.tokens.shape
    size = max(n for n in range(1, B + 1) if B % n == 0 and (n == 1 or n * T <= _PREFILL_TOKENS))
    if size == B:
        last, (keys, values) = some(prompts)
    else:
        parts = jax.tree.map(lambda x: x.reshape(-1, size, *x.shape[1:]), prompts)
        parts = jax.lax.map(some, parts)
        last, (keys, values) = jax.tree.map(lambda x: x.reshape(B, *x.shape[2:]), parts)
    return last, KeyValues(keys, values, prompts.text.segments)


def prefill(context: Context, prompts: Prompts) -> Prefilled:
    """Encodes images and computes prompts, up to the distribution of their first tokens."""
    last, prefix = _last_hidden(context, prompts)
    first = token_logprobs(context, last)
    group = context.config.group
    first = jnp.broadcast_to(first[:, None], (len(first), group, first.shape[-1]))
    empty = prompts.text.segments.max(axis=1)[:, None] == 0
    return Prefilled(prefix, jnp.broadcast_to(empty, first.shape[:2]), first)
