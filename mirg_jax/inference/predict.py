"""Greedy answers of a model to many questions."""

import functools
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import jax
import numpy as np

from mirg_jax import sharding
from mirg_jax.data.batching import Item, collate_prompts, common_sizes, prompt_rows, sizes
from mirg_jax.data.examples import Example
from mirg_jax.data.pipeline import Preparer
from mirg_jax.errors import DataError
from mirg_jax.runs.loading import Model
from mirg_jax.sampling.sampler import SamplingConfig, make_sampler, sample_keys
from mirg_jax.sampling.tokens import decode, forbidden_ids, stop_ids
from mirg_jax.sharding import processes
from mirg_jax.sharding.memory import with_resident


class Prediction(NamedTuple):
    """The answer to example `index`, or why there is none."""

    index: int
    response: str | None
    error: str | None = None


def make_generate(
    model: Model,
    tokenizer,
    mesh: jax.sharding.Mesh,
    *,
    max_tokens: int,
    temperature: float = 0.0,
) -> Callable:
    """`(params, prompt, images, numbers, others=()) -> Rollout` of one answer a prompt.

    At temperature 0 the likeliest, else drawn at random by the prompt's number. `others` are arrays
    that lie on the devices meanwhile.
    """
    config = SamplingConfig(
        group=1, max_tokens=max_tokens, temperature=temperature, stop_tokens=stop_ids(tokenizer)
    )
    forbidden = forbidden_ids(tokenizer, model.config.text.vocab_size)
    sample = with_resident(make_sampler(model.graph, mesh, forbidden, config))

    @functools.partial(jax.jit, out_shardings=sharding.by_rows(mesh))
    def keys(numbers):
        return sample_keys(jax.random.key(0), numbers, 1)

    def generate(params, prompt, images, numbers, others=()):
        return sample(others, params, prompt, images, keys(numbers))

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
    generate: Callable | None = None,
) -> Iterator[Prediction]:
    """Answers numbered examples, batch by batch; one that can't be read yields its error.

    Prompts of similar length are put together within windows of `window` batches, so that little
    is padded and few pixels are held. Of several processes, each answers a share, and all get all
    answers.

    Args:
      batch_size: prompts at a time; rounded up to what the mesh divides evenly.
      generate: of `make_generate`, for who calls more than once; by default, of likeliest answers.
    """
    batch_size = sharding.whole_rows(batch_size, mesh)
    generate = generate or make_generate(model, tokenizer, mesh, max_tokens=max_tokens)
    share = sharding.data_share(mesh)
    rows, span = batch_size // share.count, window * batch_size

    def prepare(numbered: tuple[int, Example]) -> tuple[int, Item | str]:
        try:
            return numbered[0], preparer(numbered[1])
        except DataError as error:
            return numbered[0], str(error)

    def read(start: int) -> Iterator[tuple[int, Item | str]]:
        return pool.map(prepare, examples[start + share.index : start + span : share.count])

    def of_all(predictions: list[Prediction]) -> Iterator[Prediction]:
        told = processes.gather(predictions)
        yield from {p[0]: Prediction(*p) for each in told for p in each}.values()

    with ThreadPoolExecutor(2) as pool:
        ahead = read(0)
        for start in range(0, len(examples), span):
            prepared, ahead = list(ahead), read(start + span)
            yield from of_all([Prediction(i, None, e) for i, e in prepared if isinstance(e, str)])
            usable = [(i, item) for i, item in prepared if not isinstance(item, str)]
            usable.sort(key=lambda pair: len(pair[1].encoded.tokens))
            parts = [usable[at : at + rows] for at in range(0, len(usable), rows)]
            items = [[item for _, item in part] for part in parts]
            wanted = [sizes(part, prompt_rows(part, rows), preparer.shapes) for part in items]
            for number, size in enumerate(common_sizes(processes.gather(wanted))):
                held = items[number] if number < len(items) else []
                batch = collate_prompts(held, preparer.shapes, rows, size)
                indices = [index for index, _ in parts[number]] if held else []
                numbers = np.array(indices + [0] * (rows - len(indices)), np.int32)
                arrays = sharding.place_rows((batch.text, batch.images, numbers), mesh)
                rollout = generate(model.params, *arrays)
                texts = decode(tokenizer, *map(sharding.local_rows, rollout[:2]))
                # What is behind the numbered rows is padding.
                yield from of_all([Prediction(*pair) for pair in zip(indices, texts, strict=False)])
