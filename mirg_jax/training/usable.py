"""Checks that a data set can be trained on, before a model is downloaded or loaded for it."""

from collections.abc import Callable, Sequence

from mirg_jax.data.examples import Example, Rejected
from mirg_jax.data.images import load_image
from mirg_jax.errors import DataError
from mirg_jax.runs.settings import DataSettings


def split(
    examples: Sequence[Example], refuse: Callable[[Example], str]
) -> tuple[list[Example], list[Rejected]]:
    """Splits examples into those that a kind of training can use, and the others.

    Args:
      examples: the examples that were read.
      refuse: returns why an example can't be used, or "" if it can.
    """
    kept, refused = [], []
    for example in examples:
        if reason := refuse(example):
            refused.append(Rejected(example.source, example.id, reason))
        else:
            kept.append(example)
    return kept, refused


def check(data: DataSettings, kept: Sequence[Example], rejected: Sequence[Rejected]) -> None:
    """Checks that there is an example to train on; reads images until those of one are there.

    Args:
      data: where the data set and its images are.
      kept: the examples that can be used.
      rejected: the rows that can't be used.

    Raises:
      DataError: if no example can be used; the message has the number of rows and the first reason.
    """
    if not kept:
        raise DataError(
            f"{data.train_json}: the data set is empty, all {len(rejected)} rows are left out; "
            f"the first: {rejected[0].source}: {rejected[0].reason}"
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
