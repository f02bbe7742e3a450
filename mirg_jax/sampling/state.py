"""What the sampler works on: what it is given, which prompts are in slots, and their completions.

W slots are decoded side by side, each with one prompt and its G completions. Steps are counted for
all slots together; each gives every unfinished completion one token. A slot that got its prompt
before step s has the start step s. At step i its completions have i − s tokens: their offset.

Tokens, and the keys and values of the cache, are kept in rings of L entries, L being the length
limit of a completion. Step i is written at position i modulo L, the same one for all slots. A
completion has at most L tokens, so none of its entries is overwritten before it has finished. When
a slot gets its next prompt, its rings still hold entries of the one before. Their age tells them
apart: a completion with offset n owns the entries of the last n steps and of the present one, and
attends to no others.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Key

from mirg_jax.models.language import Cache, DecoderLayer
from mirg_jax.models.qwen2_vl import Qwen2VL
from mirg_jax.sampling.config import SamplingConfig
from mirg_jax.types import Images, KeyValues, Text


class Prompts(NamedTuple):
    """Prompts, one a row, with their images or the visual tokens of these."""

    text: Text
    images: Images | Float[Array, "B V W"] | None


@dataclasses.dataclass(frozen=True)
class Context:
    """What a call of the sampler is given; no step changes it.

    Attributes:
      head: from hidden states to logits.
      layers: the decoder's, one by one.
      prompts: all B prompts.
      keys: a random key for each completion, by the rows of results: of the prompts, and after
        them of those that are in slots from an earlier call.
      forbidden: tokens that are never drawn.
      together: mesh axes of a `shard_map` whose devices take every step together.
      count: how many of the prompts are to be decoded, the first ones; None: all.
      more: whether the call ends once a slot is free that no prompt is left for, since a later
        call goes on with the unfinished completions; None: never.
    """

    model: Qwen2VL
    head: Float[Array, "M vocab"]
    layers: Sequence[DecoderLayer]
    prompts: Prompts
    keys: Key[Array, "R G"]
    forbidden: Bool[np.ndarray, " vocab"]
    config: SamplingConfig
    together: tuple[str, ...]
    count: Int[Array, ""] | None = None
    more: Bool[Array, ""] | None = None

    @classmethod
    def of(cls, graph: nnx.GraphDef, params: nnx.State, **given: Any) -> "Context":
        """Creates the context of a call from the model's parts and all other attributes.

        The head is transposed and the layers are taken apart here, not at every token.
        """
        model = nnx.merge(graph, params)
        head = jax.lax.optimization_barrier(model.head())
        return cls(model=model, head=head, layers=model.decoder.unstack(), **given)

    @property
    def num_prompts(self) -> int:
        return self.prompts.text.tokens.shape[0]

    @property
    def num_slots(self) -> int:
        return min(self.config.slots or self.num_prompts, self.num_prompts)

    @property
    def refills(self) -> bool:
        """Whether slots get a prompt after their first one."""
        return self.more is not None or self.num_slots < self.num_prompts

    def waiting(self, prompts_taken: Int[Array, ""]) -> Bool[Array, ""]:
        """Whether there are prompts that have had no slot yet."""
        return prompts_taken < (self.num_prompts if self.count is None else self.count)


class Slots(NamedTuple):
    """The prompts of the W slots, and what their completions look back on."""

    prompt_row: Int[Array, " W"]  # which row of the results
    start_step: Int[Array, " W"]  # the step of its completions' first token
    text: Text
    prefix: KeyValues  # keys and values of the prompt, an array a layer
    prompts_taken: Int[Array, ""]  # prompts that have had a slot


class Signals(NamedTuple):
    """When to stop decoding. Devices that take every step together have the same signals."""

    running: Bool[Array, ""]  # some completion is unfinished
    vacant: Bool[Array, ""]  # a slot is free, and is to be refilled before the next step


class DecodingState(NamedTuple):
    """The completions in the slots, as they are after some steps."""

    tokens: Int[Array, "W G L"]
    logprobs: Float[Array, "W G L"]
    mask: Bool[Array, "W G L"]
    finished: Bool[Array, "W G"]
    next_logprobs: Float[Array, "W G vocab"]  # the distribution of the next token
    cache: Cache
    signals: Signals


def _on_any_device(flag: Bool[Array, ""], context: Context) -> Bool[Array, ""]:
    """Whether `flag` is set on one of the devices that take every step together."""
    if not context.together:
        return flag
    return jax.lax.pmax(flag.astype(jnp.int32), context.together) > 0


def make_signals(
    context: Context, finished: Bool[Array, "W G"], prompts_taken: Int[Array, ""]
) -> Signals:
    """Whether to go on decoding, and whether a slot is to be refilled first.

    A slot is free when all completions of its prompt have finished. Devices that take every step
    together refill together: once each has a free slot or no prompt left.
    """
    running, vacant = ~finished.all(), jnp.zeros((), bool)
    if context.refills:
        free, waiting = finished.all(axis=1).any(), context.waiting(prompts_taken)
        can_refill = _on_any_device(free & waiting, context)
        vacant = can_refill & ~_on_any_device(~free & waiting, context)
        if context.more is not None:
            running &= ~(context.more & free & ~waiting)
    return Signals(running=_on_any_device(running, context), vacant=vacant)
