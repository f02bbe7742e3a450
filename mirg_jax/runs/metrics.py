"""Logging of a run's metrics to metrics.jsonl (a line per step), TensorBoard and a progress bar."""

import collections
import contextlib
import json
import math
import pathlib
import time
from collections.abc import Iterator

from tensorboardX import SummaryWriter
from tqdm import tqdm


class Metrics:
    """Writes the scalars of each step.

    Lines after `step`, left by an interrupted run, are dropped so that they don't occur twice.

    Args:
      workdir: the run's folder.
      step: the step that the run starts or resumes from.
      num_steps: number of steps of the whole run.
      name: title of the progress bar.
      write: whether this process writes; False in all processes but the first.
    """

    def __init__(
        self, workdir: pathlib.Path, *, step: int, num_steps: int, name: str, write: bool = True
    ):
        self._seconds = collections.Counter()
        self._writes = write
        if not write:
            return
        workdir.mkdir(parents=True, exist_ok=True)
        path = workdir / "metrics.jsonl"
        kept = []
        if path.exists():
            for line in path.read_text().splitlines():
                with contextlib.suppress(json.JSONDecodeError, KeyError, TypeError):
                    if json.loads(line)["step"] <= step:  # an incomplete last line is dropped
                        kept.append(line + "\n")
        partial = path.with_suffix(".part")  # renamed when complete, in case the run is killed
        partial.write_text("".join(kept))
        partial.replace(path)
        self._file = path.open("a")
        self._board = SummaryWriter(str(workdir / "tensorboard"), purge_step=step + 1)
        self._bar = tqdm(total=num_steps, initial=step, desc=name, unit="step", mininterval=1)

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Adds the time spent in the `with` block to `seconds[name]` of the current step."""
        start = time.perf_counter()
        yield
        self._seconds[name] += time.perf_counter() - start

    def write(self, step: int, scalars: dict[str, float], shown: tuple[str, ...]) -> None:
        """Writes the scalars of a step.

        Args:
          step: number of steps taken.
          scalars: values by name; non-finite ones are written as null.
          shown: names of the scalars shown by the progress bar.
        """
        if not self._writes:
            return
        scalars = {name: float(value) for name, value in scalars.items()}
        row = {k: v if math.isfinite(v) else None for k, v in scalars.items()}
        seconds = {name: round(value, 4) for name, value in self._seconds.items()}
        self._file.write(json.dumps({"step": step, **row, "seconds": seconds}) + "\n")
        self._file.flush()
        for name, value in scalars.items():
            self._board.add_scalar(name, value, step)
        for name, value in seconds.items():
            self._board.add_scalar(f"seconds/{name}", value, step)
        self._bar.set_postfix({name: f"{scalars[name]:.3g}" for name in shown}, refresh=False)
        self._bar.update()
        self._seconds.clear()

    def close(self) -> None:
        """Closes the files and the progress bar."""
        if not self._writes:
            return
        self._bar.close()
        self._board.close()
        self._file.close()


def held_out(workdir: str | pathlib.Path) -> dict[int, float]:
    """Returns the accuracy on held-out rows by step, for the steps that were evaluated."""
    if not (pathlib.Path(workdir) / "metrics.jsonl").exists():
        return {}
    return {row["step"]: row["eval_acc"] for row in read(workdir) if "eval_acc" in row}


def read(workdir: str | pathlib.Path) -> list[dict]:
    """Reads the rows of a run's metrics.jsonl."""
    return [json.loads(line) for line in (pathlib.Path(workdir) / "metrics.jsonl").open()]
