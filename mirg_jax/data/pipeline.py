"""The input pipeline: examples → encoded examples → batches, with Grain and a resumable state."""

import collections
import contextlib
import dataclasses
import os
import pathlib
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import grain
from PIL import Image

from mirg_jax.data.batching import Item, Shapes
from mirg_jax.data.examples import Example, Rejected
from mirg_jax.data.images import Root, load_image, patchify
from mirg_jax.data.prompts import PromptStyle, Tokenizer, encode
from mirg_jax.errors import DataError
from mirg_jax.files import lines
from mirg_jax.files.places import Place
from mirg_jax.files.streams import say
from mirg_jax.grounding.grammar import (
    ANSWER_END,
    ANSWER_START,
    GroundedObject,
    format_answer,
    parse_response,
)


class RejectedLog:
    """Counts rejected rows and lists each of them once in a JSONL file, if it can be written.

    Each row has the number of the step that met it, 0 for those that are known from the start.
    With several processes, all add the same rows, and only the first writes the file.

    Args:
      path: the JSONL file.
      write: whether this process writes the file.
      step: the step that a run is resumed from; rows that later steps met are dropped, since those
        are taken again. None: a file that is there is deleted.
    """

    def __init__(self, path: Place, *, write: bool = True, step: int | None = None):
        self._path, self._writes = path, write
        self._seen: set[tuple[str, str]] = set()
        self._file: lines.LineWriter | None = None
        if step is None:
            if write:
                lines.remove(path)
        elif lines.exists(path):
            listed = list(lines.rows(path))
            kept = [row for row in listed if not _number(row.get("step")) > step]
            if write and len(kept) < len(listed):
                self._try(lambda: lines.replace(path, kept))
            self._seen = {(str(row.get("source")), str(row.get("id"))) for row in kept}

    def add(self, rejected: Rejected, step: int = 0) -> None:
        """Adds a row, unless it is listed already.

        Args:
          rejected: the row.
          step: number of the step that met it, from 1; 0: before the first.
        """
        if (rejected.source, rejected.id) in self._seen:
            return
        self._seen.add((rejected.source, rejected.id))
        if self._writes:
            self._try(lambda: self._write(dataclasses.asdict(rejected) | {"step": step}))

    def _write(self, row: dict) -> None:
        if isinstance(self._path, pathlib.Path):
            with contextlib.closing(lines.LineWriter(self._path)) as file:
                file.write(row)
        else:  # in a store, where opening takes several requests
            self._file = self._file or lines.LineWriter(self._path)
            self._file.write(row)

    def _try(self, write: Callable[[], None]) -> None:
        try:
            write()
        except (DataError, OSError) as error:
            self._writes = False
            said = error if isinstance(error, DataError) else f"{self._path}: {error.strerror}"
            say(f"{said}; the run goes on, and lists no more rows")

    def __len__(self) -> int:
        return len(self._seen)


def _number(value: object) -> int:
    return value if isinstance(value, int) else 0


def response_of(example: Example) -> str:
    """Returns the text to learn: the trajectory or, without one, an answer block with the targets.

    Where a direct answer is asked for, it is an answer block with the objects of the trajectory's
    answer.

    Raises:
      DataError: if the example has neither trajectory nor targets.
    """
    if example.response is not None:
        if not example.direct:
            return example.response
        if found := parse_response(example.response, len(example.images)).objects:
            return f"{ANSWER_START}{format_answer(found)}{ANSWER_END}"
    if not example.targets:
        raise DataError("the example has neither a response nor targets to learn from")
    numbers = collections.Counter()
    objects = []
    for target in example.targets:
        numbers[target.image] += 1
        number = None if target.image is None else numbers[target.image]
        objects.append(GroundedObject(target.box, target.image, number, target.label))
    return f"{ANSWER_START}{format_answer(objects)}{ANSWER_END}"


@dataclasses.dataclass(frozen=True)
class Preparer:
    """Callable that reads and encodes one example, run by the pipeline's threads.

    Attributes:
      image_root: folder that image paths are relative to, and how images are read.
      tokenizer: the model's tokenizer.
      style: the text around questions.
      shapes: the allowed array sizes.
      min_pixels: lower limit on an image's pixels after resizing.
      max_pixels: upper limit on an image's pixels after resizing.
      with_response: whether the response is encoded too (SFT), or only the prompt.
    """

    image_root: Root
    tokenizer: Tokenizer
    style: PromptStyle
    shapes: Shapes
    min_pixels: int
    max_pixels: int
    with_response: bool

    def __call__(self, example: Example) -> Item:
        """Reads an example's images and encodes it.

        Raises:
          DataError: if the example can't be used; the message names its row.
        """
        # A generator, so that only one decoded image is in memory at a time.
        return self.encode(example, (load_image(self.image_root, path) for path in example.images))

    def encode(self, example: Example, images: Iterable[Image.Image]) -> Item:
        """Encodes an example with the given RGB images instead of those at its paths.

        Raises:
          DataError: if the example can't be used; the message names its row.
        """
        try:
            limits = self.min_pixels, self.max_pixels, self.shapes.patch
            patches = tuple(patchify(image, *limits) for image in images)
            grids = [(image.grid[0] // 2, image.grid[1] // 2) for image in patches]
            response = response_of(example) if self.with_response else None
            encoded = encode(example, grids, self.tokenizer, self.style, response)
            self.shapes.check(encoded, patches)
        except DataError as error:
            raise DataError(f"{example.source or example.id}: {error}") from None
        return Item(encoded, patches)


class Batch(NamedTuple):
    """Examples in the data's order, and the rows among them that can't be used."""

    rows: list[tuple[Example, Item]]
    rejected: list[Rejected]


class Batches:
    """Infinite iterator of batches. `get_state` and `set_state` resume it exactly.

    Args:
      rows: reads the data's rows, with a state.
      size: examples per batch.
      patience: how many rows in a row may be unusable.
    """

    def __init__(self, rows: grain.DatasetIterator, size: int, patience: int):
        self._rows, self._size, self._patience = rows, size, patience
        self._bad_in_a_row = 0

    def __iter__(self) -> "Batches":
        return self

    def __next__(self) -> Batch:
        """Returns the next batch.

        Raises:
          DataError: if no example can be used.
        """
        batch = Batch([], [])
        while len(batch.rows) < self._size:
            row = next(self._rows)
            if not isinstance(row, Rejected):
                batch.rows.append(row)
                self._bad_in_a_row = 0
                continue
            batch.rejected.append(row)
            self._bad_in_a_row += 1
            if self._bad_in_a_row > self._patience:
                raise DataError(f"no example can be used; the last: {row.reason}")
        return batch

    def get_state(self) -> dict:
        """Returns the place in the data: `next_index`, the number of rows read."""
        return self._rows.get_state()

    def set_state(self, state: dict) -> None:
        """Goes to a place in the data."""
        self._rows.set_state(state)


def batches(
    examples: Sequence[Example],
    prepare: Callable[[Example], Item],
    *,
    batch_size: int,
    seed: int,
    share: int = 0,
    shares: int = 1,
    threads: int = 2,
) -> Batches:
    """Returns the batches of a run.

    Examples are reshuffled every epoch, in an order that depends only on the seed. Those that can't
    be used are replaced by the next ones.

    Args:
      examples: the examples.
      prepare: reads and encodes an example.
      batch_size: examples per batch in this share.
      seed: random seed of the order.
      share: index of this share, which has every `shares`-th example of the global order.
      shares: number of shares.
      threads: number of threads that prepare examples.

    Raises:
      DataError: if there is no example.
    """
    if not examples:
        raise DataError("the data set is empty; rejected.jsonl has the reasons")

    def load(index: int) -> tuple[Example, Item] | Rejected:
        example = examples[index]
        try:
            return example, prepare(example)
        except DataError as error:
            return Rejected(source=example.source, id=example.id, reason=str(error))

    dataset = grain.MapDataset.range(len(examples)).seed(seed).shuffle().repeat()
    dataset = (dataset[share::shares] if shares > 1 else dataset).map(load)
    ahead = 2 * batch_size  # as many rows are read before they are needed, whatever the machine
    options = grain.ReadOptions(num_threads=min(threads, ahead), prefetch_buffer_size=ahead)
    return Batches(iter(dataset.to_iter_dataset(options)), batch_size, 2 * len(examples))


def threads_of_this_machine() -> int:
    """Returns how many threads read images here: one a core, but no more than 32."""
    return min(os.cpu_count() or 1, 32)


def positions(next_indices: Sequence[int]) -> dict:
    """Returns the position in the data for a checkpoint: the next index of each share."""
    return {"next": list(next_indices)}


def position(saved: dict, share: int, shares: int) -> dict:
    """Returns the iterator state of a share for resuming from saved `positions`.

    With the same number of shares this is exact. With another number, reading continues after the
    last example that any share has read, so that no example is repeated within an epoch; if no rows
    were rejected, that is exact too.

    Args:
      saved: the result of `positions`.
      share: index of the share.
      shares: number of shares.
    """
    read = saved["next"]
    if len(read) == shares:
        return {"next_index": read[share]}
    first = max(index * len(read) for index in read)
    return {"next_index": max(0, -(-(first - share) // shares))}
