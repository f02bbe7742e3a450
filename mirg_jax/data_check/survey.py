"""What a run would use of a file of rows, what it would leave out, and how large all of it is."""

import collections
import dataclasses
import math
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from PIL import Image

from mirg_jax.data.batching import Shapes
from mirg_jax.data.examples import Example, Rejected
from mirg_jax.data.images import ImageRoot, load_image
from mirg_jax.data.left_out import LeftOut
from mirg_jax.data.pipeline import Preparer
from mirg_jax.errors import DataError, reason_kind

_NO_LIMIT = (2**31,)
_KINDS = 100  # of reasons, that are told apart in a file

Size = tuple[int, int]  # width and height


class Measured(NamedTuple):
    """A question as a run would read it.

    Attributes:
      problem: why the run leaves it out; "" if it is used.
      prompt: tokens of its prompt; 0 if it can't be read.
      tokens: tokens of prompt and answer; of the prompt alone where no answer is learned.
      patches: patches of each image.
      sizes: of each image that could be read, as the run has it.
    """

    example: Example
    problem: str
    prompt: int
    tokens: int
    patches: tuple[int, ...]
    sizes: tuple[Size, ...]


class Measure:
    """Reads and encodes an example by the pipeline's own function, and then looks at the limits."""

    def __init__(self, prepare: Preparer, root: ImageRoot):
        """
        Args:
          prepare: what a run reads examples by.
          root: its image root.
        """
        self._root, self._limits = root, prepare.shapes
        boundless = Shapes(_NO_LIMIT, _NO_LIMIT, _NO_LIMIT, prepare.shapes.patch)
        self._prepare = dataclasses.replace(prepare, shapes=boundless)

    def __call__(self, example: Example) -> Measured:
        """Returns what an example takes, and whether it can be used.

        Raises:
          UserError: if a store of images can't be read, which is no fault of the example.
        """
        sizes: list[Size] = []

        def images() -> Iterator[Image.Image]:
            for path in example.images:
                image = load_image(self._root, path)
                sizes.append(image.size)
                yield image

        prompt, tokens, patches, problem = 0, 0, (), ""
        try:
            item = self._prepare.encode(example, images())
            prompt, tokens = item.encoded.prompt_length, len(item.encoded.tokens)
            patches = tuple(len(image.patches) for image in item.images)
            self._limits.check(item.encoded, item.images)
        except DataError as error:
            problem = str(error).removeprefix(f"{example.source or example.id}: ")
        return Measured(example, problem, prompt, tokens, patches, tuple(sizes))


def measured(examples: Iterable[Example], measure: Measure, threads: int) -> Iterator[Measured]:
    """Yields what each example takes, in their order; few of them are in memory at a time.

    Args:
      examples: the examples.
      measure: reads one.
      threads: number of threads that read.
    """
    waiting = collections.deque()
    with ThreadPoolExecutor(max(threads, 1)) as pool:
        for example in examples:
            waiting.append(pool.submit(measure, example))
            if len(waiting) > 2 * max(threads, 1):
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


class Counts:
    """How often each number came."""

    def __init__(self):
        self._counts: collections.Counter[int] = collections.Counter()

    def add(self, number: int) -> None:
        """Counts a number."""
        self._counts[number] += 1

    def __len__(self) -> int:
        return self._counts.total()

    def quantile(self, share: float) -> int:
        """Returns the least number that a share of all are not above; 0 without any."""
        wanted = max(1, math.ceil(share * len(self)))
        for number in sorted(self._counts):
            wanted -= self._counts[number]
            if wanted <= 0:
                return number
        return 0

    def up_to(self, limits: Sequence[int]) -> list[int]:
        """Returns how many are up to each limit and above the one before; the last: above all."""
        found = [0] * (len(limits) + 1)
        for number, count in self._counts.items():
            found[sum(number > limit for limit in limits)] += count
        return found


class Survey:
    """What was found in a file.

    Attributes:
      file: the file's path.
      used, left_out: questions by task; those that can't be read have the task "".
      reasons: why questions are left out, with the first of each.
      prompts, tokens, images, patches: how large questions are, also those beyond the limits.
      pixels: of each image.
      smallest, largest: size and path of an image each.
      not_read: questions that were not come to.
      rotated: number of images with an EXIF orientation.
      chosen: a line on questions that are left out by their ratings; "" without ratings.
    """

    def __init__(self, file: str, chosen: str = ""):
        self.file, self.chosen, self.not_read, self.rotated = file, chosen, 0, 0
        self.used: collections.Counter[str] = collections.Counter()
        self.left_out: collections.Counter[str] = collections.Counter()
        self.reasons = LeftOut()
        self.prompts, self.tokens, self.images, self.patches = (Counts() for _ in range(4))
        self.pixels = Counts()
        self.smallest: tuple[Size, str] | None = None
        self.largest: tuple[Size, str] | None = None
        self._kinds: set[str] = set()

    def reject(self, row: Rejected, task: str = "") -> None:
        """Counts a row, or a question, that is left out."""
        self.left_out[task] += 1
        kind = reason_kind(row.reason)
        # Reasons may quote the data, so that each is of a kind of its own.
        if kind not in self._kinds and len(self._kinds) >= _KINDS:
            kind = "other reasons"
        self._kinds.add(kind)
        self.reasons.add(kind, f"{row.source or row.id}: {row.reason}")

    def add(self, found: Measured) -> None:
        """Counts a question that was read."""
        example = found.example
        if found.problem:
            self.reject(Rejected(example.source, example.id, found.problem), example.task)
        else:
            self.used[example.task] += 1
        if found.tokens:
            self.prompts.add(found.prompt)
            self.tokens.add(found.tokens)
            self.images.add(len(found.patches))
            for count in found.patches:
                self.patches.add(count)
        for size, path in zip(found.sizes, example.images, strict=False):
            self._add_image(size, path)

    def _add_image(self, size: Size, path: str) -> None:
        self.pixels.add(math.prod(size))
        if self.smallest is None or math.prod(size) < math.prod(self.smallest[0]):
            self.smallest = size, path
        if self.largest is None or math.prod(size) > math.prod(self.largest[0]):
            self.largest = size, path
