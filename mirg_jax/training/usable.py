"""Checks that a data set can be trained on, before a model is downloaded or loaded for it."""

from collections.abc import Callable, Sequence

from mirg_jax.data.examples import Example, Rejected
from mirg_jax.data.images import load_image
from mirg_jax.errors import DataError
from mirg_jax.runs.settings import DataSettings


def check(
    data: DataSettings,
    examples: Sequence[Example],
    rejected: Sequence[Rejected],
    keep: Callable[[Example], bool],
) -> None:
    """Checks that at least one example can be used; reads images until those of one are there.

    Args:
      data: where the data set and its images are.
      examples: the examples that were read.
      rejected: the rows that can't be used.
      keep: returns whether this kind of training can use an example.

    Raises:
      DataError: if no example can be used; the message has the number of rows and the first reason.
    """
    kept = [example for example in examples if keep(example)]
    if not kept:
        reasons = [f"{row.source}: {row.reason}" for row in rejected]
        reasons += [f"{example.source}: it has no target box" for example in examples]
        raise DataError(
            f"{data.train_json}: the data set is empty, all {len(reasons)} rows are left out; "
            f"the first: {reasons[0]}"
        )
    root, first = data.root(data.image_root), None
    for example in kept:
        try:
            for path in example.images:
                load_image(root, path)
            return
        except DataError as error:
            first = first or f"{example.source}: {error}"
    raise DataError(
        f"{data.train_json}: the data set is empty, none of its {len(kept)} questions has images "
        f"that can be read below data.image_root={data.image_root!r}; the first: {first}"
    )
