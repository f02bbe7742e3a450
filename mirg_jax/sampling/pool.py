"""Slots that outlive a call: prompts come in call after call, and no call waits for the last token.

A call is given as many prompts as there are slots. It decodes until each of them has had a slot and
a slot is free again, or, if no more are to come, until all completions have finished. What is
unfinished then stays in its slot, and the next call goes on with it.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Int

from mirg_jax import sharding
from mirg_jax.models.language import Cache
from mirg_jax.sampling.config import SamplingConfig
from mirg_jax.sampling.sampler import lockstep_axes, sample_keys
from mirg_jax.sampling.slots import decode_and_refill, no_results, open_slots
from mirg_jax.sampling.state import Context, DecodingState, Prompts, Slots, make_signals
from mirg_jax.sharding.memory import with_resident
from mirg_jax.types import Images, KeyValues, Rollout, Text

NO_PROMPT = -1  # in place of a prompt's number


class Pool(NamedTuple):
    """The slots between two calls.

    What is a single number in `slots` and `state` has an entry for each device here.
    """

    numbers: Int[Array, " W"]  # of the prompts that are still to be finished, or NO_PROMPT
    slots: Slots
    state: DecodingState

    @property
    def steps(self) -> Int[Array, " devices"]:
        """Decoding steps so far."""
        return self.state.cache.steps


class Finished(NamedTuple):
    """The completions that have finished in a call, in the rows that have a number."""

    numbers: Int[Array, " R"]  # of their prompts, or NO_PROMPT
    rollout: Rollout


class Feeding(NamedTuple):
    """The jitted functions that make a pool and feed it.

    Attributes:
      open: `(weights, text, images) -> pool`, with no prompt in it; the arguments are prompts of
        the sizes to come.
      feed: `(resident, weights, pool, text, images, numbers, more) -> (pool, finished)`. Rows
        without a prompt have the number NO_PROMPT; those behind a device's last prompt cost
        nothing. `more` says whether another call follows. The pool is donated.
    """

    open: Any  # jitted; jax.stages.Wrapped knows no eval_shape
    feed: Callable[..., tuple[Pool, Finished]]


def _as_rows(slots: Slots, state: DecodingState) -> tuple[Slots, DecodingState]:
    """Single numbers as arrays of one entry."""
    signals = jax.tree.map(lambda flag: flag[None], state.signals)
    cache = state.cache._replace(steps=state.cache.steps[None])
    return (
        slots._replace(prompts_taken=slots.prompts_taken[None]),
        state._replace(cache=cache, signals=signals),
    )


def empty_pool(context: Context) -> Pool:
    """A pool without a prompt."""
    shapes = jax.eval_shape(lambda: open_slots(context, context.config.max_tokens))
    slots, state = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    state = state._replace(finished=jnp.ones_like(state.finished))
    numbers = jnp.full(context.num_slots, NO_PROMPT, jnp.int32)
    return Pool(numbers, *_as_rows(slots, state))


def feed(context: Context, pool: Pool, numbers: Int[Array, " B"]) -> tuple[Pool, Finished]:
    """Decodes until all prompts have had a slot and one is free, or until all have finished.

    Rows of results are the prompts, and after them what was in the slots before.

    Args:
      context: its prompts are the new ones.
      pool: the slots.
      numbers: of the new prompts.
    """
    B, W, L = context.num_prompts, len(pool.numbers), context.config.max_tokens
    slots = pool.slots._replace(prompt_row=B + jnp.arange(W), prompts_taken=jnp.array(0))
    state = pool.state._replace(
        cache=pool.state.cache._replace(steps=pool.state.cache.steps[0]),
        signals=make_signals(context, pool.state.finished, slots.prompts_taken),
    )
    results = no_results(B + W, context.config.group, L)
    results, slots, state = decode_and_refill(context, results, slots, state)
    known = jnp.concatenate([numbers, pool.numbers])
    over = state.finished.all(axis=1)
    done = jnp.ones(B + W, bool).at[slots.prompt_row].set(over)
    left = jnp.where(over, NO_PROMPT, known[slots.prompt_row])
    finished = Finished(jnp.where(done, known, NO_PROMPT), results)
    return Pool(left, *_as_rows(slots, state)), finished


def pool_layout(mesh: Mesh, kv_heads: int) -> Pool:
    """Shardings of a pool, each for a part of it: by rows, and keys and values also by heads."""
    rows: Any = NamedSharding(mesh, PartitionSpec(sharding.ROWS))
    shape = sharding.row_parts(mesh), kv_heads
    heads: Any = NamedSharding(
        mesh, sharding.spec(("rows", "heads"), shape, mesh.shape, sharding.GATHERED)
    )
    return Pool(
        numbers=rows,
        slots=Slots(rows, rows, rows, KeyValues(heads, heads, rows), rows),
        state=DecodingState(rows, rows, rows, rows, rows, Cache(heads, heads, rows), rows),
    )


def make_feeding(
    graph: nnx.GraphDef,
    mesh: Mesh,
    forbidden: Bool[np.ndarray, " vocab"],
    config: SamplingConfig,
    kv_heads: int,
) -> Feeding:
    """Creates the functions of a pool whose slots are divided over the mesh.

    They are compiled once for each number of slots and each size of the prompts' arrays.

    Args:
      graph: the model.
      mesh: from `sharding.sampling_mesh`.
      forbidden: tokens that are never drawn.
      config: how completions are drawn; the pool has as many slots as a call has prompts. Random
        keys follow from the prompts' numbers.
      kv_heads: the model's number of key/value heads.
    """
    together = lockstep_axes(mesh)

    def context_of(weights, text, images, **given) -> Context:
        given |= {"forbidden": forbidden, "config": config, "together": together}
        return Context.of(graph, weights, prompts=Prompts(text, images), **given)

    def make(weights, text: Text, images: Images) -> Pool:
        numbers = jnp.zeros(len(text.tokens), jnp.int32)
        keys = sample_keys(jax.random.key(0), numbers, config.group)
        return empty_pool(context_of(weights, text, images, keys=keys))

    def run(weights, pool: Pool, text: Text, images: Images, numbers, more):
        known = jnp.concatenate([numbers, pool.numbers])
        keys = sample_keys(jax.random.key(0), known, config.group)
        count = jnp.where(numbers == NO_PROMPT, 0, 1 + jnp.arange(len(numbers))).max()
        context = context_of(weights, text, images, keys=keys, count=count, more=more)
        return feed(context, pool, numbers)

    def divided(function: Callable, *inputs: PartitionSpec) -> Callable:
        return jax.shard_map(
            function,
            mesh=mesh,
            in_specs=inputs,
            out_specs=rows,
            axis_names=set(sharding.ROWS),
            check_vma=False,
        )

    rows, everywhere = PartitionSpec(sharding.ROWS), PartitionSpec()
    layout, by_rows = pool_layout(mesh, kv_heads), sharding.by_rows(mesh)
    return Feeding(
        open=jax.jit(divided(make, everywhere, rows, rows), out_shardings=layout),
        feed=with_resident(
            divided(run, everywhere, rows, rows, rows, rows, everywhere),
            donate_argnums=2,
            out_shardings=(layout, by_rows),
        ),
    )
