"""Sampling completions: prompts prefilled once, their completions decoded side by side.

There are two ways, each a single compiled program. With a slot for every prompt, all prompts are
decoded at once, in stages between which the cache grows. With fewer slots than prompts, a slot
whose completions have all finished is refilled with the next prompt, until none is left. The tokens
are the same, since each completion has its own random key.

Read first `state.py`, what the sampler works on; then `decoding.py`, one step and the loop over
steps; `prefill.py` and `slots.py`, how prompts come into slots and results out of them; and then
the two ways, here. `pool.py` has a third way, for prompts that come in call after call.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float, Int, Key

from mirg_jax import sharding
from mirg_jax.sampling.config import SamplingConfig
from mirg_jax.sampling.decoding import decode
from mirg_jax.sampling.decoding import top_p_filter as top_p_filter
from mirg_jax.sampling.slots import decode_and_refill, no_results, open_slots
from mirg_jax.sampling.state import Context, Prompts
from mirg_jax.types import Images, Rollout, Text

_MIN_STAGE = 32  # steps; a shorter stage saves too little
_MAX_STAGES = 4  # each is compiled
_MAX_LONG_STAGES = 2  # compiling more takes longer than they save,
_LONG = 512  # from this length of completions on


def sample_keys(key: Key[Array, ""], prompts: Int[Array, " B"], group: int) -> Key[Array, "B G"]:
    """A random key for each completion, made of its prompt's number and its own in the group.

    So the tokens don't depend on how prompts are batched or padded.
    """
    fold = jax.vmap(jax.random.fold_in, in_axes=(None, 0))
    return jax.vmap(fold, in_axes=(0, None))(fold(key, prompts), jnp.arange(group))


def sample(
    graph: nnx.GraphDef,
    params: nnx.State,
    prompt: Text,
    images: Images | Float[Array, "B V W"] | None,
    keys: Key[Array, "B G"],
    forbidden: Bool[np.ndarray, " vocab"],
    config: SamplingConfig,
    together: tuple[str, ...] = (),
) -> Rollout:
    """Draws `config.group` completions of each prompt; a pure function, to be jitted.

    Each image is encoded and each prompt prefilled once, whatever the group. Rows without a token
    are padding and are not sampled. Decoding ends when all completions have.

    Args:
      prompt: one prompt a row, segment 1, padded at the end.
      images: or their visual tokens.
      keys: from `sample_keys`.
      forbidden: tokens that are never drawn (vision tokens: a sampled `<|image_pad|>` would ask
        for an image that isn't there).
      together: mesh axes of a `shard_map` whose devices take every step together.
    """
    context = Context.of(
        graph,
        params,
        prompts=Prompts(prompt, images),
        keys=keys,
        forbidden=forbidden,
        config=config,
        together=together,
    )
    at_once = context.num_slots == context.num_prompts
    return _sample_at_once(context) if at_once else _sample_refilling(context)


def stage_limits(length: int) -> list[int]:
    """The steps at which the stages of decoding end, for completions of at most `length` tokens."""
    most = _MAX_STAGES if length < _LONG else _MAX_LONG_STAGES
    stages = min(most, max(1, length // _MIN_STAGE))
    return [length * (i + 1) // stages for i in range(stages)]


def _sample_at_once(context: Context) -> Rollout:
    """All prompts side by side, each in a slot of its own.

    All start at step 0 and end by step L, so the rings never wrap around. A step reads the whole
    cache, so it starts short and grows from stage to stage.
    """
    slots, state = open_slots(context, cache_length=0)
    for limit in stage_limits(context.config.max_tokens):
        state = state._replace(cache=state.cache.grow(limit))
        state = decode(context, slots, state, limit)
    return Rollout(state.tokens, state.mask, state.logprobs)


def _sample_refilling(context: Context) -> Rollout:
    """A few prompts side by side; when the completions of one have finished, the next comes in.

    Decoding stops whenever a slot is free and a prompt waits, and goes on with that slot refilled.
    The last stretch ends when all completions have finished.
    """
    group, length = context.config.group, context.config.max_tokens
    results = no_results(context.num_prompts, group, length)
    slots, state = open_slots(context, cache_length=length)
    results, _, _ = decode_and_refill(context, results, slots, state)
    return results


def lockstep_axes(mesh: jax.sharding.Mesh) -> tuple[str, ...]:
    """The mesh axes whose devices take every step together, those that divide the rows.

    There are none if each device has all of the weights.
    """
    return sharding.ROWS if mesh.shape["tensor"] > 1 and sharding.row_parts(mesh) > 1 else ()


def make_sampler(
    graph: nnx.GraphDef,
    mesh: jax.sharding.Mesh,
    forbidden: Bool[np.ndarray, " vocab"],
    config: SamplingConfig,
) -> Callable[..., Rollout]:
    """`sample(weights, prompt, images, keys)`, jitted, with the prompts divided over the mesh.

    Prompts are independent, so each device runs a decoding loop of its own, without communication
    at every token, until its own longest completion ends. Where several devices share one copy of
    the weights, they communicate at every token, so all loops go on until the last ends.
    """
    together = lockstep_axes(mesh)

    def run(weights, prompt, images, keys):
        return sample(graph, weights, prompt, images, keys, forbidden, config, together)

    rows = PartitionSpec(sharding.ROWS)
    return jax.jit(
        jax.shard_map(
            run,
            mesh=mesh,
            in_specs=(PartitionSpec(), rows, rows, rows),
            out_specs=rows,
            axis_names=set(sharding.ROWS),
            check_vma=False,
        )
    )
