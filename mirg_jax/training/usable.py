"""Checks that a data set can be trained on, before a model is downloaded or loaded for it."""

from collections.abc import Callable, Iterable, Sequence

from mirg_jax.data.examples import Example, Rejected
from mirg_jax.data.images import Root, load_image
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
    root = data.root(data.image_root)
    if problem := why_unreadable((example.images for example in kept), root, load_image):
        raise DataError(
            f"{data.train_json}: the data set is empty, none of its {len(kept)} questions has "
            f"images that can be read below data.image_root={data.image_root!r}; the first: "
            f"{kept[0].source}: {problem}"
        )


def why_unreadable(
    rows: Iterable[Sequence[str]], root: Root, read: Callable[[Root, str], object]
) -> DataError | None:
    """Returns why the first row's images can't be read; None if those of any row can be.

    Args:
      rows: the image paths of each row.
      root: the image root.
      read: reads an image, or as much of it as is to be there.
    """
    first = None
    for images in rows:
        try:
            for path in images:
                read(root, path)
            return None
        except DataError as error:
            first = first or error
    return first
