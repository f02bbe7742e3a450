"""Decoding: one step, which chooses a token for each completion, and the loop over steps.

`state.py` says what a step works on and how the rings are laid out.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, Shaped

from mirg_jax.rl.logprobs import log_softmax
from mirg_jax.sampling.config import SamplingConfig
from mirg_jax.sampling.state import Context, DecodingState, Slots, make_signals


def token_logprobs(context: Context, hidden: Float[Array, "*N M"]) -> Float[Array, "*N vocab"]:
    """The distribution of the token after each hidden state; forbidden tokens have no mass.

    At temperature 0, where nothing is drawn from it, it is that of temperature 1.
    """
    temperature = context.config.temperature or 1.0
    return log_softmax(hidden, context.head, temperature=temperature, forbidden=context.forbidden)


def top_p_filter(logprobs: Float[Array, "*B vocab"], top_p: float) -> Float[Array, "*B vocab"]:
    """−inf outside the smallest set of likeliest tokens whose probability reaches `top_p`."""
    ordered = jnp.sort(logprobs, axis=-1, descending=True)
    before = jnp.cumsum(jnp.exp(ordered), axis=-1) - jnp.exp(ordered)
    kept = (before < top_p).sum(axis=-1, keepdims=True)
    threshold = jnp.take_along_axis(ordered, kept - 1, axis=-1)
    return jnp.where(logprobs >= threshold, logprobs, -jnp.inf)


def choose_tokens(
    logprobs: Float[Array, "W G vocab"],
    keys: Key[Array, "W G"],
    offsets: Int[Array, " W"],
    config: SamplingConfig,
) -> Int[Array, "W G"]:
    """The next token of each completion: drawn with its own key, or the likeliest.

    Args:
      offsets: tokens that each slot's completions have already.
    """
    if config.temperature == 0:
        return _likeliest(logprobs)
    if config.top_p < 1:
        logprobs = top_p_filter(logprobs, config.top_p)
    token_keys = jax.vmap(jax.vmap(jax.random.fold_in, in_axes=(0, None)))(keys, offsets)

    def noise(key):
        return jax.random.gumbel(key, logprobs.shape[-1:], logprobs.dtype)

    # As `jax.random.categorical` draws: the likeliest after Gumbel noise.
    return _likeliest(jax.vmap(jax.vmap(noise))(token_keys) + logprobs)


def _likeliest(scores: Float[Array, "*N vocab"]) -> Int[Array, "*N"]:
    """The first of the largest scores; `argmax` itself is several times slower on a CPU."""
    largest = scores == scores.max(axis=-1, keepdims=True)
    last = scores.shape[-1] - 1
    return jnp.where(largest, jnp.arange(last + 1), last).min(axis=-1)


def _write_step(
    ring: Shaped[Array, "W G L"],
    new: Shaped[Array, "W G"],
    position: Int[Array, ""],
    unfinished: Bool[Array, "W G"],
) -> Shaped[Array, "W G L"]:
    """The ring with a step's values written; what finished completions have there stays."""
    return ring.at[:, :, position].set(jnp.where(unfinished, new, ring[:, :, position]))


def decode_step(context: Context, slots: Slots, state: DecodingState) -> DecodingState:
    """Gives every unfinished completion one token more.

    The token is chosen from `state.next_logprobs`, then goes through the model, which gives the
    distribution of the next one. Finished completions go through the model too, with token 0, but
    their results stay as they are.
    """
    config, step = context.config, state.cache.steps
    position, offsets = step % config.max_tokens, step - slots.start_step
    unfinished = ~state.finished
    keys = context.keys[slots.prompt_row]
    chosen = choose_tokens(state.next_logprobs, keys, offsets, config)
    tokens = jnp.where(unfinished, chosen, 0)
    logprobs = jnp.take_along_axis(state.next_logprobs, tokens[..., None], axis=-1)[..., 0]

    stop_tokens = jnp.array(config.stop_tokens or (-1,))
    stopped = (tokens[..., None] == stop_tokens).any(axis=-1)
    full = (offsets == config.max_tokens - 1)[:, None]
    finished = state.finished | stopped | full

    hidden, cache = context.model.step(
        tokens, offsets, slots.text, context.layers, slots.prefix, state.cache
    )
    write = functools.partial(_write_step, position=position, unfinished=unfinished)
    return DecodingState(
        tokens=write(state.tokens, tokens),
        logprobs=write(state.logprobs, logprobs),
        mask=write(state.mask, unfinished),
        finished=finished,
        next_logprobs=token_logprobs(context, hidden),
        cache=cache,
        signals=make_signals(context, finished, slots.prompts_taken),
    )


def decode(
    context: Context, slots: Slots, state: DecodingState, max_steps: int | None = None
) -> DecodingState:
    """Steps until all completions have finished or a slot is to be filled.

    Args:
      max_steps: stop as well when so many steps have been taken, those before this call included.
    """

    def proceed(state: DecodingState) -> Bool[Array, ""]:
        signalled = state.signals.running & ~state.signals.vacant
        return signalled if max_steps is None else signalled & (state.cache.steps < max_steps)

    return jax.lax.while_loop(proceed, functools.partial(decode_step, context, slots), state)
