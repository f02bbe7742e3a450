"""Conversion of benchmark rows to questions."""

from collections.abc import Sequence

from mirg_jax.data.examples import Example
from mirg_jax.mig_bench import scoring


def questions(rows: Sequence[scoring.Row], name: str) -> list[tuple[int, Example]]:
    """Converts benchmark rows to numbered examples without answers.

    Args:
      rows: the benchmark's rows.
      name: the benchmark's name, for error messages.
    """
    return [
        (
            index,
            Example(
                id=str(index),
                task=row["task"],
                images=tuple(row["images"]),
                question=row["question"],
                targets=(),
                source=f"{name} row {index}",
            ),
        )
        for index, row in enumerate(rows)
    ]
