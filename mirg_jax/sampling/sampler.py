"""Sampling completions: prompts prefilled once, their completions decoded side by side."""

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float, Int, Key

from mirg_jax import sharding
from mirg_jax.models.language import Cache
from mirg_jax.models.qwen2_vl import Qwen2VL, last_token
from mirg_jax.rl.logprobs import log_softmax
from mirg_jax.types import Images, KeyValues, Rollout, Text

_MIN_STAGE = 32  # tokens for which the cache keeps its size
_MAX_STAGES = 4  # each is compiled,
_LONG = 512  # and from this length on, that takes longer than a shorter cache saves
_PREFILL_TOKENS = 4096  # of prompts, that a device computes at a time
_ENDLESS = 2**31 - 1  # steps


@dataclasses.dataclass(frozen=True)
class SamplingConfig:
    """How completions are drawn.

    Attributes:
      group: completions a prompt.
      slots: prompts that a device decodes side by side; when all completions of one have ended,
        the next takes its place. 0: all that it is given.
      max_tokens: length limit of a completion, its stop token included.
      temperature: of the softmax; 0 takes the likeliest token.
      top_p: draw from the smallest set of tokens that holds this much probability. Log-probs are
        of the whole distribution, so training keeps it at 1.
      stop_tokens: ids that end a completion.
    """

    group: int = 1
    slots: int = 0
    max_tokens: int = 1024
    temperature: float = 1.0
    top_p: float = 1.0
    stop_tokens: tuple[int, ...] = ()


class _Slots(NamedTuple):
    """What W slots hold while tokens are drawn: each a prompt and what its completions read."""

    row: Int[Array, " W"]  # which of the prompts
    begun: Int[Array, " W"]  # the step of its completions' first token
    prompt: Text
    prefix: KeyValues  # of each prompt, an array a layer
    taken: Int[Array, ""]  # prompts that have had a slot


class _State(NamedTuple):
    """The completions of the slots. Step i is written at i modulo L, as in the cache."""

    tokens: Int[Array, "W G L"]
    logprobs: Float[Array, "W G L"]
    mask: Bool[Array, "W G L"]
    done: Bool[Array, "W G"]
    next_logprobs: Float[Array, "W G vocab"]
    cache: Cache
    running: Bool[Array, ""]  # a completion isn't done
    vacant: Bool[Array, ""]  # a slot is free for a prompt that waits


def sample_keys(key: Key[Array, ""], prompts: Int[Array, " B"], group: int) -> Key[Array, "B G"]:
    """A random key for each completion, of its prompt's number and its own alone.

    So the tokens don't depend on how prompts are batched or padded.
    """
    fold = jax.vmap(jax.random.fold_in, in_axes=(None, 0))
    return jax.vmap(fold, in_axes=(0, None))(fold(key, prompts), jnp.arange(group))


def top_p_filter(logprobs: Float[Array, "*B vocab"], top_p: float) -> Float[Array, "*B vocab"]:
    """−inf outside the smallest set of likeliest tokens whose probability reaches `top_p`."""
    ordered = jnp.sort(logprobs, axis=-1, descending=True)
    before = jnp.cumsum(jnp.exp(ordered), axis=-1) - jnp.exp(ordered)
    kept = (before < top_p).sum(axis=-1, keepdims=True)
    threshold = jnp.take_along_axis(ordered, kept - 1, axis=-1)
    return jnp.where(logprobs >= threshold, logprobs, -jnp.inf)


def sample(
    graph: nnx.GraphDef,
    params: nnx.State,
    prompt: Text,
    images: Images | Float[Array, "B V M"] | None,
    keys: Key[Array, "B G"],
    forbidden: Bool[Array, " vocab"],
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
    model = nnx.merge(graph, params)
    B, G, L = prompt.tokens.shape[0], config.group, config.max_tokens
    W = min(config.slots or B, B)
    # Transposed, and divided into layers, once and not at every token.
    head, layers = jax.lax.optimization_barrier(model.head()), model.decoder.unstack()
    stops = jnp.array(config.stop_tokens or (-1,))

    def distribution(hidden):
        temperature = config.temperature or 1.0
        return log_softmax(hidden, head, temperature=temperature, forbidden=forbidden)

    def anywhere(here):
        return jax.lax.pmax(here.astype(jnp.int32), together) > 0 if together else here

    def signals(done, taken):
        vacant = jnp.zeros((), bool)
        if W < B:
            free, left = done.all(axis=1).any(), taken < B
            # Devices that step together fill slots together: once each has one, or no prompt left.
            vacant = anywhere(free & left) & ~anywhere(~free & left)
        return {"running": anywhere(~done.all()), "vacant": vacant}

    def begin(prompt, images):
        last, prefix = _prefill(model, prompt, images)
        first = distribution(last)
        first = jnp.broadcast_to(first[:, None], (len(first), G, first.shape[-1]))
        empty = jnp.broadcast_to(prompt.segments.max(axis=1)[:, None] == 0, first.shape[:2])
        return prefix, empty, first

    def step(slots, state):
        at, offset = state.cache.steps % L, state.cache.steps - slots.begun
        live = ~state.done
        token = jnp.where(live, _choose(state.next_logprobs, keys[slots.row], offset, config), 0)
        logprob = jnp.take_along_axis(state.next_logprobs, token[..., None], axis=-1)[..., 0]
        stopped = (token[..., None] == stops).any(axis=-1) | (offset == L - 1)[:, None]
        done = state.done | stopped
        hidden, cache = model.step(token, offset, slots.prompt, layers, slots.prefix, state.cache)

        def write(whole, new):  # what is done stays, while the ring goes round
            return whole.at[:, :, at].set(jnp.where(live, new, whole[:, :, at]))

        return _State(
            tokens=write(state.tokens, token),
            logprobs=write(state.logprobs, logprob),
            mask=write(state.mask, live),
            done=done,
            next_logprobs=distribution(hidden),
            cache=cache,
            **signals(done, slots.taken),
        )

    def decode(slots, state, limit):
        unfinished = lambda s: s.running & ~s.vacant & (s.cache.steps < limit)  # noqa: E731
        return jax.lax.while_loop(unfinished, functools.partial(step, slots), state)

    def fill(slots, state):
        """A vacant slot gets the next prompt; on a device that has none, nothing changes."""
        free, row = state.done.all(axis=1), jnp.minimum(slots.taken, B - 1)
        slot, use = jnp.argmax(free), free.any() & (slots.taken < B)
        cut = functools.partial(jax.lax.dynamic_slice_in_dim, slice_size=1)
        text, pictures = jax.tree.map(lambda x: cut(x, row), (prompt, images))
        prefix, empty, first = begin(text, pictures)

        def put(whole, new):
            new = jnp.where(use, new, cut(whole, slot))
            return jax.lax.dynamic_update_slice_in_dim(whole, new, slot, axis=0)

        def put_all(whole, new):
            return jax.tree.map(put, whole, new)

        taken, done = slots.taken + use, put(state.done, empty)
        slots = _Slots(
            row=put(slots.row, row),
            begun=put(slots.begun, state.cache.steps),
            prompt=put_all(slots.prompt, text),
            prefix=put_all(slots.prefix, prefix),
            taken=taken,
        )
        return slots, state._replace(
            mask=put(state.mask, jnp.zeros((1, G, L), bool)),
            done=done,
            next_logprobs=put(state.next_logprobs, first),
            **signals(done, taken),
        )

    def keep(found, slots, state):
        """`found` with the slots' completions in their rows, their first token in front."""
        roll = jax.vmap(lambda x, begun: jnp.roll(x, -(begun % L), axis=-1))
        now = (roll(x, slots.begun) for x in (state.tokens, state.mask, state.logprobs))
        return Rollout(*(x.at[slots.row].set(new) for x, new in zip(found, now, strict=True)))

    text, pictures = jax.tree.map(lambda x: x[:W], (prompt, images))
    prefix, empty, first = begin(text, pictures)
    slots = _Slots(jnp.arange(W), jnp.zeros(W, jnp.int32), text, prefix, jnp.array(W))
    state = _State(
        tokens=jnp.zeros((W, G, L), jnp.int32),
        logprobs=jnp.zeros((W, G, L), jnp.float32),
        mask=jnp.zeros((W, G, L), bool),
        done=empty,
        next_logprobs=first,
        cache=model.decoder.init_cache(W, G, 0),
        **signals(empty, slots.taken),
    )
    if W == B:
        # By stages, so that no token reads a cache much longer than what is written so far.
        stages = min(_MAX_STAGES if L < _LONG else 2, max(1, L // _MIN_STAGE))
        for limit in (L * (i + 1) // stages for i in range(stages)):
            state = decode(slots, state._replace(cache=state.cache.grow(limit)), limit)
        return Rollout(state.tokens, state.mask, state.logprobs)

    def go_on(carry):
        found, slots, state = carry
        found = keep(found, slots, state)
        slots, state = fill(slots, state)
        return found, slots, decode(slots, state, _ENDLESS)

    state = decode(slots, state._replace(cache=state.cache.grow(L)), _ENDLESS)
    found = Rollout(*(jnp.zeros((B, G, L), dtype) for dtype in (jnp.int32, bool, jnp.float32)))
    carry = jax.lax.while_loop(lambda carry: carry[2].vacant, go_on, (found, slots, state))
    found = keep(*carry)
    return Rollout(jnp.where(found.mask, found.tokens, 0), found.mask, found.logprobs * found.mask)


def _choose(
    logprobs: Float[Array, "W G vocab"],
    keys: Key[Array, "W G"],
    offsets: Int[Array, " W"],
    config: SamplingConfig,
) -> Int[Array, "W G"]:
    """The next token of each completion that has `offsets` tokens already."""
    if config.temperature == 0:
        # The first of the largest; `argmax` itself is several times slower on a CPU.
        largest = logprobs == logprobs.max(axis=-1, keepdims=True)
        last = logprobs.shape[-1] - 1
        return jnp.where(largest, jnp.arange(last + 1), last).min(axis=-1)
    if config.top_p < 1:
        logprobs = top_p_filter(logprobs, config.top_p)
    at = jax.vmap(jax.vmap(jax.random.fold_in, in_axes=(0, None)))(keys, offsets)
    return jax.vmap(jax.vmap(jax.random.categorical))(at, logprobs)


def _prefill(
    model: Qwen2VL, prompt: Text, images: Images | Float[Array, "B V M"] | None
) -> tuple[Float[Array, "B M"], KeyValues]:
    """Each prompt's last hidden state, and what its completions look back on, an array a layer.

    A few rows at a time where prompts are long: that keeps a device as busy, and less in memory.
    """

    def some(rows):
        prompt, images = rows
        hidden, prefix = model.prefill(prompt, model.see(images))
        return last_token(prompt, hidden), (tuple(prefix.keys), tuple(prefix.values))

    B, T = prompt.tokens.shape
    size = max(n for n in range(1, B + 1) if B % n == 0 and (n == 1 or n * T <= _PREFILL_TOKENS))
    if size == B:
        last, prefix = some((prompt, images))
    else:
        groups = jax.tree.map(lambda x: x.reshape(-1, size, *x.shape[1:]), (prompt, images))
        groups = jax.lax.map(some, groups)
        last, prefix = jax.tree.map(lambda x: x.reshape(B, *x.shape[2:]), groups)
    return last, KeyValues(*prefix, prompt.segments)


def make_sampler(
    graph: nnx.GraphDef,
    mesh: jax.sharding.Mesh,
    forbidden: Bool[Array, " vocab"],
    config: SamplingConfig,
) -> Callable[..., Rollout]:
    """`sample(weights, prompt, images, keys)`, jitted, with the prompts divided over the mesh.

    Prompts don't concern each other, so each device runs a decoding loop of its own, which needs
    no word from the others at every token and ends with its own longest completion. Where several
    devices share one copy of the weights, all loops go on until the last ends, since they meet at
    every token.
    """
    together = sharding.ROWS if mesh.shape["tensor"] > 1 and sharding.row_parts(mesh) > 1 else ()

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
