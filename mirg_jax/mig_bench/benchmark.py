"""Reading a benchmark file in MIG-Bench's format or that of training rows, and choosing rows."""

import dataclasses
import hashlib
from collections.abc import Sequence
from typing import Any

from mirg_jax.data.examples import Example, read_trajectory
from mirg_jax.data.json_rows import kind_of, quote
from mirg_jax.data.mig_bench_rows import Fractions, read_fields
from mirg_jax.data.named_images import find_asked_image
from mirg_jax.data.row_files import read_rows
from mirg_jax.errors import DataError
from mirg_jax.files.places import Place
from mirg_jax.files.streams import say
from mirg_jax.grounding.boxes import grid_to_fraction


@dataclasses.dataclass(frozen=True)
class Row:
    """A question of the benchmark with its answer.

    Attributes:
      index: the row's number in its file, from 0. Predictions, scores, comparisons and reports all
        use it, whichever rows were chosen.
      task: the task's name, as in `grounding.tasks`.
      images: paths as in the file, relative to the image root.
      question: the question as in the file.
      answer: x1, y1, x2, y2 as in the file, in fractions of the image. In some rows it is inverted,
        so that no prediction can hit it.
      target_image: number, from 1, of the image that contains the answer; None if the file doesn't
        say (see `data.mig_bench_rows`).
    """

    index: int
    task: str
    images: tuple[str, ...]
    question: str
    answer: Fractions
    target_image: int | None


def load_benchmark(path: str | Place) -> list[Row]:
    """Reads the rows of a file, including those whose answer can't be hit.

    A line says how many rows don't count for the image because their question is unclear.

    Args:
      path: a JSON list of rows, or JSON lines. Rows with "targets", as for training, may have one.

    Raises:
      DataError: if the file is missing, cut or empty, or a row lacks what scoring needs.
    """
    found = []
    for index, row in enumerate(read_rows(path)):
        try:
            found.append(_read_row(index, row))
        except DataError as error:
            raise DataError(f"{path} row {index}: {error}") from None
    _say_unclear(path, found)
    return found


def _say_unclear(path: str | Place, rows: Sequence[Row]) -> None:
    """Says in a line how many questions name images, and not clearly the one to look in."""
    unclear = [
        (row.index, problem)
        for row in rows
        if row.target_image is None and len(row.images) > 1
        if (problem := find_asked_image(row.question, len(row.images)).problem)
    ]
    if unclear:
        index, problem = unclear[0]
        say(
            f"{path}: {len(unclear)} of {len(rows)} rows don't count for the image, as their "
            f"question doesn't say clearly in which to look; the first, row {index}: {problem}"
        )


def _read_row(index: int, row: object) -> Row:
    if not isinstance(row, dict):
        raise DataError(f"not an object but {kind_of(row)}")
    if row.get("targets") is not None and row.get("answer") is None:
        return _read_training_row(index, row)
    fields = read_fields(row)
    for name in ("task", "question"):
        if not getattr(fields, name):
            raise DataError(f"{name!r} is empty")
    # The published file has answers up to 1.048; a value on the 0..1000 grid is a mistake.
    if not all(0 <= value < 2 for value in fields.answer):
        raise DataError(f"'answer' {quote([*fields.answer])} is not in fractions of the image")
    return Row(index, **fields._asdict())


def _read_training_row(index: int, row: dict[str, Any]) -> Row:
    example = read_trajectory(row, index, "")
    if len(example.targets) != 1:
        raise DataError(
            f"'targets' has {len(example.targets)} boxes; a question here has one answer"
        )
    (target,) = example.targets
    answer = grid_to_fraction(target.box)
    return Row(index, example.task, example.images, example.question, answer, target.image)


def choose(rows: Sequence[Row], limit: int) -> list[Row]:
    """Draws some of the rows at random, in proportion to the tasks, and at least one of each.

    The draw is the same in every process and for every model, and a larger limit adds rows to those
    of a smaller one.

    Args:
      rows: the rows.
      limit: number of rows to draw; 0: all.

    Returns:
      The rows drawn, in their order.
    """
    if not 0 < limit < len(rows):
        return list(rows)
    by_task: dict[str, list[Row]] = {}
    for row in sorted(rows, key=_draw_number):
        by_task.setdefault(row.task, []).append(row)
    # The k-th row of a task of n comes at k / n, so that each task is spread over the whole order.
    order = [
        (place / len(group), task, row.index)
        for task, group in by_task.items()
        for place, row in enumerate(group)
    ]
    drawn = {index for _, _, index in sorted(order)[:limit]}
    return [row for row in rows if row.index in drawn]


def _draw_number(row: Row) -> bytes:
    """Returns a fixed random number of a row."""
    return hashlib.sha256(f"{row.task} {row.index}".encode()).digest()


def as_example(row: Row, source: str, *, direct: bool = False) -> Example:
    """Converts a row to an example without its answer.

    Args:
      row: the row.
      source: the benchmark's name, for error messages.
      direct: whether an answer without thoughts is asked for.
    """
    return Example(
        id=str(row.index),
        task=row.task,
        images=row.images,
        question=row.question,
        targets=(),
        source=f"{source} row {row.index}",
        direct=direct or None,
    )
