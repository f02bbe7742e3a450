"""Batching: encoded examples → arrays of a few static shapes.

Each distinct shape is compiled separately, so row lengths, image slots per row and patches per slot
are padded to the next of a few sizes. SFT packs several examples into a row; GRPO has one prompt
per row.
"""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from mirg_jax.data.images import PATCH, ImagePatches
from mirg_jax.data.prompts import Encoded
from mirg_jax.errors import DataError
from mirg_jax.types import Images, Text


@dataclasses.dataclass(frozen=True)
class Shapes:
    """The padded sizes that arrays may have, each in ascending order; the last is the upper limit.

    Attributes:
      lengths: tokens per row.
      slots: images per row.
      patches: patches per image (four for each visual token).
      patch: pixels along the side of a patch, as the model has it.
    """

    lengths: tuple[int, ...]
    slots: tuple[int, ...]
    patches: tuple[int, ...]
    patch: int = PATCH

    @property
    def patch_bytes(self) -> int:
        """The bytes of a patch."""
        return 3 * self.patch**2

    def check(self, encoded: Encoded, images: Sequence[ImagePatches]) -> None:
        """Checks that an example is within the limits; nothing is ever truncated.

        Raises:
          DataError: if it exceeds one.
        """
        largest = max((len(image.patches) for image in images), default=0)
        words = len(encoded.tokens) - sum(len(image.patches) // 4 for image in images)
        smaller = "lower data.max_pixels"
        shorter = smaller if words < self.lengths[-1] else "shorten the row's text"
        for what, size, limits, field, otherwise in (
            ("tokens", len(encoded.tokens), self.lengths, "lengths", shorter),
            ("images", len(images), self.slots, "slots", "leave the row out"),
            ("patches in an image", largest, self.patches, "patches", smaller),
        ):
            if size > limits[-1]:
                raise DataError(
                    f"{size} {what} are more than the limit of {limits[-1]}; "
                    f"raise data.shapes.{field} or {otherwise}"
                )


def _next(sizes: Sequence[int], size: int) -> int:
    return next(limit for limit in sizes if limit >= size)


class Item(NamedTuple):
    """An encoded example and its images."""

    encoded: Encoded
    images: tuple[ImagePatches, ...]


class PackedBatch(NamedTuple):
    """Rows of packed examples."""

    text: Text
    images: Images
    labels: Bool[np.ndarray, "B T"]  # response tokens, which have a loss


def pack(items: Sequence[Item], shapes: Shapes) -> list[list[int]]:
    """Packs examples into rows, first-fit decreasing: longest first, into the first row with room.

    Returns:
      The indices of each row's examples.
    """
    rows: list[list[int]] = []
    free: list[list[int]] = []  # free tokens and image slots of each row
    for index in sorted(range(len(items)), key=lambda i: (-len(items[i].encoded.tokens), i)):
        tokens, slots = len(items[index].encoded.tokens), len(items[index].images)
        fits = (i for i, room in enumerate(free) if room[0] >= tokens and room[1] >= slots)
        row = next(fits, len(rows))
        if row == len(rows):
            rows.append([])
            free.append([shapes.lengths[-1], shapes.slots[-1]])
        rows[row].append(index)
        free[row][0] -= tokens
        free[row][1] -= slots
    return rows


ArraySizes = tuple[int, int, int]  # tokens per row, images per row, patches per image


def sizes(items: Sequence[Item], rows: Sequence[Sequence[int]], shapes: Shapes) -> ArraySizes:
    """Returns the smallest allowed array sizes for rows of examples."""
    length = max((sum(len(items[i].encoded.tokens) for i in row) for row in rows), default=1)
    slots = max((sum(len(items[i].images) for i in row) for row in rows), default=1)
    used = [image for row in rows for i in row for image in items[i].images]
    patches = max((len(image.patches) for image in used), default=4)
    return (
        _next(shapes.lengths, length),
        _next(shapes.slots, slots),
        _next(shapes.patches, patches),
    )


def common_sizes(wanted: Sequence[Sequence[ArraySizes]]) -> list[ArraySizes]:
    """Returns array sizes of micro-batches that are large enough for every process.

    Args:
      wanted: for each process, the sizes of its micro-batches; their numbers may differ.

    Returns:
      The maximal number of micro-batches, each with the maximal sizes.
    """
    return [
        tuple(max(column) for column in zip(*each, strict=True))
        for each in itertools.zip_longest(*wanted, fillvalue=(0, 0, 0))
    ]


def collate(
    items: Sequence[Item],
    rows: Sequence[Sequence[int]],
    shapes: Shapes,
    size: ArraySizes | None = None,
) -> PackedBatch:
    """Creates the arrays of a batch.

    Args:
      items: the examples.
      rows: the indices of each row's examples.
      shapes: the allowed sizes.
      size: array sizes; by default those of `sizes`.
    """
    B = len(rows)
    T, S, P = size or sizes(items, rows, shapes)

    tokens = np.zeros((B, T), np.int32)
    positions = np.zeros((B, T, 3), np.int32)
    segments = np.zeros((B, T), np.int32)
    visual_index = np.full((B, T), -1, np.int32)
    labels = np.zeros((B, T), bool)
    pixels = np.zeros((B, S, P, shapes.patch_bytes), np.uint8)
    grid = np.full((B, S, P, 2), -1, np.int32)
    for b, row in enumerate(rows):
        at, slot = 0, 0
        for segment, index in enumerate(row, start=1):
            encoded, images = items[index]
            span = slice(at, at + len(encoded.tokens))
            tokens[b, span] = encoded.tokens
            positions[b, span] = encoded.positions
            segments[b, span] = segment
            labels[b, at + encoded.prompt_length : span.stop] = True
            for start, image in zip(encoded.image_starts, images, strict=True):
                count = len(image.patches)
                pixels[b, slot, :count] = image.patches
                grid[b, slot, :count] = patch_positions(image.grid)
                visual = slice(at + start, at + start + count // 4)
                visual_index[b, visual] = slot * (P // 4) + np.arange(count // 4)
                slot += 1
            at = span.stop
    text = Text(tokens, positions, segments, visual_index)
    return PackedBatch(text, Images(pixels, grid), labels)


def prompt_rows(items: Sequence[Item], count: int) -> list[list[int]]:
    """Returns rows of one prompt each, filled up with empty rows to `count` rows."""
    return [[i] for i in range(len(items))] + [[] for _ in range(count - len(items))]


def collate_prompts(
    items: Sequence[Item], shapes: Shapes, size: int, arrays: ArraySizes | None = None
) -> PackedBatch:
    """Creates a batch of prompts, one per row.

    Args:
      items: the prompts.
      shapes: the allowed sizes.
      size: number of rows; rows without a prompt are empty.
      arrays: array sizes; by default the smallest allowed ones.
    """
    return collate(items, prompt_rows(items, size), shapes, arrays)


def patch_positions(grid: tuple[int, int]) -> Int[np.ndarray, "P 2"]:
    """Returns the (row, column) of an image's patches in 2×2 merge-block order.

    Args:
      grid: rows and columns of patches.
    """
    rows, columns = grid
    where = np.stack(np.meshgrid(np.arange(rows), np.arange(columns), indexing="ij"), axis=-1)
    where = where.reshape(rows // 2, 2, columns // 2, 2, 2).transpose(0, 2, 1, 3, 4)
    return where.reshape(-1, 2).astype(np.int32)
