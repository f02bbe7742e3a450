"""The rows of a MIG-Bench file."""

import dataclasses
import pathlib
from collections.abc import Sequence

from mirg_jax.data.examples import Example
from mirg_jax.data.json_rows import kind_of, quote, read_rows
from mirg_jax.data.mig_bench_rows import Fractions, read_fields
from mirg_jax.errors import DataError


@dataclasses.dataclass(frozen=True)
class Row:
    """One question of the benchmark with its answer.

    Attributes:
      index: the row's number in its file, from 0. Predictions, scores, comparisons and reports all
        name the row by it, whichever rows were chosen.
      images: paths as in the file, relative to the image root.
      answer: x1, y1, x2, y2 as in the file, in fractions of the image; of some rows it is inverted,
        and nothing can hit it.
      target_image: the image, from 1, that the answer lies in; None where the file doesn't say
        (`data.mig_bench_rows` has the rule).
    """

    index: int
    task: str
    images: tuple[str, ...]
    question: str
    answer: Fractions
    target_image: int | None


def load_benchmark(path: str | pathlib.Path) -> list[Row]:
    """Reads the rows of a file, a JSON list or JSON lines, impossible answers included.

    Raises:
      DataError: the file is missing, cut or empty, or a row lacks what scoring needs.
    """
    found = []
    for index, row in enumerate(read_rows(path)):
        try:
            found.append(_read_row(index, row))
        except DataError as error:
            raise DataError(f"{path} row {index}: {error}") from None
    return found


def _read_row(index: int, row: object) -> Row:
    if not isinstance(row, dict):
        raise DataError(f"not an object but {kind_of(row)}")
    fields = read_fields(row)
    for name in ("task", "question"):
        if not getattr(fields, name):
            raise DataError(f"{name!r} is empty")
    # The published file has answers up to 1.048; a value on the 0..1000 grid is a mistake.
    if not all(0 <= value < 2 for value in fields.answer):
        raise DataError(f"'answer' {quote([*fields.answer])} is not in fractions of the image")
    return Row(index, **fields._asdict())


def choose(rows: Sequence[Row], limit: int) -> list[Row]:
    """At most `limit` of the rows, spread evenly over them; 0 for all."""
    if 0 < limit < len(rows):
        return [rows[i * len(rows) // limit] for i in range(limit)]
    return list(rows)


def as_example(row: Row, source: str) -> Example:
    """A row as a question to be answered, without its answer; `source` is the benchmark's name."""
    return Example(
        id=str(row.index),
        task=row.task,
        images=row.images,
        question=row.question,
        targets=(),
        source=f"{source} row {row.index}",
    )
