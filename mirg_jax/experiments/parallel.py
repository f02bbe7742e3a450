"""Rows of a table in several processes at once, where a machine has room for more than one."""

import os
import pathlib
import signal
import subprocess
import time
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from mirg_jax.errors import UserError
from mirg_jax.experiments.rows import Table
from mirg_jax.files.streams import progress_bar, say

_POLL_SECONDS = 0.2


class Job(NamedTuple):
    """A row of one seed."""

    seed: int
    name: str
    title: str
    start: str  # the row that has to be done before

    def log(self, workdir: pathlib.Path) -> pathlib.Path:
        """Where its process writes what it says."""
        return workdir / f"seed_{self.seed}" / f"{self.name}.log"

    def __str__(self) -> str:
        return f"{self.title}, seed {self.seed}"


def jobs_of(table: Table, seeds: Sequence[int]) -> list[Job]:
    """All rows for all seeds; those that start from no other wait for the first of their seed."""
    first = table.rows[0].name
    return [
        Job(seed, row.name, row.title, row.start or (first if row.name != first else ""))
        for seed in seeds
        for row in table.rows
    ]


def run(
    table: Table, workdir: pathlib.Path, seeds: Sequence[int], command: Sequence[str], jobs: int
) -> None:
    """Trains and evaluates all rows for all seeds, each in a process, at most `jobs` at once.

    A row waits for the one that it starts from, and all rows of a seed for its first, which makes
    the data. Processes say what they say in WORKDIR/seed_N/ROW.log. After a failed row no other is
    begun; a signal stops all rows, which then go on from there when they are run again.

    Args:
      table: the table.
      workdir: folder of all results.
      seeds: random seeds.
      command: what runs a row, to which `--seeds=N --row=NAME` is added.
      jobs: processes at once.

    Raises:
      UserError: if a row failed.
      SystemExit: after SIGTERM.
      KeyboardInterrupt: after SIGINT.
    """
    waiting = jobs_of(table, seeds)
    running: dict[Job, subprocess.Popen] = {}
    done: set[tuple[int, str]] = set()
    failed: list[Job] = []
    # This process opens no device: the rows need them.
    before = signal.signal(signal.SIGTERM, _leave)
    try:
        with progress_bar(total=len(waiting), unit="row", desc=table.title) as bar:
            while running or (waiting and not failed):
                ready = [job for job in waiting if not job.start or (job.seed, job.start) in done]
                if failed:
                    ready = []
                for job in ready[: jobs - len(running)]:
                    waiting.remove(job)
                    running[job] = _start(job, workdir, command)
                time.sleep(_POLL_SECONDS)
                ended = {job: each for job, each in running.items() if each.poll() is not None}
                for job, process in ended.items():
                    del running[job]
                    if process.returncode:
                        failed.append(job)
                        say(f"{job}: failed; rows under way go on, no other is begun")
                    else:
                        done.add((job.seed, job.name))
                        bar.update()
    finally:
        _stop(running.values())
        signal.signal(signal.SIGTERM, before)
    if failed:
        path = failed[0].log(workdir)
        raise UserError(f"{failed[0]}: {_last_line(path)} (all of it is in {path})")


def _leave(number: int, _frame) -> None:
    raise SystemExit(128 + number)


def _start(job: Job, workdir: pathlib.Path, command: Sequence[str]) -> subprocess.Popen:
    path = job.log(workdir)
    path.parent.mkdir(parents=True, exist_ok=True)
    # None may take most of a GPU's memory for itself.
    environment = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false", **os.environ}
    with path.open("a") as log:
        return subprocess.Popen(
            [*command, f"--seeds={job.seed}", f"--row={job.name}"],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment,
            process_group=0,  # Ctrl-C is for this process, which passes it on
        )


def _stop(running: Iterable[subprocess.Popen]) -> None:
    """Stops rows, which save first."""
    processes = list(running)
    if processes:
        say("stopping; the rows under way are saved")
    for process in processes:
        process.terminate()
    for process in processes:
        process.wait()


def _last_line(path: pathlib.Path) -> str:
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    said = [line.rsplit("\r", 1)[-1].strip() for line in lines]
    return next((line for line in reversed(said) if line), "it said nothing")
