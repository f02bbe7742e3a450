"""From step to step: what processes agree on, when the state is saved, and how a run ends."""

import signal
import sys
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from flax import nnx
from ml_collections import ConfigDict

from mirg_jax.data.batching import Item, PackedBatch, collate, common_sizes, sizes
from mirg_jax.data.examples import Rejected
from mirg_jax.data.pipeline import positions
from mirg_jax.errors import UserError
from mirg_jax.runs.train_state import TrainState
from mirg_jax.sharding import processes
from mirg_jax.training.setup import Run


class Batches(NamedTuple):
    """This process's part of a step's micro-batches, in arrays of sizes that all agreed on."""

    parts: list[PackedBatch]
    labels: int  # tokens to be learned, of all processes
    tokens: int  # the same of all tokens
    cells: int  # the same of the rooms for tokens, padding included


class Lifecycle:
    """The steps of a run. It ends by itself, by SIGTERM or SIGINT, or by updates gone wrong."""

    def __init__(self, run: Run, config: ConfigDict):
        self.stopping = False  # all processes know that one has been told to stop
        self._run, self._config = run, config
        self._signals = processes.Signals()
        self._signal = 0
        self._step = run.first_step
        self._read = self._positions = positions([0] * run.share.count)
        self._bad = 0

    def steps(self) -> Iterator[int]:
        """The numbers of the steps to take. `break` when a `collate` has found it `stopping`."""
        with self._signals:
            for step in range(self._run.first_step, self._config.num_steps):
                if self._bad >= self._config.max_skipped:
                    return
                yield step

    def collate(self, items: Sequence[Item], parts: Sequence[Sequence[Sequence[int]]]) -> Batches:
        """Lays out this process's micro-batches of rows, of as many and as large as the others'.

        The one message of a step: it also carries signals, rows left out and positions in the
        data.
        """
        run = self._run
        messages = processes.gather(
            {
                "sizes": [sizes(items, rows, run.shapes) for rows in parts],
                "signal": self._signals.received,
                "share": run.share.index,
                "next": run.data.get_state()["next_index"],
                "rejected": run.rejected.take(),
                "tokens": sum(len(item.encoded.tokens) for item in items),
                "labels": sum(len(i.encoded.tokens) - i.encoded.prompt_length for i in items),
            }
        )
        for message in messages:
            for row in message["rejected"]:
                run.rejected.add(Rejected(**row), told=True)
        shares = {message["share"]: message for message in messages}
        shares = [shares[index] for index in range(run.share.count)]
        self._read = positions([message["next"] for message in shares])
        self._signal = max(message["signal"] for message in messages)
        self.stopping = self._signal > 0

        agreed = common_sizes([message["sizes"] for message in shares])
        rows = len(parts[0])
        empty: list[list[list[int]]] = [[[]] * rows] * (len(agreed) - len(parts))
        return Batches(
            [
                collate(items, part, run.shapes, size)
                for part, size in zip([*parts, *empty], agreed, strict=True)
            ],
            labels=sum(message["labels"] for message in shares),
            tokens=sum(message["tokens"] for message in shares),
            cells=sum(rows * run.share.count * length for length, _, _ in agreed),
        )

    def end_step(
        self,
        state: TrainState,
        frozen: nnx.State,
        skipped_in_a_row: Any,
        accuracy: float | None = None,
    ) -> None:
        """Saves the state if it is due. Last in a step: what it logs is on disk before.

        Args:
          accuracy: on held-out rows, if this step was evaluated.
        """
        self._step += 1
        self._positions = self._read
        self._bad = int(skipped_in_a_row)
        self._run.checkpoints.save(state, frozen, self._positions, accuracy=accuracy)

    def finish(self, state: TrainState, frozen: nnx.State) -> None:
        """Saves the state and waits until it is on disk.

        Raises:
          UserError: after too many updates in a row that were not finite.
          SystemExit: with status 143 after SIGTERM, 130 after SIGINT.
        """
        step, checkpoints = self._step, self._run.checkpoints
        if step or not self.stopping:
            checkpoints.save(state, frozen, self._positions, force=True)
        checkpoints.close()
        if self._bad >= self._config.max_skipped:
            raise UserError(
                f"stopped at step {step}: {self._bad} updates in a row had a loss or gradient that "
                "is not finite; the parameters from before them are saved; lower "
                "optimizer.learning_rate or look at the data, and run again to go on"
            )
        if self.stopping:
            if processes.is_first():
                name = signal.Signals(self._signal).name
                print(
                    f"stopped by {name} after step {step}, which is saved; "
                    "run the same command again to go on",
                    file=sys.stderr,
                    flush=True,
                )
            sys.exit(128 + self._signal)
