"""Examples → prepared examples → batches: a grain pipeline whose state can be saved."""

import collections
import dataclasses
import json
import pathlib
import threading
from collections.abc import Callable, Iterable, Sequence

import grain
from PIL import Image

from mirg_jax.data.batching import Item, Shapes
from mirg_jax.data.examples import Example, Rejected
from mirg_jax.data.images import load_image, patchify
from mirg_jax.data.prompts import PromptStyle, Tokenizer, encode
from mirg_jax.errors import DataError
from mirg_jax.grounding.grammar import ANSWER_END, ANSWER_START, GroundedObject, format_answer


class RejectedLog:
    """Counts rows that can't be used and lists them, each once, in a JSONL file.

    Of several processes, the first writes what all have told it (`take`, then `add` there).
    """

    def __init__(self, path: pathlib.Path | None = None, *, write: bool = True):
        self._path, self._lock, self._seen, self._fresh = path, threading.Lock(), set(), []
        self._writes = write and path is not None
        if path and path.exists():
            found = path.read_bytes()
            whole = found[: found.rfind(b"\n") + 1]  # a killed run may have torn the last line
            if write and whole != found:
                path.write_bytes(whole)
            for line in whole.decode().splitlines():
                row = json.loads(line)
                self._seen.add((row["source"], row["id"]))

    def add(self, rejected: Rejected, *, told: bool = False) -> None:
        """Lists a row; `told` if all processes know of it."""
        with self._lock:
            if (rejected.source, rejected.id) in self._seen:
                return
            self._seen.add((rejected.source, rejected.id))
            if not told:
                self._fresh.append(dataclasses.asdict(rejected))
            if self._writes:
                with self._path.open("a") as file:
                    file.write(json.dumps(dataclasses.asdict(rejected)) + "\n")

    def take(self) -> list[dict]:
        """The rows that this process has found since the last call."""
        with self._lock:
            fresh, self._fresh = self._fresh, []
            return fresh

    def __len__(self) -> int:
        return len(self._seen)


def response_of(example: Example) -> str:
    """The text to learn: the trajectory, or the true objects alone in an answer block.

    Raises:
      DataError: for an example with neither.
    """
    if example.response is not None:
        return example.response
    if not example.targets:
        raise DataError("there is neither a response nor a target to learn")
    numbers = collections.Counter()
    objects = []
    for target in example.targets:
        numbers[target.image] += 1
        number = None if target.image is None else numbers[target.image]
        objects.append(GroundedObject(target.box, target.image, number, target.label))
    return f"{ANSWER_START}{format_answer(objects)}{ANSWER_END}"


@dataclasses.dataclass(frozen=True)
class Preparer:
    """Reads and encodes one example; the work of the pipeline's threads.

    Attributes:
      with_response: encode the response too (SFT); prompts alone otherwise.
      min_pixels, max_pixels: the range an image is resized into.
    """

    image_root: str
    tokenizer: Tokenizer
    style: PromptStyle
    shapes: Shapes
    min_pixels: int
    max_pixels: int
    with_response: bool

    def __call__(self, example: Example) -> Item:
        """Reads an example's images and encodes it.

        Raises:
          DataError: naming the row, for an example that can't be used.
        """
        # One after the other, so that no more than one is held decoded.
        return self.encode(example, (load_image(self.image_root, path) for path in example.images))

    def encode(self, example: Example, images: Iterable[Image.Image]) -> Item:
        """Encodes an example with these RGB images in place of those that its paths name.

        Raises:
          DataError: as above.
        """
        try:
            patches = tuple(patchify(image, self.min_pixels, self.max_pixels) for image in images)
            grids = [(image.grid[0] // 2, image.grid[1] // 2) for image in patches]
            response = response_of(example) if self.with_response else None
            encoded = encode(example, grids, self.tokenizer, self.style, response)
            self.shapes.check(encoded, patches)
        except DataError as error:
            raise DataError(f"{example.source or example.id}: {error}") from None
        return Item(encoded, patches)


def batches(
    examples: Sequence[Example],
    prepare: Callable[[Example], Item],
    rejected: RejectedLog,
    *,
    batch_size: int,
    seed: int,
    share: int = 0,
    shares: int = 1,
    threads: int = 2,
) -> grain.DatasetIterator:
    """Endless batches of `(example, item)` lists, reshuffled each epoch.

    Rows that can't be used are left out, logged, and replaced by the next. The order depends on
    the seed alone, and the iterator's `get_state`/`set_state` resume it exactly. Share i is every
    `shares`-th example of the one global order, from the i-th on.

    Args:
      batch_size: examples a batch in this share.

    Raises:
      DataError: when no example is left.
    """
    if not examples:
        raise DataError("the data set is empty; look at data.train_json and rejected.jsonl")
    state = {"bad_in_a_row": 0}

    def load(index: int) -> tuple[Example, Item] | None:
        example = examples[index]
        try:
            item = prepare(example)
        except DataError as error:
            rejected.add(Rejected(source=example.source, id=example.id, reason=str(error)))
            state["bad_in_a_row"] += 1
            if state["bad_in_a_row"] > 2 * len(examples):
                raise DataError(f"no example can be used; the last: {error}") from None
            return None
        state["bad_in_a_row"] = 0
        return example, item

    dataset = grain.MapDataset.range(len(examples)).seed(seed).shuffle().repeat()
    dataset = dataset[share::shares] if shares > 1 else dataset
    dataset = dataset.map(load).filter(lambda pair: pair is not None)
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * batch_size)
    return iter(dataset.to_iter_dataset(options).batch(batch_size, batch_fn=list))


def positions(next_indices: Sequence[int]) -> dict:
    """What a checkpoint says of the data: how far each share has been read."""
    return {"next": list(next_indices)}


def position(saved: dict, share: int, shares: int) -> dict:
    """The iterator's state to go on from `positions`; exact with the same number of shares.

    With another, it begins behind the last example that any share had read, so that none is seen
    twice in an epoch; where no row was left out, that is exact too.
    """
    read = saved["next"]
    if len(read) == shares:
        return {"next_index": read[share]}
    first = max(index * len(read) for index in read)
    return {"next_index": max(0, -(-(first - share) // shares))}
