"""Rule-based rewards of equations 1–3, on fixed-shape arrays.

A completion answers with up to A boxes, a question has up to A targets; `*B` is any batch shape,
usually [prompts, group]. A reward is a pure function `(answers, targets) -> [*B]` in 0–1: add one
by naming it "module:function" in the config's `rewards`.
"""

import importlib
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


class Answers(NamedTuple):
    """What was parsed from completions."""

    boxes: Float[Array, "*B A 4"]  # x1, y1, x2, y2 as fractions of the image
    images: Int[Array, "*B A"]  # from 1; 0 where the answer names no image
    valid: Bool[Array, "*B A"]
    format_ok: Bool[Array, "*B"]
    lengths: Int[Array, "*B"]  # tokens of the completion


class Targets(NamedTuple):
    """The true objects of the questions."""

    boxes: Float[Array, "*B A 4"]
    images: Int[Array, "*B A"]  # from 1; 0 where the data doesn't say: any image is then right
    valid: Bool[Array, "*B A"]


Reward = Callable[[Answers, Targets], Float[Array, "*B"]]


def iou(a: Float[Array, "*B 4"], b: Float[Array, "*B 4"]) -> Float[Array, "*B"]:
    """Intersection over union of boxes x1, y1, x2, y2; 0 if either is empty or inverted."""
    size_a = jnp.maximum(a[..., 2:] - a[..., :2], 0)
    size_b = jnp.maximum(b[..., 2:] - b[..., :2], 0)
    overlap = jnp.minimum(a[..., 2:], b[..., 2:]) - jnp.maximum(a[..., :2], b[..., :2])
    shared = jnp.where((overlap > 0).all(-1), overlap.prod(-1), 0)
    union = size_a.prod(-1) + size_b.prod(-1) - shared
    return jnp.where(shared > 0, shared / jnp.where(union > 0, union, 1), 0)


def match(answers: Answers, targets: Targets) -> tuple[Float[Array, "*B A"], Float[Array, "*B A"]]:
    """Pairs answers with targets one to one, the best pair first.

    A pair's merit is its IoU plus 1 for the right image, as the two rewards count it.

    Returns:
      IoU and image match (0 or 1) of each target's answer; 0 where it has none.
    """
    overlap = iou(answers.boxes[..., :, None, :], targets.boxes[..., None, :, :])
    asked = targets.images[..., None, :]
    same_image = ((answers.images[..., :, None] == asked) | (asked == 0)).astype(jnp.float32)
    possible = answers.valid[..., :, None] & targets.valid[..., None, :]
    size = overlap.shape[-1]

    def take_best(_, state):
        free, box, image = state
        merit = jnp.where(free, overlap + same_image, -1.0)
        merit = merit.reshape(*merit.shape[:-2], -1)
        best = merit.argmax(axis=-1)
        found = merit.max(axis=-1) >= 0
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
    """Mean credit; an object too many costs as much as one too few."""
    count = jnp.maximum(answers.valid.sum(-1), targets.valid.sum(-1))
    return credit.sum(-1) / jnp.maximum(count, 1)


def format_reward(answers: Answers, targets: Targets) -> Float[Array, "*B"]:
    """r_fmt: 1 for one think block, then one answer block with a valid box."""
    del targets
    return answers.format_ok.astype(jnp.float32)


def image_reward(answers: Answers, targets: Targets) -> Float[Array, "*B"]:
    """r_img (equation 2): 1 where the answer names the target's image; a mean over objects."""
    return _per_object(match(answers, targets)[1], answers, targets)


def object_reward(answers: Answers, targets: Targets) -> Float[Array, "*B"]:
    """r_obj (equation 1): IoU with the target, whichever image is named; a mean over objects."""
    return _per_object(match(answers, targets)[0], answers, targets)


def gated_object_reward(answers: Answers, targets: Targets) -> Float[Array, "*B"]:
    """IoU with the target, counted only in the right image."""
    box, image = match(answers, targets)
    return _per_object(box * image, answers, targets)


REWARDS: dict[str, Reward] = {
    "format": format_reward,
    "image": image_reward,
    "object": object_reward,
    "object_gated": gated_object_reward,
}


def resolve(names: Mapping[str, float]) -> dict[str, tuple[Reward, float]]:
    """Looks up rewards and their weights by name; "module:function" is imported.

    Raises:
      ValueError: for a name that is not known or can't be imported.
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
    """The weighted sum (equation 3 with weights of 1), and each part."""
    parts = {name: reward(answers, targets) for name, (reward, _) in rewards.items()}
    return sum(weight * parts[name] for name, (_, weight) in rewards.items()), parts
