"""Batches of conversations for pretraining the small base model, with attention targets."""

import dataclasses
import math
from collections.abc import Sequence
from typing import NamedTuple

import grain
import numpy as np
from jaxtyping import Bool

from mirg_jax.data.batching import Item, Shapes, collate
from mirg_jax.data.prompts import IMAGE_PAD, Encoded, Tokenizer, mrope_positions
from mirg_jax.scenes.lessons.patterns import Annotator, Codes
from mirg_jax.scenes.lessons.pictures import PATCHES, Picture, Seen, see
from mirg_jax.scenes.lessons.turns import Turn, look_up_in_list, single_image
from mirg_jax.types import Images, Text

LENGTH, SLOTS = 184, 2
SHAPES = Shapes(lengths=(LENGTH,), slots=(SLOTS,), patches=(PATCHES,))


class Batch(NamedTuple):
    """Rows of packed conversations, with the targets of all losses."""

    text: Text
    images: Images
    labels: Bool[np.ndarray, "B T"]  # tokens with a cross-entropy loss
    codes: Codes  # targets of attention patterns, [B, patterns, T]
    seen: Seen  # targets of the vision tower's probes, [B, S, …]


class Conversation(NamedTuple):
    """One tokenised conversation."""

    item: Item
    labels: Bool[np.ndarray, " T"]  # tokens with a cross-entropy loss
    codes: Codes
    pictures: Sequence[Picture]


def batches(
    tokenizer: Tokenizer, pictures: Sequence[Picture], *, seed: int, rows: int, steps: int
) -> grain.DatasetIterator:
    """Returns an iterator of `steps` batches, which a background thread prepares in advance.

    Each batch depends only on the seed and its index.

    Args:
      tokenizer: the small tokenizer.
      pictures: pictures to choose from.
      seed: random seed.
      rows: rows per batch.
      steps: number of batches.
    """
    annotate = Annotator(tokenizer)

    def make(step: int) -> Batch:
        rng = np.random.default_rng([seed, step])
        return make_batch(rng, tokenizer, annotate, pictures, rows)

    options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=4)
    return iter(grain.MapDataset.range(steps).map(make).to_iter_dataset(options))


def make_batch(
    rng: np.random.Generator,
    tokenizer: Tokenizer,
    annotate: Annotator,
    pictures: Sequence[Picture],
    rows: int,
) -> Batch:
    """Creates a batch of random conversations.

    A row holds either one conversation about two pictures, or one about a single picture followed
    by a look-up in a list, if there is room.

    Args:
      rng: random number generator.
      tokenizer: the small tokenizer.
      annotate: computes the targets of the attention patterns.
      pictures: pictures to choose from.
      rows: number of rows.
    """
    packed: list[list[Conversation]] = []
    for _ in range(rows):
        row, room = [], LENGTH
        for turns in (2,) if rng.random() < 0.4 else (1, 0):
            chosen = [pictures[i] for i in rng.integers(len(pictures), size=turns)]
            talk = _converse(rng, tokenizer, annotate, chosen)
            if len(talk.labels) <= room:
                row.append(talk)
                room -= len(talk.labels)
        packed.append(row)

    items = [talk.item for row in packed for talk in row]
    patch = math.isqrt(pictures[0].patches.patches.shape[-1] // 3)
    shapes = dataclasses.replace(SHAPES, patch=patch)
    numbers = iter(range(len(items)))
    arrays = collate(items, [[next(numbers) for _ in row] for row in packed], shapes)
    slots = arrays.images.patches.shape[1]

    def along_row(parts: list[np.ndarray]) -> np.ndarray:
        whole = np.concatenate(parts, axis=-1)
        return np.pad(whole, [(0, 0)] * (whole.ndim - 1) + [(0, LENGTH - whole.shape[-1])])

    labels = np.stack([along_row([talk.labels for talk in row]) for row in packed])
    codes = Codes(
        *(
            np.stack([along_row([talk.codes[i] for talk in row]) for row in packed])
            for i in range(2)
        )
    )
    seen = [[picture.seen for talk in row for picture in talk.pictures] for row in packed]
    seen = [shown + [see(())] * (slots - len(shown)) for shown in seen]
    seen = Seen(*(np.array([[s[i] for s in row] for row in seen]) for i in range(4)))
    return Batch(arrays.text, arrays.images, labels, codes, seen)


def _converse(
    rng: np.random.Generator,
    tokenizer: Tokenizer,
    annotate: Annotator,
    pictures: Sequence[Picture],
) -> Conversation:
    """Creates a conversation about the given pictures; without pictures, a look-up in a list."""
    first = int(rng.integers(1, 5 - max(len(pictures), 1)))  # number of the first picture
    turns: list[Turn] = [look_up_in_list(rng)]
    if pictures:
        turns = single_image(rng, [picture.things for picture in pictures], first)
    ids, labels = [], []
    for i, turn in enumerate(turns):
        for text, learned in (("\n" * (i > 0) + turn.prompt, False), (turn.learned, True)):
            piece = tokenizer.encode(text, add_special_tokens=False)
            ids += piece
            labels += [learned] * len(piece)

    ids, pad = np.array(ids, np.int32), tokenizer.convert_tokens_to_ids(IMAGE_PAD)
    counts = np.where(ids == pad, PATCHES // 4, 1)
    starts = (np.cumsum(counts) - counts)[ids == pad]
    tokens = np.repeat(ids, counts)
    positions = mrope_positions(tokens, [(2, 2)] * len(pictures), pad)
    things = {n: picture.things for n, picture in enumerate(pictures, first)}
    return Conversation(
        Item(
            Encoded(tokens, positions, tuple(starts.tolist()), 0),
            tuple(picture.patches for picture in pictures),
        ),
        np.repeat(labels, counts),
        annotate(tokens, things),
        pictures,
    )
