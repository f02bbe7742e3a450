"""Rule-based rewards (equations 1–3) on arrays of static shape.

Arrays hold up to A boxes of an answer and up to A targets of a question; an answer may have more
boxes, which `count` includes. `*B` is any batch shape, usually [prompts, group]. A reward is a pure
function `(answers, targets) -> [*B]` with values in 0–1. To add one, name it as "module:function"
in the config's `rewards`.
"""

import functools
import importlib
import operator
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


class Answers(NamedTuple):
    """Answers parsed from completions."""

    boxes: Float[Array, "*B A 4"]  # x1, y1, x2, y2 as fractions of the image
    images: Int[Array, "*B A"]  # image numbers from 1; 0 if the answer names no image
    valid: Bool[Array, "*B A"]  # False for padding
    format_ok: Bool[Array, "*B"]  # whether the completion has the required format
    lengths: Int[Array, "*B"]  # number of tokens in the completion
    count: Int[Array, "*B"]  # number of boxes in the answer, including those beyond the first A


class Targets(NamedTuple):
    """Ground-truth objects of the questions."""

    boxes: Float[Array, "*B A 4"]  # x1, y1, x2, y2 as fractions of the image
    images: Int[Array, "*B A"]  # image numbers from 1; 0 if unknown: any image counts as correct
    valid: Bool[Array, "*B A"]  # False for padding


Reward = Callable[[Answers, Targets], Float[Array, "*B"]]


def iou(a: Float[Array, "*#B 4"], b: Float[Array, "*#B 4"]) -> Float[Array, "*B"]:
    """Computes the intersection over union of boxes x1, y1, x2, y2.

    It is 0 if either box is empty or inverted.
    """
    size_a = jnp.maximum(a[..., 2:] - a[..., :2], 0)
    size_b = jnp.maximum(b[..., 2:] - b[..., :2], 0)
    overlap = jnp.minimum(a[..., 2:], b[..., 2:]) - jnp.maximum(a[..., :2], b[..., :2])
    shared = jnp.where((overlap > 0).all(-1), overlap.prod(-1), 0)
    union = size_a.prod(-1) + size_b.prod(-1) - shared
    return jnp.where(shared > 0, shared / jnp.where(union > 0, union, 1), 0)


def match(answers: Answers, targets: Targets) -> tuple[Float[Array, "*B A"], Float[Array, "*B A"]]:
    """Matches answer boxes to targets one to one, greedily by score.

    The score of a pair is its IoU, plus 1 if the image is correct: the sum of the two rewards.

    Returns:
      IoU and image match (0 or 1) of the box matched to each target; 0 if no box is.
    """
    overlap = iou(answers.boxes[..., :, None, :], targets.boxes[..., None, :, :])
    asked = targets.images[..., None, :]
    same_image = ((answers.images[..., :, None] == asked) | (asked == 0)).astype(jnp.float32)
    possible = answers.valid[..., :, None] & targets.valid[..., None, :]
    size = overlap.shape[-1]

    def take_best(_, state):
        free, box, image = state
        score = jnp.where(free, overlap + same_image, -1.0)
        score = score.reshape(*score.shape[:-2], -1)
        best = score.argmax(axis=-1)
        found = score.max(axis=-1) >= 0
        row = jax.nn.one_hot(best // size, size, dtype=bool) & found[..., None]
        column = jax.nn.one_hot(best % size, size, dtype=bool) & found[..., None]
        pair = row[..., :, None] & column[..., None, :]
        box += jnp.where(pair, overlap, 0).sum(axis=-2)
        image += jnp.where(pair, same_image, 0).sum(axis=-2)
        return free & ~row[..., :, None] & ~column[..., None, :], box, image

    zeros = jnp.zeros(targets.valid.shape, jnp.float32)
    _, box, image = jax.lax.fori_loop(0, size, take_best, (possible, zeros, zeros))
    return box, image


def _per_object(
    credit: Float[Array, "*B A"], answers: Answers, targets: Targets
) -> Float[Array, "*B"]:
    """Averages credit over the larger of the numbers of answers and targets.

    A surplus object thus costs as much as a missing one, also beyond the first A.
    """
    count = jnp.maximum(answers.count, targets.valid.sum(-1))
    return credit.sum(-1) / jnp.maximum(count, 1)


def format_reward(answers: Answers, targets: Targets) -> Float[Array, "*B"]:
    """Computes r_fmt: 1 for one think block followed by one answer block with a valid box."""
    del targets
    return answers.format_ok.astype(jnp.float32)


def image_reward(answers: Answers, targets: Targets) -> Float[Array, "*B"]:
    """Computes r_img (equation 2): the fraction of objects whose image is named correctly."""
    return _per_object(match(answers, targets)[1], answers, targets)


def object_reward(answers: Answers, targets: Targets) -> Float[Array, "*B"]:
    """Computes r_obj (equation 1): mean over objects of the IoU, whichever image is named."""
    return _per_object(match(answers, targets)[0], answers, targets)


def gated_object_reward(answers: Answers, targets: Targets) -> Float[Array, "*B"]:
    """Computes the mean over objects of the IoU, counted as 0 if the wrong image is named."""
    box, image = match(answers, targets)
    return _per_object(box * image, answers, targets)


REWARDS: dict[str, Reward] = {
    "format": format_reward,
    "image": image_reward,
    "object": object_reward,
    "object_gated": gated_object_reward,
}


def resolve(names: Mapping[str, float]) -> dict[str, tuple[Reward, float]]:
    """Looks up reward functions by name.

    Args:
      names: weights by name: a key of `REWARDS`, or "module:function", which is imported.

    Returns:
      Reward function and weight by name.

    Raises:
      ValueError: if a name is unknown or can't be imported.
    """
    resolved = {}
    for name, weight in names.items():
        if name in REWARDS:
            resolved[name] = (REWARDS[name], weight)
            continue
        module, _, function = name.partition(":")
        try:
            resolved[name] = (getattr(importlib.import_module(module), function), weight)
        except (ImportError, AttributeError, ValueError):
            raise ValueError(
                f"rewards: {name!r} is neither one of {', '.join(REWARDS)} nor an importable "
                "module:function"
            ) from None
    return resolved


def total(
    rewards: Mapping[str, tuple[Reward, float]], answers: Answers, targets: Targets
) -> tuple[Float[Array, "*B"], dict[str, Float[Array, "*B"]]]:
    """Computes the weighted sum of rewards and each reward by itself.

    With weights of 1 the sum is equation 3.
    """
    parts = {name: reward(answers, targets) for name, (reward, _) in rewards.items()}
    weighted = (weight * parts[name] for name, (_, weight) in rewards.items())
    return functools.reduce(operator.add, weighted), parts
