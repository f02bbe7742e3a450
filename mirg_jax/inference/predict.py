"""Benchmark rows as questions."""

from collections.abc import Sequence

from mirg_jax.data.examples import Example
from mirg_jax.mig_bench import scoring


def questions(rows: Sequence[scoring.Row], name: str) -> list[tuple[int, Example]]:
    """The rows of a benchmark, numbered, without their answers; `name` is the benchmark's."""
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
