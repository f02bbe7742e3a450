"""Logging of a run's metrics: metrics.jsonl (a line a step), TensorBoard, W&B, a progress bar."""

import collections
import contextlib
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tqdm import tqdm

from mirg_jax.errors import DataError, shorten
from mirg_jax.files import lines, outputs, places
from mirg_jax.files.places import Place
from mirg_jax.files.streams import Spare, progress_bar, restart_clock
from mirg_jax.runs.board import Board
from mirg_jax.runs.wandb_run import WandbRun, WandbSettings
from mirg_jax.types import Scalars


class Metrics:
    """Writes the scalars of each step.

    `open` drops lines after `step`, left by an interrupted run, so that they don't occur twice.
    TensorBoard, Weights & Biases and the progress bar may fail; metrics.jsonl may not, since it
    also says which checkpoint is the best: what is wrong with it is in `problem`.

    Args:
      workdir: the run's folder.
      step: the step that the run starts or resumes from.
      num_steps: number of steps of the whole run.
      name: title of the progress bar.
      write: whether this process writes; False in all processes but the first.
      wandb: where the run is shown at Weights & Biases, if anywhere.
      config: the run's settings as JSON, for there.

    Attributes:
      problem: why rows are not in metrics.jsonl; "" if all are.
    """

    def __init__(
        self,
        workdir: Place,
        *,
        step: int,
        num_steps: int,
        name: str,
        write: bool = True,
        wandb: WandbSettings | None = None,
        config: str = "",
    ):
        self._workdir, self._step, self._num_steps, self._name = workdir, step, num_steps, name
        self._seconds = collections.Counter()
        self.problem = ""
        self._unwritten: list[Mapping] = []
        self._writes = write
        self._wandb, self._config = wandb or WandbSettings(), config
        self._shown: WandbRun | None = None
        self._bar: tqdm | None = None
        self._is_timed = False  # whether the bar's clock runs

    def open(self) -> None:
        """Opens the files and the progress bar.

        Raises:
          DataError: if the metrics there can't be read, or none can be written.
        """
        if not self._writes:
            return
        workdir, step = self._workdir, self._step
        outputs.make_folder(workdir)
        path = path_in(workdir)
        kept = [row for row in read(workdir) if row["step"] <= step] if lines.exists(path) else []
        try:
            lines.replace(path, kept)
        except OSError as error:
            raise DataError(
                f"{path}: cannot be written ({error.strerror}); {places.remedy(path)} and run again"
            ) from None
        self._file = lines.LineWriter(path)
        self._spare = Spare(f"{workdir / 'tensorboard'}")
        self._board = self._spare(Board, workdir / "tensorboard", first_step=step + 1)
        self._spare_wandb = Spare("Weights & Biases")
        if self._wandb.project:
            what = {"stage": self._name, "config": self._config, "before": kept}
            self._shown = self._spare_wandb(WandbRun, workdir, self._wandb, **what)
        self._bar = progress_bar(
            total=self._num_steps, initial=step, desc=self._name, unit="step", mininterval=1
        )

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Adds the time spent in the `with` block to `seconds[name]` of the current step."""
        start = time.perf_counter()
        yield
        self._seconds[name] += time.perf_counter() - start

    @property
    def seconds(self) -> Mapping[str, float]:
        """The seconds of the current step so far, by phase."""
        return self._seconds

    def write(
        self,
        step: int,
        scalars: Scalars,
        shown: tuple[str, ...],
        speed: Mapping[str, float] | None = None,
    ) -> None:
        """Writes the scalars of a step.

        Args:
          step: number of steps taken.
          scalars: values by name; non-finite ones are written as null.
          shown: names of the scalars shown by the progress bar.
          speed: how fast the step was; unlike `scalars`, it differs when the run is repeated.
        """
        if not self._writes:
            return
        scalars = {name: float(value) for name, value in scalars.items()}
        row = {k: v if math.isfinite(v) else None for k, v in scalars.items()}
        seconds = {name: round(value, 4) for name, value in self._seconds.items()}
        speed = {name: float(f"{value:.4g}") for name, value in (speed or {}).items()}
        self._unwritten.append({"step": step, **row, "speed": speed, "seconds": seconds})
        self._write_rows()
        by_phase = {f"seconds/{name}": value for name, value in seconds.items()}
        by_phase |= {f"speed/{name}": value for name, value in speed.items()}
        if self._board:
            self._spare(self._board.add, step, scalars | by_phase)
        if self._shown:
            self._spare_wandb(self._shown.add, step, scalars | by_phase)
        self._bar.set_postfix({name: f"{scalars[name]:.3g}" for name in shown}, refresh=False)
        if self._is_timed:
            self._bar.update()
        else:
            restart_clock(self._bar)  # the first step's time was mostly that of compiling
            self._is_timed = True
        self._seconds.clear()

    @property
    def shows_groups(self) -> bool:
        """Whether `show_groups` shows anything."""
        return self._shown is not None and not self._spare_wandb.failed

    def show_groups(self, step: int, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Shows groups that a step sampled as a table with pictures; see `WandbRun.add_groups`."""
        if self._shown:
            self._spare_wandb(self._shown.add_groups, step, columns, rows)

    def _write_rows(self) -> None:
        """Writes the rows that are not in the file yet."""
        self.problem = ""
        try:
            while self._unwritten:
                self._file.write(self._unwritten[0])
                del self._unwritten[0]
        except DataError as error:
            self.problem = str(error)

    def close(self) -> None:
        """Closes the files and the progress bar, after trying once more to write all rows."""
        if not self._writes or self._bar is None:
            return
        self._write_rows()
        self._bar.close()
        if self._board:
            self._spare(self._board.close)
        self._file.close()
        if self._shown:
            self._spare_wandb(self._shown.close)


def path_in(workdir: str | Place) -> Place:
    """Returns the path of the metrics in a run's folder."""
    return places.of(workdir) / "metrics.jsonl"


def held_out(workdir: str | Place) -> dict[int, float]:
    """Returns the accuracy on held-out rows by step, for the steps that were evaluated.

    Raises:
      DataError: if the metrics can't be read.
    """
    if not lines.exists(path_in(workdir)):
        return {}
    accuracies = {row["step"]: row.get("eval_acc") for row in read(workdir)}
    return {step: accuracy for step, accuracy in accuracies.items() if is_finite(accuracy)}


def is_finite(value: Any) -> bool:
    """Returns whether a value is a finite number; a truth value is none."""
    try:
        return type(value) in (int, float) and math.isfinite(value)
    except OverflowError:  # an integer beyond all floats
        return False


def read(workdir: str | Place) -> list[dict]:
    """Reads the rows of a run's metrics.jsonl, without one at its end that was not finished.

    Raises:
      DataError: if another line is not a row of metrics.
      OSError: if the file can't be read.
    """
    found = list(lines.rows(path_in(workdir)))
    for number, row in enumerate(found, start=1):
        where = f"{path_in(workdir)} line {number}"
        if type(row.get("step")) is not int or not 0 <= row["step"] < 2**53:
            raise DataError(f"{where}: has no step; remove the line")
        for name, value in row.items():
            if name in ("seconds", "speed") or value is None or type(value) is float:
                continue
            if not is_finite(value):
                quoted = shorten(repr(value), 60)
                raise DataError(f"{where}: {name}={quoted} is not a number; remove the line")
    return found
