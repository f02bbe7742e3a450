"""Greedy answers of a model to many questions."""

import functools
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import jax
import jax.numpy as jnp

from mirg_jax import sharding
from mirg_jax.data.batching import Item, collate_prompts
from mirg_jax.data.examples import Example
from mirg_jax.data.pipeline import Preparer
from mirg_jax.errors import DataError
from mirg_jax.sampling.sampler import (
    SamplingConfig,
    forbidden_ids,
    make_sampler,
    sample_keys,
    stop_ids,
)
from mirg_jax.training.answers import decode
from mirg_jax.training.checkpoint import Model


class Prediction(NamedTuple):
    """The answer to example `index`, or why there is none."""

    index: int
    response: str | None
    error: str | None = None


def make_generate(model: Model, tokenizer, mesh: jax.sharding.Mesh, *, max_tokens: int) -> Callable:
    """`(params, prompt, images) -> Rollout` of one greedy answer a prompt."""
    config = SamplingConfig(
        group=1, max_tokens=max_tokens, temperature=0.0, stop_tokens=stop_ids(tokenizer)
    )
    forbidden = forbidden_ids(tokenizer, model.config.text.vocab_size)
    sample = make_sampler(model.graph, mesh, forbidden, config)

    def generate(params, prompt, images):
        keys = sample_keys(jax.random.key(0), jnp.arange(prompt.tokens.shape[0]), 1)
        return sample(params, prompt, images, sharding.place_rows(keys, mesh))

    return generate


def predict(
    model: Model,
    tokenizer,
    preparer: Preparer,
    mesh: jax.sharding.Mesh,
    examples: Sequence[tuple[int, Example]],
    *,
    batch_size: int,
    max_tokens: int,
    window: int = 8,
) -> Iterator[Prediction]:
    """Answers numbered examples, batch by batch; one that can't be read yields its error.

    Prompts of similar length are put together within windows of `window` batches, so that little
    is padded and few pixels are held.

    Args:
      batch_size: prompts at a time; rounded up to what the mesh divides evenly.
    """
    batch_size = sharding.whole_rows(batch_size, mesh)
    generate = make_generate(model, tokenizer, mesh, max_tokens=max_tokens)

    def prepare(numbered: tuple[int, Example]) -> tuple[int, Item | str]:
        try:
            return numbered[0], preparer(numbered[1])
        except DataError as error:
            return numbered[0], str(error)

    span = window * batch_size
    with ThreadPoolExecutor(2) as pool:
        starts = range(0, len(examples), span)
        read = functools.partial(pool.map, prepare)
        ahead = read(examples[:span])
        for start in starts:
            prepared, ahead = list(ahead), read(examples[start + span : start + 2 * span])
            yield from (Prediction(i, None, e) for i, e in prepared if isinstance(e, str))
            usable = [(i, item) for i, item in prepared if not isinstance(item, str)]
            usable.sort(key=lambda pair: len(pair[1].encoded.tokens))
            for at in range(0, len(usable), batch_size):
                part = usable[at : at + batch_size]
                batch = collate_prompts([item for _, item in part], preparer.shapes, batch_size)
                prompt, images = sharding.place_rows((batch.text, batch.images), mesh)
                rollout = jax.device_get(generate(model.params, prompt, images))
                texts = decode(tokenizer, rollout.tokens, rollout.mask)
                for (index, _), text in zip(part, texts, strict=False):  # the rest is padding
                    yield Prediction(index, text)
