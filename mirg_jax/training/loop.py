"""The steps of a run, for SFT and GRPO alike.

`Loop` makes a step's batches, in which all processes agree; writes its metrics; evaluates held-out
rows and saves the state where that is due; and ends the run: by itself, by SIGTERM or SIGINT, or
after updates that were not finite.
"""

import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from mirg_jax import sharding
from mirg_jax.data.batching import Item, PackedBatch, collate, common_sizes, sizes
from mirg_jax.data.examples import Example, Rejected
from mirg_jax.data.pipeline import positions
from mirg_jax.errors import UserError
from mirg_jax.runs.metrics import Metrics
from mirg_jax.runs.train_state import TrainState
from mirg_jax.sharding import processes
from mirg_jax.training.held_out import HeldOut
from mirg_jax.training.optimizer import make_schedule
from mirg_jax.training.start import Run

# Packs a step's items: for each part, for each of its rows, the numbers of the items in it.
Divide = Callable[[Sequence[Item]], list[list[list[int]]]]


class Part(NamedTuple):
    """Rows that are computed at a time: this process's, with the examples that they are of."""

    examples: list[Example]
    batch: PackedBatch


class StepBatches(NamedTuple):
    """What a step learns from. Array sizes and counts are the same in all processes."""

    step: int  # steps taken before
    parts: list[Part]
    labels: int  # tokens to be learned, of all processes
    tokens: int  # tokens, of all processes
    cells: int  # room for tokens, padding included, of all processes


class Outcome(NamedTuple):
    """What a step's update came to, on the host."""

    loss: float
    grad_norm: float
    skipped: int  # updates left out since the run began
    skipped_in_a_row: int  # up to now

    @classmethod
    def fetch(cls, loss: jax.Array, norm: jax.Array, state: TrainState) -> "Outcome":
        found = jax.device_get((loss, norm, state.skipped, state.skipped_in_a_row))
        return cls(found[0], found[1], int(found[2]), int(found[3]))


class Loop:
    """The steps that are left of a run."""

    def __init__(self, run: Run, name: str, resident: Any = None):
        """
        Args:
          name: of the stage, for the progress bar.
          resident: arrays that lie on the devices besides the state and the frozen parameters.
        """
        settings = run.settings
        self._run = run
        self._metrics = Metrics(
            run.workdir,
            step=run.first_step,
            num_steps=settings.num_steps,
            name=name,
            write=run.is_first,
        )
        self.phase = self._metrics.phase
        self._rate = make_schedule(
            settings.optimizer, settings.num_steps * settings.updates_per_step
        )
        self._held_out = HeldOut(run, resident)
        self._signals = processes.Signals()
        self._signal = 0  # that any process has received
        self._step = run.first_step
        self._read = self._positions = positions([0] * run.share.count)
        self._bad_in_a_row = 0

    def steps(self, divide: Divide) -> Iterator[StepBatches]:
        """Yields the batches of each step, until the run ends; see `end_step` and `finish`.

        Args:
          divide: packs a step's items into rows, and those into parts.
        """
        with self._signals:
            for step in range(self._run.first_step, self._run.settings.num_steps):
                if self._bad_in_a_row >= self._run.settings.max_skipped:
                    return
                with self.phase("data"):
                    pairs = next(self._run.data)
                    batches = self._make_batches(step, pairs, divide)
                if self._signal:
                    return
                yield batches

    def _make_batches(
        self, step: int, pairs: Sequence[tuple[Example, Item]], divide: Divide
    ) -> StepBatches:
        """Lays out this process's parts, of as many and as large as the other processes'."""
        examples, items = [list(column) for column in zip(*pairs, strict=True)]
        parts, shapes = divide(items), self._run.settings.data.shapes
        messages = self._exchange(items, [sizes(items, rows, shapes) for rows in parts])
        agreed = common_sizes([message["sizes"] for message in messages])
        row_count = len(parts[0])
        empty: list[list[list[int]]] = [[[]] * row_count] * (len(agreed) - len(parts))
        return StepBatches(
            step=step,
            parts=[
                Part([examples[i] for row in rows for i in row], collate(items, rows, shapes, size))
                for rows, size in zip([*parts, *empty], agreed, strict=True)
            ],
            labels=sum(message["labels"] for message in messages),
            tokens=sum(message["tokens"] for message in messages),
            cells=sum(row_count * len(messages) * length for length, _, _ in agreed),
        )

    def _exchange(self, items: Sequence[Item], wanted: Sequence[Any]) -> list[dict[str, Any]]:
        """The one message of a step, of each share of the data; also takes notice of what it says.

        It carries array sizes and counts, signals, rows left out and positions in the data.
        """
        run = self._run
        messages = processes.gather(
            {
                "sizes": wanted,
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
        self._signal = max(message["signal"] for message in messages)
        by_share = {message["share"]: message for message in messages}
        messages = [by_share[index] for index in range(run.share.count)]
        self._read = positions([message["next"] for message in messages])
        return messages

    def end_step(
        self,
        state: TrainState,
        outcome: Outcome,
        scalars: dict[str, float],
        shown: tuple[str, ...],
    ) -> TrainState:
        """Counts the step; evaluates and saves the state if that is due; writes the metrics.

        What a step logs is on disk before its checkpoint is.

        Args:
          scalars: of this stage, besides those of every stage.
          shown: names of scalars for the progress bar.

        Returns:
          The state with its step counted.
        """
        run, before = self._run, self._step
        self._step += 1
        state = state._replace(step=sharding.place_everywhere(np.int32(self._step), run.mesh))
        self._positions = self._read
        self._bad_in_a_row = outcome.skipped_in_a_row
        scores = {}
        if self._held_out.due(self._step):
            with self.phase("evaluate"):
                scores = self._held_out.evaluate(self._step, state)
        updates = before * run.settings.updates_per_step - outcome.skipped
        self._metrics.write(
            self._step,
            {
                "loss": outcome.loss,
                **scalars,
                "grad_norm": outcome.grad_norm,
                "learning_rate": float(np.asarray(self._rate(updates))),
                "rejected": len(run.rejected),
                "skipped": outcome.skipped,
                **scores,
            },
            shown,
        )
        with self.phase("checkpoint"):  # counted towards the next step
            accuracy = scores.get("eval_acc")
            run.checkpoints.save(state, run.frozen, self._positions, accuracy=accuracy)
        return state

    def finish(self, state: TrainState) -> None:
        """Saves the state and waits until it is on disk.

        Raises:
          UserError: after too many updates in a row that were not finite.
          SystemExit: with status 143 after SIGTERM, 130 after SIGINT.
        """
        self._metrics.close()
        step, checkpoints = self._step, self._run.checkpoints
        if step or not self._signal:
            checkpoints.save(state, self._run.frozen, self._positions, force=True)
        checkpoints.close()
        if self._bad_in_a_row >= self._run.settings.max_skipped:
            raise UserError(
                f"stopped at step {step}: {self._bad_in_a_row} updates in a row had a loss or "
                "gradient that is not finite; the parameters from before them are saved; lower "
                "optimizer.learning_rate or look at the data, and run again to go on"
            )
        if self._signal:
            if processes.is_first():
                name = signal.Signals(self._signal).name
                print(
                    f"stopped by {name} after step {step}, which is saved; "
                    "run the same command again to go on",
                    file=sys.stderr,
                    flush=True,
                )
            sys.exit(128 + self._signal)
