"""How fast a host reads and prepares the recipe's images, beside what a step needs."""

import os
import statistics
import time
from collections.abc import Sequence
from typing import NamedTuple

from mirg_jax import sharding
from mirg_jax.data import pipeline
from mirg_jax.data.examples import Example, Rejected
from mirg_jax.data.pipeline import Preparer
from mirg_jax.data.prompts import Tokenizer
from mirg_jax.doctor.report import Check
from mirg_jax.runs import metrics
from mirg_jax.runs.settings import Settings

# Seconds of reading a step that are too many on any machine, where no step has been timed yet.
SLOW = 60.0
_SECONDS = 10.0  # of reading, to measure it


class Rate(NamedTuple):
    """What was read in how many seconds."""

    examples: int
    images: int
    seconds: float
    busy: float  # share of the threads' time that they computed; the rest they waited
    rejected: list[Rejected]


def measure(
    settings: Settings,
    examples: Sequence[Example],
    prepare: Preparer,
    share: sharding.Share,
    seconds: float,
) -> Rate:
    """Reads examples as a run does, with its threads and in its order, for some seconds.

    Args:
      settings: the recipe.
      examples: the training data.
      prepare: reads and encodes an example.
      share: the share of the data that this process reads.
      seconds: how long to read; no more than a step's examples are read.

    Raises:
      DataError: if no example can be used.
    """
    wanted = max(settings.examples_at_once // share.count, 1)
    threads = max(settings.data.reading_threads, 1)
    rejected: list[Rejected] = []
    batches = pipeline.batches(
        examples,
        prepare,
        batch_size=min(threads, wanted),
        seed=settings.seed,
        share=share.index,
        shares=share.count,
        threads=settings.data.reading_threads,
    )
    count = images = 0
    computed, start = time.process_time(), time.perf_counter()
    while count < wanted and time.perf_counter() < start + seconds:
        batch = next(batches)
        count += len(batch.rows)
        images += sum(len(item.images) for _, item in batch.rows)
        rejected += batch.rejected
    took = time.perf_counter() - start
    workers = min(threads, os.cpu_count() or 1)
    busy = (time.process_time() - computed) / (took * workers)
    return Rate(count, images, took, min(busy, 1.0), rejected)


def images(
    check: Check,
    settings: Settings,
    examples: Sequence[Example],
    tokenizer: Tokenizer,
    share: sharding.Share,
    step_seconds: float | None,
) -> None:
    """Compares the images that a host reads a second with what a step takes.

    Args:
      check: takes what is found.
      settings: the recipe.
      examples: the training data.
      tokenizer: the model's tokenizer.
      share: the share of the data that this process reads.
      step_seconds: how long a step takes without its reading; None if none was timed.

    Raises:
      DataError: if no example can be used.
    """
    root = settings.data.root(settings.data.image_root)
    prepare = settings.preparer(tokenizer, with_response=settings.grpo is None, image_root=root)
    rate = measure(settings, examples, prepare, share, _SECONDS)
    needed = rate.images / rate.examples * settings.examples_at_once / share.count
    speed = rate.images / rate.seconds
    reading = settings.examples_at_once / share.count * rate.seconds / rate.examples
    threads, cores = settings.data.reading_threads, os.cpu_count() or 1
    text = (
        f"{speed:.0f} images/s by {threads} threads on {cores} cores; a step takes {needed:.0f} "
        f"images a host, {reading:.1f} s of reading"
    )
    compared = f", and computes for {step_seconds:.1f} s" if step_seconds else ""
    if reading > (step_seconds or SLOW):
        check.warning(f"{text}{compared}: {_remedy(rate, threads, cores, str(root.path))}")
    else:
        check.ok(text + compared)
    if rate.rejected:
        tried = rate.examples + len(rate.rejected)
        check.warning(
            f"{len(rate.rejected)} of {tried} examples can't be used and are left out; the first: "
            f"{rate.rejected[0].reason}"
        )


def _remedy(rate: Rate, threads: int, cores: int, root: str) -> str:
    if rate.busy < 0.5:  # the threads wait
        more = f", or set --config.data.threads={4 * max(threads, 1)} to wait for more at a time"
        return f"the storage of {root} is slow; copy the images to a local disk{more}"
    if threads < cores:
        return f"set --config.data.threads={cores}"
    return "make the images smaller beforehand, or lower --config.data.max_pixels"


def timed_step(workdir: str | os.PathLike) -> float | None:
    """Returns the seconds of a step of the run in a folder, without its reading; None without one.

    Raises:
      DataError: if the metrics there can't be read.
    """
    if not metrics.path_in(workdir).exists():
        return None
    seconds = [row["seconds"] for row in metrics.read(workdir)[-10:] if row.get("seconds")]
    sums = [sum(v for name, v in each.items() if name != "data") for each in seconds]
    return statistics.median(sums) if sums else None
