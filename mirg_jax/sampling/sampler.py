"""Sampling completions: prompts prefilled once, their completions decoded side by side."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Float, Int, Key

from mirg_jax import sharding
from mirg_jax.models.language import Cache
from mirg_jax.models.qwen2_vl import Qwen2VL, computed_dtypes, last_token
from mirg_jax.rl.logprobs import log_softmax
from mirg_jax.types import Images, KeyValues, Rollout, Text

_MIN_STAGE = 32  # tokens for which the cache keeps its size
_MAX_STAGES = 4  # each is compiled,
_LONG = 512  # and from this length on, that takes longer than a shorter cache saves
_PREFILL_TOKENS = 4096  # of prompts, that a device computes at a time


@dataclasses.dataclass(frozen=True)
class SamplingConfig:
    """How completions are drawn.

    Attributes:
      group: completions a prompt.
      max_tokens: length limit of a completion, its stop token included.
      temperature: of the softmax; 0 takes the likeliest token.
      top_p: draw from the smallest set of tokens that holds this much probability. Log-probs are
        of the whole distribution, so training keeps it at 1.
      stop_tokens: ids that end a completion.
    """

    group: int = 1
    max_tokens: int = 1024
    temperature: float = 1.0
    top_p: float = 1.0
    stop_tokens: tuple[int, ...] = ()


class _State(NamedTuple):
    tokens: Int[Array, "B G L"]
    logprobs: Float[Array, "B G L"]
    mask: Bool[Array, "B G L"]
    done: Bool[Array, "B G"]
    running: Bool[Array, ""]
    next_logprobs: Float[Array, "B G vocab"]
    cache: Cache


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
    images: Images | None,
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
      keys: from `sample_keys`.
      forbidden: tokens that are never drawn (vision tokens: a sampled `<|image_pad|>` would ask
        for an image that isn't there).
      together: mesh axes of a `shard_map` whose devices stop together.
    """
    model = nnx.merge(graph, params)
    B, G, L = prompt.tokens.shape[0], config.group, config.max_tokens
    greedy = config.temperature == 0
    temperature = 1.0 if greedy else config.temperature
    stops = jnp.array(config.stop_tokens or (-1,))
    head = jax.lax.optimization_barrier(model.head())  # transposed once, not at every token

    def running(done):
        here = ~done.all()
        return jax.lax.pmax(here.astype(jnp.int32), together) > 0 if together else here

    def distribution(hidden):
        return log_softmax(hidden, head, temperature=temperature, forbidden=forbidden)

    last, prefix = _prefill(model, prompt, images)
    layers = model.decoder.unstack(prefix)
    first = distribution(last)
    empty = jnp.broadcast_to(prompt.segments.max(axis=1)[:, None] == 0, (B, G))
    state = _State(
        tokens=jnp.zeros((B, G, L), jnp.int32),
        logprobs=jnp.zeros((B, G, L), jnp.float32),
        mask=jnp.zeros((B, G, L), bool),
        done=empty,
        running=running(empty),
        next_logprobs=jnp.broadcast_to(first[:, None], (B, G, first.shape[-1])),
        cache=model.decoder.init_cache(B, G, 0),
    )

    def draw(logprobs, position):
        if greedy:
            # The first of the largest; `argmax` itself is several times slower on a CPU.
            largest = logprobs == logprobs.max(axis=-1, keepdims=True)
            last = logprobs.shape[-1] - 1
            return jnp.where(largest, jnp.arange(last + 1), last).min(axis=-1)
        if config.top_p < 1:
            logprobs = top_p_filter(logprobs, config.top_p)
        at = jax.vmap(jax.vmap(jax.random.fold_in, in_axes=(0, None)), in_axes=(0, None))
        return jax.vmap(jax.vmap(jax.random.categorical))(at(keys, position), logprobs)

    def body(state):
        position = state.cache.length
        token = jnp.where(state.done, 0, draw(state.next_logprobs, position).astype(jnp.int32))
        logprob = jnp.take_along_axis(state.next_logprobs, token[..., None], axis=-1)[..., 0]
        live = ~state.done
        done = state.done | (token[..., None] == stops).any(axis=-1)
        hidden, cache = model.step(token, prompt, layers, state.cache)
        return _State(
            tokens=state.tokens.at[:, :, position].set(token),
            logprobs=state.logprobs.at[:, :, position].set(jnp.where(live, logprob, 0.0)),
            mask=state.mask.at[:, :, position].set(live),
            done=done,
            running=running(done),
            next_logprobs=distribution(hidden),
            cache=cache,
        )

    # By stages, so that no token reads a cache much longer than what is written so far.
    stages = min(_MAX_STAGES if L < _LONG else 2, max(1, L // _MIN_STAGE))
    for limit in (L * (i + 1) // stages for i in range(stages)):
        unfinished = lambda s, limit=limit: (s.cache.length < limit) & s.running  # noqa: E731
        state = state._replace(cache=state.cache.grow(limit))
        state = jax.lax.while_loop(unfinished, body, state)
    return Rollout(state.tokens, state.mask, state.logprobs)


def _prefill(
    model: Qwen2VL, prompt: Text, images: Images | None
) -> tuple[Float[Array, "B M"], KeyValues]:
    """Each prompt's last hidden state, and what its completions look back on.

    A few rows at a time where prompts are long: that keeps a device as busy, and less in memory.
    """

    def some(rows):
        prompt, images = rows
        visual = None if images is None else model.visual(images)
        hidden, prefix = model.prefill(prompt, visual)
        return last_token(prompt, hidden), prefix

    B, T = prompt.tokens.shape
    size = max(n for n in range(1, B + 1) if B % n == 0 and (n == 1 or n * T <= _PREFILL_TOKENS))
    if size == B:
        return some((prompt, images))
    groups = jax.tree.map(lambda x: x.reshape(-1, size, *x.shape[1:]), (prompt, images))
    last, prefix = jax.lax.map(some, groups)
    keys, values = (  # [groups, layers, rows, …] → [layers, groups · rows, …]
        x.swapaxes(0, 1).reshape(x.shape[1], B, *x.shape[3:]) for x in prefix[:2]
    )
    return last.reshape(B, -1), KeyValues(keys, values, prompt.segments)


def weight_shapes(params: nnx.State, compute: Any, mesh: jax.sharding.Mesh) -> nnx.State:
    """Shapes, dtypes and layouts of what the sampler reads; see `make_weights`."""
    return jax.tree.map(
        lambda leaf, dtype, layout: jax.ShapeDtypeStruct(leaf.shape, dtype, sharding=layout),
        params,
        computed_dtypes(params, compute),
        sharding.parameter_shardings(params, mesh, sharding.GATHERED),
    )


def taken_as_they_are(params: nnx.State, wanted: nnx.State) -> bool:
    """Whether the parameters already have the dtypes and layouts of `weight_shapes`."""
    same = jax.tree.map(
        lambda a, b: a.dtype == b.dtype and a.sharding.is_equivalent_to(b.sharding, a.ndim),
        params,
        wanted,
    )
    return all(jax.tree.leaves(same))


def make_weights(
    params: nnx.State, compute: Any, mesh: jax.sharding.Mesh
) -> Callable[[nnx.State], nnx.State]:
    """`weights(params)`: what the sampler reads, made once for all prompts of a step.

    Matrices in the precision that they are computed in, whole along the model's width and divided
    over the `tensor` axis of `mesh`, so that no token waits for another device's weights. If the
    parameters lie so already they are taken as they are, without a copy.

    Args:
      params: arrays, or their shapes and shardings.
      compute: the model's compute dtype.
      mesh: from `sharding.sampling_mesh`.
    """
    wanted = weight_shapes(params, compute, mesh)
    if taken_as_they_are(params, wanted):
        return lambda params: params

    def move(leaf, dtype, layout):
        whole = sharding.replicated(mesh)
        return jax.lax.with_sharding_constraint(
            jax.lax.with_sharding_constraint(leaf.astype(dtype), whole), layout
        )

    def one(leaf, wanted):
        if leaf.ndim < 3:
            return move(leaf, wanted.dtype, wanted.sharding)
        # A layer at a time, since no device has room for all of them whole.
        inner = NamedSharding(mesh, PartitionSpec(*wanted.sharding.spec[1:]))
        return jax.lax.map(lambda layer: move(layer, wanted.dtype, inner), leaf)

    return jax.jit(
        lambda params: jax.tree.map(one, params, wanted),
        out_shardings=jax.tree.map(lambda leaf: leaf.sharding, wanted),
    )


def make_sampler(
    graph: nnx.GraphDef,
    mesh: jax.sharding.Mesh,
    forbidden: Bool[Array, " vocab"],
    config: SamplingConfig,
) -> Callable[[nnx.State, Text, Images | None, Key[Array, "B G"]], Rollout]:
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


# What a completion must not hold: an image that isn't there, or another turn.
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
    """The tokens that end a completion."""
    return tuple(tokenizer.convert_tokens_to_ids(list(_STOPS)))


def forbidden_ids(tokenizer, vocab_size: int) -> Bool[np.ndarray, " vocab"]:
    """A mask of the tokens that are never drawn: control tokens, and rows that no token has."""
    mask = np.arange(vocab_size) >= len(tokenizer)
    mask[tokenizer.convert_tokens_to_ids(list(_FORBIDDEN))] = True
    return mask
