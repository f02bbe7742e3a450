"""Answering a stream of questions: slots are kept full, and answers come as they end."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from flax import nnx
from jax.sharding import Mesh

from mirg_jax import sharding
from mirg_jax.data.batching import ArraySizes, Item, Shapes, collate, common_sizes, sizes
from mirg_jax.sampling.pool import NO_PROMPT, Feeding, Pool
from mirg_jax.sharding import processes


class Feeder:
    """Feeds questions to the slots, a call of the sampler for as many as there are slots.

    Slots hold prompts of one padded length. Before prompts of another length, those in the slots
    are answered to the end.

    Attributes:
      steps: decoding steps of the process's busiest devices, without those for answers that are
        still to come.
    """

    def __init__(
        self,
        feeding: Feeding,
        decode: Callable[..., list[str]],
        shapes: Shapes,
        mesh: Mesh,
        sampling_mesh: Mesh,
        *,
        rows: int,
        params: nnx.State,
        resident: Any,
    ):
        """
        Args:
          feeding: the sampler's functions.
          decode: function from tokens and their mask to texts.
          shapes: the allowed sizes of prompts.
          mesh: the mesh that prompts are placed on.
          sampling_mesh: the mesh that samples.
          rows: number of slots, over all devices.
          params: weights for sampling.
          resident: other arrays that stay allocated on the devices meanwhile.
        """
        self.steps = 0
        self._feeding, self._decode = feeding, decode
        self._shapes, self._mesh, self._sampling_mesh = shapes, mesh, sampling_mesh
        self._params, self._resident = params, resident
        self._pool: Pool | None = None
        self._size: ArraySizes = (0, 0, 0)
        self._rows = rows // sharding.data_share(mesh).count  # of this process
        # Rows in the order in which they get prompts: every device's first, then the second ones.
        block = rows // sharding.row_parts(sampling_mesh)
        self._turns = np.argsort(sharding.local_row_numbers(rows, mesh) % block, kind="stable")
        self._to_sampling_mesh = sharding.mover(sampling_mesh)
        self._to_mesh = sharding.mover(mesh)

    def feed(self, items: Sequence[tuple[int, Item]]) -> Iterator[list[tuple[int, str]]]:
        """Decodes numbered items, and yields this process's numbered answers of each call.

        If the sampler draws G completions of each prompt, those of item n are answers n · G and on.

        All processes call this together, and yield as often.
        """
        parts = [items[at : at + self._rows] for at in range(0, len(items), self._rows)]
        wanted = [
            sizes([item for _, item in part], [[i] for i in range(len(part))], self._shapes)
            for part in parts
        ]
        for number, size in enumerate(common_sizes(processes.gather(wanted))):
            if self._pool is not None and size[0] != self._size[0]:
                yield self._drain()
            self._size = size
            yield self._call(parts[number] if number < len(parts) else [], more=True)

    def finish(self) -> Iterator[list[tuple[int, str]]]:
        """Yields this process's answers that are still to come."""
        if self._pool is not None:
            yield self._drain()

    def _drain(self) -> list[tuple[int, str]]:
        answers = self._call([], more=False)
        if self._pool is not None:
            self.steps += int(sharding.local_rows(self._pool.steps).max())
        self._pool = None
        return answers

    def _call(self, part: Sequence[tuple[int, Item]], *, more: bool) -> list[tuple[int, str]]:
        rows: list[list[int]] = [[] for _ in range(self._rows)]
        numbers = np.full(self._rows, NO_PROMPT, np.int32)
        for at, (row, (number, _)) in enumerate(zip(self._turns, part, strict=False)):
            rows[row], numbers[row] = [at], number
        batch = collate([item for _, item in part], rows, self._shapes, self._size)
        placed = sharding.place_rows((batch.text, batch.images, numbers), self._mesh)
        text, images, numbers = self._to_sampling_mesh(placed)
        if self._pool is None:
            self._pool = self._feeding.open(self._params, text, images)
        flag = sharding.place_everywhere(np.bool_(more), self._sampling_mesh)
        given = self._params, self._pool, text, images, numbers, flag
        self._pool, finished = self._feeding.feed(self._resident, *given)
        finished = self._to_mesh((finished.numbers, finished.rollout.tokens, finished.rollout.mask))
        numbers, tokens, mask = map(sharding.local_rows, finished)
        ended = numbers != NO_PROMPT
        texts, group = self._decode(tokens[ended], mask[ended]), tokens.shape[1]
        answers = (numbers[ended].astype(int)[:, None] * group + np.arange(group)).reshape(-1)
        return list(zip(answers.tolist(), texts, strict=True))
