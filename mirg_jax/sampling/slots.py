"""Slots: opened with the first prompts, refilled with the next ones, and their results kept.

`state.py` says how completions that started at different steps share the rings.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, PyTree, Shaped

from mirg_jax.sampling.decoding import decode
from mirg_jax.sampling.prefill import prefill
from mirg_jax.sampling.state import Context, DecodingState, Slots, make_signals
from mirg_jax.types import Rollout


def open_slots(context: Context, cache_length: int) -> tuple[Slots, DecodingState]:
    """All slots with the first prompts in them, before the first step.

    Args:
      cache_length: steps that the cache has room for.
    """
    W, G, L = context.num_slots, context.config.group, context.config.max_tokens
    prompts = jax.tree.map(lambda x: x[:W], context.prompts)
    start = prefill(context, prompts)
    slots = Slots(
        prompt_row=jnp.arange(W),
        start_step=jnp.zeros(W, jnp.int32),
        text=prompts.text,
        prefix=start.prefix,
        prompts_taken=jnp.array(W),
    )
    state = DecodingState(
        tokens=jnp.zeros((W, G, L), jnp.int32),
        logprobs=jnp.zeros((W, G, L), jnp.float32),
        mask=jnp.zeros((W, G, L), bool),
        finished=start.empty,
        next_logprobs=start.first_logprobs,
        cache=context.model.decoder.init_cache(W, G, cache_length),
        signals=make_signals(context, start.empty, slots.prompts_taken),
    )
    return slots, state


def _put(
    whole: PyTree[Shaped[Array, "W ..."]],
    new: PyTree[Shaped[Array, "1 ..."]],
    slot: Int[Array, ""],
    fill: Bool[Array, ""],
) -> PyTree[Shaped[Array, "W ..."]]:
    """Arrays of all slots with `new` in the place of `slot`; unchanged if `fill` is false."""

    def one(whole, new):
        new = jnp.where(fill, new, jax.lax.dynamic_slice_in_dim(whole, slot, 1))
        return jax.lax.dynamic_update_slice_in_dim(whole, new, slot, axis=0)

    return jax.tree.map(one, whole, new)


def fill_slot(context: Context, slots: Slots, state: DecodingState) -> tuple[Slots, DecodingState]:
    """Gives a free slot to the next prompt; its results so far must have been kept.

    Only the mask is cleared: other rings are read only where the new completions have written.
    Devices that take every step together refill together; one that has no free slot, or no prompt
    left, does the same computation and changes nothing.
    """
    last = context.num_prompts - 1
    free, row = state.finished.all(axis=1), jnp.minimum(slots.prompts_taken, last)
    slot, fill = jnp.argmax(free), free.any() & context.waiting(slots.prompts_taken)
    prompt = jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, row, 1), context.prompts)
    start = prefill(context, prompt)
    put = functools.partial(_put, slot=slot, fill=fill)
    slots = Slots(
        prompt_row=put(slots.prompt_row, row[None]),
        start_step=put(slots.start_step, state.cache.steps[None]),
        text=put(slots.text, prompt.text),
        prefix=put(slots.prefix, start.prefix),
        prompts_taken=slots.prompts_taken + fill,
    )
    finished = put(state.finished, start.empty)
    return slots, state._replace(
        mask=put(state.mask, jnp.zeros((1, *state.mask.shape[1:]), bool)),
        finished=finished,
        next_logprobs=put(state.next_logprobs, start.first_logprobs),
        signals=make_signals(context, finished, slots.prompts_taken),
    )


def no_results(rows: int, group: int, length: int) -> Rollout:
    """Results of which none is known."""
    shape = rows, group, length
    return Rollout(jnp.zeros(shape, jnp.int32), jnp.zeros(shape, bool), jnp.zeros(shape))


def keep_results(results: Rollout, slots: Slots, state: DecodingState) -> Rollout:
    """The results of all prompts, with what the slots hold now written to their prompts' rows.

    Rings are rotated so that the first token comes first. Unfinished completions are written as far
    as they have come, and written again by a later call. Values outside the mask have no meaning.
    """

    L = state.tokens.shape[-1]

    def write(kept: Shaped[Array, "B G L"], ring: Shaped[Array, "W G L"]):
        rotate = jax.vmap(lambda ring, start: jnp.roll(ring, -(start % L), axis=-1))
        return kept.at[slots.prompt_row].set(rotate(ring, slots.start_step))

    return jax.tree.map(write, results, Rollout(state.tokens, state.mask, state.logprobs))


class _Carry(NamedTuple):
    """What goes from one refill of a slot to the next."""

    results: Rollout  # of all prompts, as far as they are known
    slots: Slots
    state: DecodingState


def decode_and_refill(
    context: Context, results: Rollout, slots: Slots, state: DecodingState
) -> tuple[Rollout, Slots, DecodingState]:
    """Decodes; whenever a slot is free and a prompt waits, refills that slot and decodes on.

    Returns:
      The results, with those of the completions that are in slots in the end, and these slots.
    """

    def refill(carry: _Carry) -> _Carry:
        results = keep_results(*carry)
        slots, state = fill_slot(context, carry.slots, carry.state)
        return _Carry(results, slots, decode(context, slots, state))

    carry = _Carry(results, slots, decode(context, slots, state))
    carry = jax.lax.while_loop(lambda carry: carry.state.signals.vacant, refill, carry)
    results = keep_results(*carry)
    tokens, mask, logprobs = results
    return Rollout(jnp.where(mask, tokens, 0), mask, logprobs * mask), carry.slots, carry.state
