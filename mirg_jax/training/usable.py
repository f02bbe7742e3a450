"""Checks that a data set can be trained on, before a model is downloaded or loaded for it."""

import functools
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from mirg_jax.data import forms, ratings
from mirg_jax.data.answers import why_unusable
from mirg_jax.data.examples import Example, Rejected, read_examples
from mirg_jax.data.images import Root, load_image
from mirg_jax.errors import DataError
from mirg_jax.files.streams import say
from mirg_jax.grounding.boxes import iou
from mirg_jax.grounding.grammar import parse_response
from mirg_jax.rl import own_rewards
from mirg_jax.runs.settings import DataSettings, Settings

_HIT = 0.5  # IoU, as in evaluations


class Rows(NamedTuple):
    """The rows of a training file.

    Attributes:
      kept: those to train on, each with the form of its answer.
      left_out: those that can't be used.
      chosen: a line that says how many others were left out by their ratings; "" without ratings.
    """

    kept: list[Example]
    left_out: list[Rejected]
    chosen: str


def read(settings: Settings, refuse: Callable[[Example], str]) -> Rows:
    """Reads a recipe's training rows; images are not read.

    Args:
      settings: the recipe.
      refuse: returns why its kind of training can't use an example, or "" if it can.

    Raises:
      DataError: if the file or its ratings can't be used.
    """
    data, line = settings.data, ""
    examples, bad_rows = read_examples(data.train_json, columns=_reads_columns(settings))
    if data.ratings:
        examples, line = ratings.choose(examples, data.ratings, data.difficulty, data.gain)
    kept, refused = split(forms.ask(examples, data.direct, settings.seed), refuse)
    return Rows(kept, bad_rows + refused, line)


def _reads_columns(settings: Settings) -> bool:
    """Whether a reward over texts may ask for columns of the rows."""
    return settings.grpo is not None and any(map(own_rewards.is_of_texts, settings.grpo.rewards))


def refusal(settings: Settings) -> Callable[[Example], str]:
    """Returns the function that says why a recipe's kind of training can't use an example."""
    if settings.grpo:
        return functools.partial(why_unusable, size=settings.grpo.max_objects)
    return lambda _: ""


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


def say_misses(path: str, examples: Iterable[Example]) -> None:
    """Says in a line how many trajectories answer otherwise than their own targets.

    They are learned as they are: a teacher's boxes may be better than the data set's. In what
    `build_trajectories.py` accepts, answers differ by no more than `checks.answer_iou`.

    Args:
      path: the file that they are from.
      examples: the examples; those without a response or without targets don't count.
    """
    told = [each for each in examples if each.response is not None and each.targets]
    if misses := [example for example in told if _misses(example)]:
        say(
            f"{path}: {len(misses)} of {len(told)} responses miss a target of their row (IoU below "
            f"{_HIT}, or another image); they are learned as they are; the first: "
            f"{misses[0].source or misses[0].id}"
        )


def _misses(example: Example) -> bool:
    """Returns whether a target is hit by no box of the response's answer."""
    answered = parse_response(example.response or "", len(example.images)).objects
    return not all(
        any(
            float(iou(found.box, target.box)) >= _HIT
            for found in answered
            if target.image in (None, found.image) or found.image is None
        )
        for target in example.targets
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


def say_passes(steps: int, batch_size: int, count: int) -> None:
    """Says on stdout how often a run reads its examples, if that is more than once.

    Args:
      steps: of the whole run.
      batch_size: examples a step.
      count: number of examples.
    """
    if count and steps * batch_size > count:
        say(
            f"{steps} steps of {batch_size} examples go {steps * batch_size / count:.1f} times "
            f"through these {count}, each time in another order",
            sys.stdout,
        )
