"""The training loop shared by SFT and GRPO.

`Loop` creates each step's batches with array sizes that all processes agree on, writes metrics,
evaluates held-out rows and saves checkpoints when they are due. It ends the run after the last
step, on SIGTERM or SIGINT, after too many non-finite updates, or when metrics can't be written.
"""

import dataclasses
import functools
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from mirg_jax import sharding
from mirg_jax.data.batching import (
    ArraySizes,
    Item,
    PackedBatch,
    collate,
    common_sizes,
    sizes,
)
from mirg_jax.data.examples import Example, Rejected
from mirg_jax.data.pipeline import positions
from mirg_jax.errors import SaveError, UserError
from mirg_jax.files.streams import say
from mirg_jax.models import flops
from mirg_jax.models.flops import Forward
from mirg_jax.runs.metrics import Metrics
from mirg_jax.runs.train_state import TrainState
from mirg_jax.sharding import processes
from mirg_jax.training.ahead import Ahead
from mirg_jax.training.held_out import HeldOut
from mirg_jax.training.optimizer import make_schedule
from mirg_jax.training.speed import Profile, Speed
from mirg_jax.training.start import TrainingRun
from mirg_jax.types import Scalars

# Packs a step's items: returns, for each part and each of its rows, the indices of its items.
Divide = Callable[[Sequence[Item]], list[list[list[int]]]]


class Part(NamedTuple):
    """This process's rows of one micro-batch or call of the sampler, with their examples."""

    examples: list[Example]
    batch: PackedBatch

    @property
    def sizes(self) -> ArraySizes:
        """The sizes of the batch's arrays."""
        return (self.batch.text.tokens.shape[1], *self.batch.images.patches.shape[1:3])


class LaidOut(NamedTuple):
    """What this process has read for a step, laid out in arrays of the sizes that it needs."""

    examples: list[Example]
    items: list[Item]
    rows: list[list[list[int]]]  # of each part: the indices of each row's items
    sizes: list[ArraySizes]  # of each part
    arrays: list[PackedBatch]  # of each part
    rejected: list[Rejected]  # rows that were met and can't be used
    next_index: int  # the place in the data behind it


_NOTHING = LaidOut([], [], [], [], [], [], 0)


class StepBatches(NamedTuple):
    """The training data of a step. Array sizes and counts are the same in all processes."""

    step: int  # number of steps taken before
    round: int  # number of rounds of sampling of this step before
    parts: list[Part]
    tasks: list[str]  # of all processes' examples, in the data's order; GRPO only
    labels: int  # number of label tokens of all processes
    tokens: int  # number of tokens of all processes
    cells: int  # number of tokens of all processes, including padding
    forward: Forward  # operations of the forward passes over the examples of all processes


class Outcome(NamedTuple):
    """Results of a step's update, on the host."""

    loss: float
    grad_norm: float
    skipped: int  # updates skipped since the run began
    skipped_in_a_row: int  # number of most recent updates skipped

    @classmethod
    def fetch(
        cls, loss: jax.Array | np.float32, norm: jax.Array | np.float32, state: TrainState
    ) -> "Outcome":
        """Copies the results from the device; of a step without an update they are zeros."""
        found = jax.device_get((loss, norm, state.skipped, state.skipped_in_a_row))
        return cls(found[0], found[1], int(found[2]), int(found[3]))


def in_turn(shares: Sequence[Sequence[Any]]) -> list[Any]:
    """Returns what processes have of their examples in the data's order: each share in turn."""
    return [each for column in zip(*shares, strict=True) for each in column]


class Loop:
    """The remaining steps of a run.

    Attributes:
      metrics: where the run's scalars are written.
    """

    def __init__(self, run: TrainingRun, name: str, resident: Any = None):
        """Opens the logs and prepares the evaluation.

        Args:
          run: the run.
          name: name of the stage, for the progress bar.
          resident: arrays on the devices besides the training state and the frozen parameters.
        """
        settings = run.settings
        self._run, self._begun = run, False
        self.metrics = Metrics(
            run.workdir,
            step=run.first_step,
            num_steps=settings.num_steps,
            name=name,
            write=run.is_first,
            wandb=settings.wandb,
            config=settings.text,
        )
        self.phase = self.metrics.phase
        # Jitted, it is one program instead of one for each of its operations.
        self._rate = jax.jit(
            make_schedule(settings.optimizer, settings.num_steps * settings.updates_per_step)
        )
        self._held_out = HeldOut(run, resident)
        self._speed = Speed(settings, warns=run.is_first)
        self._profile = Profile(settings.profile, run.workdir)
        self._signals = processes.Signals("finishing this step and saving")
        self._signal = 0  # signal received by any process; 0: none
        self._problem = ""  # why metrics can't be written
        self._step = run.first_step
        self._saved_at, self._overdue = time.monotonic(), False
        self._read = self._positions = positions([0] * run.share.count)
        self._ahead: Ahead[LaidOut] | None = None
        self._bad_in_a_row = 0
        self._skipped = int(jax.device_get(run.state.skipped))

    def steps(self, divide: Divide) -> Iterator[StepBatches]:
        """Yields the batches of each step until the run ends.

        A step's batches are read and laid out while the devices compute the step before.

        The caller must call `end_step` after each step, or stop where `another_round` returns
        None, and `finish` at the end.

        Args:
          divide: packs a step's items into rows, and the rows into parts.
        """
        self._ahead = Ahead(functools.partial(self._lay_out, divide))
        with self._signals:
            for step in range(self._run.first_step, self._run.settings.num_steps):
                if self._has_diverged:
                    return
                with self.phase("data"):
                    batches = self._make_batches(step)
                if batches is None:
                    return
                self._begin()
                self._profile.between(step)
                yield batches

    def _begin(self) -> None:
        """Writes what describes the run, and opens its logs, when the first step can be taken."""
        if self._begun:
            return
        if self._run.is_first:
            self._run.description.write(self._run.workdir)
            say("the first step compiles its programs: up to a minute or two")
        self.metrics.open()
        self._begun = True

    @property
    def _has_diverged(self) -> bool:
        limit = self._run.settings.max_skipped
        return limit > 0 and self._bad_in_a_row >= limit

    def another_round(self, batches: StepBatches) -> StepBatches | None:
        """Returns further batches for a step, the next ones of the data.

        Args:
          batches: those that the step has got last.

        Returns:
          The batches; None if the run is to end. Then there is no `end_step`: the run goes on with
          this step from its first round, as nothing of it is kept.
        """
        with self.phase("data"):
            more = self._make_batches(batches.step)
        return more and more._replace(round=batches.round + 1)

    def _lay_out(self, divide: Divide) -> LaidOut:
        """Reads this process's next examples, and lays them out as if it were the only one."""
        data, shapes = self._run.data, self._run.settings.data.shapes
        batch = next(data)
        examples, items = [list(column) for column in zip(*batch.rows, strict=True)]
        rows = divide(items)
        wanted = [sizes(items, part, shapes) for part in rows]
        each = zip(rows, wanted, strict=True)
        arrays = [collate(items, part, shapes, size) for part, size in each]
        place = data.get_state()["next_index"]
        return LaidOut(examples, items, rows, wanted, arrays, batch.rejected, place)

    def _make_batches(self, step: int) -> StepBatches | None:
        """Creates this process's batches, whose number and array sizes all processes agree on.

        Returns:
          The batches; None if the run is to end.
        """
        run = self._run
        assert self._ahead is not None
        # A signal isn't kept waiting by a disk or a store that doesn't answer.
        found = self._ahead.take(unless=lambda: self._signals.received > 0) or _NOTHING
        if step + 1 < run.settings.num_steps:
            self._ahead.begin()
        tasks = [example.task for example in found.examples] if run.settings.grpo else []
        messages = self._exchange(step, found, tasks)
        if self._signal or self._problem:
            return None
        agreed = common_sizes([message["sizes"] for message in messages])
        row_count = len(found.rows[0])

        def part(number: int, size: ArraySizes) -> Part:
            rows = found.rows[number] if number < len(found.rows) else [[]] * row_count
            examples = [found.examples[i] for row in rows for i in row]
            if number < len(found.rows) and tuple(size) == found.sizes[number]:
                return Part(examples, found.arrays[number])
            return Part(examples, collate(found.items, rows, run.settings.data.shapes, size))

        return StepBatches(
            step=step,
            round=0,
            parts=[part(number, size) for number, size in enumerate(agreed)],
            tasks=in_turn([message["tasks"] for message in messages]),
            labels=sum(message["labels"] for message in messages),
            tokens=sum(message["tokens"] for message in messages),
            cells=sum(row_count * len(messages) * length for length, _, _ in agreed),
            forward=Forward(*map(sum, zip(*[m["forward"] for m in messages], strict=True))),
        )

    def _exchange(self, step: int, found: LaidOut, tasks: Sequence[str]) -> list[dict[str, Any]]:
        """Exchanges a step's one message between processes, and processes its contents.

        A message contains array sizes and counts, signals, failures to write metrics, rejected
        rows and the position in the data.

        Args:
          step: number of steps taken before.
          found: what this process has read.
          tasks: of this process's examples.

        Returns:
          One message for each share of the data.
        """
        run, items = self._run, found.items
        minutes = (time.monotonic() - self._saved_at) / 60
        patches = [len(image.patches) for item in items for image in item.images]
        messages = processes.gather(
            {
                "sizes": found.sizes,
                "tasks": tasks,
                "signal": self._signals.received,
                "problem": self.metrics.problem,
                "share": run.share.index,
                "next": found.next_index,
                "rejected": [dataclasses.asdict(row) for row in found.rejected],
                "overdue": 0 < run.settings.checkpoint.minutes <= minutes,
                "tokens": sum(len(item.encoded.tokens) for item in items),
                "forward": flops.forward(
                    run.model, [len(item.encoded.tokens) for item in items], patches
                ),
                "labels": sum(len(i.encoded.tokens) - i.encoded.prompt_length for i in items),
            }
        )
        for message in messages:
            for row in message["rejected"]:
                run.rejected.add(Rejected(**row), step + 1)
        self._signal = max(message["signal"] for message in messages)
        self._problem = max(message["problem"] for message in messages)
        self._overdue = messages[0]["overdue"]
        by_share = {message["share"]: message for message in messages}
        messages = [by_share[index] for index in range(run.share.count)]
        self._read = positions([message["next"] for message in messages])
        return messages

    def end_step(
        self,
        state: TrainState,
        outcome: Outcome,
        scalars: Scalars,
        shown: tuple[str, ...],
        *,
        tokens: float,
        operations: float,
    ) -> TrainState:
        """Ends a step: evaluates if due, writes the metrics, and saves a checkpoint if due.

        A step's metrics are on disk before its checkpoint is.

        Args:
          state: the training state.
          outcome: results of the update.
          scalars: the stage's own metrics.
          shown: names of the metrics shown by the progress bar.
          tokens: tokens that the step processed or sampled, of all processes.
          operations: the step's operations by formula.

        Returns:
          The state with its step counter increased.
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
        updates = before * run.settings.updates_per_step - self._skipped
        self._skipped = outcome.skipped
        self.metrics.write(
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
            self._speed.measure(self.metrics.seconds, tokens, operations),
        )
        self._speed.check_logprobs(float(scalars.get("logprob_diff", 0.0)))
        with self.phase("checkpoint"):  # its time is counted for the next step
            # The first one shows within minutes whether the storage takes a whole checkpoint.
            due, accuracy = self._overdue or self._step == 1, scores.get("eval_acc")
            if run.checkpoints.save(
                state, run.frozen, self._positions, force=due, accuracy=accuracy
            ):
                self._saved_at = time.monotonic()
        return state

    def finish(self, state: TrainState, failure: str = "") -> None:
        """Saves the state and waits until it is on disk.

        Args:
          state: the training state.
          failure: why the run can't go on, or has learned nothing; "" if it is as it should be.

        Raises:
          UserError: if the run stopped after too many non-finite updates in a row, or because
            metrics could not be written, or for `failure`.
          SystemExit: if it stopped by a signal: status 143 for SIGTERM, 130 for SIGINT.
        """
        step, checkpoints = self._step, self._run.checkpoints
        with self._signals:  # the first one still waits for what is being saved
            # Unless there is nothing new.
            if step > self._run.first_step or not (step or self._signal):
                self._begin()
                checkpoints.save(state, self._run.frozen, self._positions, force=True)
            checkpoints.close()
            self.metrics.close()
            self._profile.close()
            mine = {"signal": self._signals.received, "problem": self.metrics.problem}
            found = processes.gather(mine)
        number = max(each["signal"] for each in found)
        if self._has_diverged:
            raise UserError(
                f"stopped at step {step}: {self._bad_in_a_row} updates in a row had a loss or "
                "gradient that is not finite; the parameters before these updates are saved; lower "
                "optimizer.learning_rate or check the data, and run again to go on"
            )
        if problem := self._problem or max(each["problem"] for each in found):
            raise SaveError(f"stopped after step {step}, which is saved: {problem}")
        if failure and not number:
            raise UserError(failure)
        if processes.is_first():
            say(self._ending(number))
        if number:  # also after the last step: what runs several stages must not begin the next
            sys.exit(128 + number)

    def _ending(self, number: int) -> str:
        """Returns the line that a run ends with; `number`: of the signal that stopped it, or 0."""
        step, folder = self._step, self._run.workdir
        if not number or step >= self._run.settings.num_steps:
            count, left_out = len(self._run.rejected), ""
            if count:
                left_out = f" ({count} rows were left out, see {folder / 'rejected.jsonl'})"
            return (
                f"all {step} steps are done and saved in {folder}{left_out}; scripts/ground.py "
                f"--checkpoint={folder} asks the model, docs/evaluation.md says how to score it"
            )
        where = f"after step {step}, which is saved" if step else "before the first step"
        name = signal.Signals(number).name
        return f"stopped by {name} {where}; run the same command again to go on"
