"""Rule-based rewards (equations 1–3) on arrays of static shape.

Arrays hold up to A boxes of an answer and up to A targets of a question; an answer may have more
boxes, which `count` includes. `*B` is any batch shape, usually [prompts, group]. A reward is a pure
function `(answers, targets) -> [*B]`, with values in 0–1 but for penalties. To add one, name it as
"path/to/file.py:function" or "module:function" in the config (`own_rewards.py`), with "text:"
before it if it reads texts: such ones are computed on the host, and come with the answers.
"""

import functools
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from mirg_jax.errors import ConfigError
from mirg_jax.rl import own_rewards
from mirg_jax.rl.overlaps import bounded_iou, ciou, giou, iou


class Answers(NamedTuple):
    """Answers parsed from completions."""

    boxes: Float[Array, "*B A 4"]  # x1, y1, x2, y2 as fractions of the image
    images: Int[Array, "*B A"]  # image numbers from 1; 0 if the answer names no image
    valid: Bool[Array, "*B A"]  # False for padding
    format_ok: Bool[Array, "*B"]  # whether the completion has the required format
    lengths: Int[Array, "*B"]  # number of tokens in the completion
    count: Int[Array, "*B"]  # number of boxes in the answer, including those beyond the first A
    mentions: Int[Array, "*B"]  # number of objects with a box in the thoughts
    placed: Int[Array, "*B"]  # those of them that are named with an image that exists
    told: dict[str, Float[Array, "*B"]] = {}  # noqa: RUF012 — rewards over texts, by name


class Targets(NamedTuple):
    """Ground-truth objects of the questions."""

    boxes: Float[Array, "*B A 4"]  # x1, y1, x2, y2 as fractions of the image
    images: Int[Array, "*B A"]  # image numbers from 1; 0 if unknown: any image counts as correct
    valid: Bool[Array, "*B A"]  # False for padding


Reward = Callable[[Answers, Targets], Float[Array, "*B"]]
_IF_FORMAT = "_if_format"  # at the end of a reward's name
Measure = Callable[[Array, Array], Array]  # of how well two boxes agree, from 0 to 1


class RewardOptions(NamedTuple):
    """What some of the rewards depend on besides the answers."""

    max_tokens: int = 1024  # limit of a completion
    overlong_buffer: float = 0.2  # last part of the limit, in which "overlong" falls to −1
    iou_thresholds: tuple[float, float] = (0.1, 0.9)  # of "object_bounded"


def match(
    answers: Answers, targets: Targets, measure: Measure = iou
) -> tuple[Float[Array, "*B A"], Float[Array, "*B A"]]:
    """Matches answer boxes to targets one to one, greedily by score.

    The score of a pair is its IoU, plus 1 if the image is correct: the sum of the two rewards.

    Args:
      answers: the answers.
      targets: the targets.
      measure: what takes the place of the IoU.

    Returns:
      IoU and image match (0 or 1) of the box matched to each target; 0 if no box is.
    """
    overlap = measure(answers.boxes[..., :, None, :], targets.boxes[..., None, :, :])
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


def box_reward(answers: Answers, targets: Targets, *, measure: Measure) -> Float[Array, "*B"]:
    """Computes `object_reward` with another measure than the IoU."""
    return _per_object(match(answers, targets, measure)[0], answers, targets)


def gated_object_reward(
    answers: Answers, targets: Targets, *, measure: Measure = iou
) -> Float[Array, "*B"]:
    """Computes the mean over objects of the IoU, counted as 0 if the wrong image is named."""
    box, image = match(answers, targets, measure)
    return _per_object(box * image, answers, targets)


def f1_reward(answers: Answers, targets: Targets) -> Float[Array, "*B"]:
    """Computes the F1 score of an answer's boxes, 2 · hits / (boxes + targets).

    A hit is a box that is matched to a target with an IoU of 0.5 or more, as in MIG-Bench.
    """
    hits = (match(answers, targets)[0] >= 0.5).sum(-1)
    return 2 * hits / jnp.maximum(answers.count + targets.valid.sum(-1), 1)


def thoughts_image_reward(answers: Answers, targets: Targets) -> Float[Array, "*B"]:
    """Computes the share of the thoughts' objects that are named with an image that exists.

    It is 0 for thoughts without an object.
    """
    del targets
    return answers.placed / jnp.maximum(answers.mentions, 1)


def length_reward(answers: Answers, targets: Targets) -> Float[Array, "*B"]:
    """Computes the length reward of Kimi k1.5 (arXiv 2501.12599), from −0.5 to 0.5.

    λ = 0.5 − (length − shortest) / (longest − shortest) over the group, the last axis of `*B`, for
    right answers, min(0, λ) for others, and 0 if all lengths are equal. Right means here that every
    object has an IoU of 0.5 or more and there is no box too many.
    """
    hits = (match(answers, targets)[0] >= 0.5).sum(-1)
    right = (hits == targets.valid.sum(-1)) & (hits == answers.count)
    shortest = answers.lengths.min(-1, keepdims=True)
    spread = answers.lengths.max(-1, keepdims=True) - shortest
    share = 0.5 - (answers.lengths - shortest) / jnp.maximum(spread, 1)
    return jnp.where(spread > 0, jnp.where(right, share, jnp.minimum(share, 0.0)), 0.0)


def overlong_reward(
    answers: Answers, targets: Targets, *, options: RewardOptions
) -> Float[Array, "*B"]:
    """Computes the soft overlong penalty, from −1 to 0 (DAPO, arXiv 2503.14476, equation 13).

    It is 0 up to a length of L_max − L_cache and falls linearly to −1 at L_max, where L_max is
    `max_tokens` and L_cache its part `overlong_buffer`.
    """
    del targets
    cache = options.overlong_buffer * options.max_tokens
    start = options.max_tokens - cache
    return jnp.clip((start - answers.lengths.astype(jnp.float32)) / cache, -1.0, 0.0)


def _if_format(reward: Reward) -> Reward:
    """Returns a reward that counts only if the format is right."""
    return lambda answers, targets: jnp.where(answers.format_ok, reward(answers, targets), 0.0)


def named_rewards(options: RewardOptions) -> dict[str, Reward]:
    """Returns the rewards by name; `resolve` explains the names."""
    bounded = functools.partial(bounded_iou, thresholds=options.iou_thresholds)
    named: dict[str, Reward] = {
        "format": format_reward,
        "image": image_reward,
        "object": object_reward,
        "object_gated": gated_object_reward,
    }
    for name, measure in {"bounded": bounded, "giou": giou, "ciou": ciou}.items():
        named[f"object_{name}"] = functools.partial(box_reward, measure=measure)
        named[f"object_{name}_gated"] = functools.partial(gated_object_reward, measure=measure)
    return named | {
        "object_f1": f1_reward,
        "thoughts_image": thoughts_image_reward,
        "length": length_reward,
        "overlong": functools.partial(overlong_reward, options=options),
    }


def parse_terms(terms: Sequence[str]) -> dict[str, float]:
    """Parses "name=weight" to weights by name; a name alone has a weight of 1.

    Raises:
      ConfigError: if a weight is no number, or a name is given twice.
    """
    found = {}
    for term in terms:
        name, equals, weight = term.rpartition("=")
        name = name if equals else term
        if name in found:
            raise ConfigError(f"rewards: {name!r} is given twice; give it once, with its weight")
        try:
            found[name] = float(weight) if equals else 1.0
        except ValueError:
            raise ConfigError(
                f"rewards: {term!r} has no number behind '='; write name=weight"
            ) from None
    return found


def check_names(names: Iterable[str]) -> None:
    """Checks that rewards have names that `resolve` takes; loads nothing.

    Raises:
      ConfigError: if a name is neither known nor of the form of a user's own.
    """
    known = named_rewards(RewardOptions())
    for name in names:
        if own_rewards.is_of_texts(name) and name.count(":") < 2:
            raise ConfigError(
                f"rewards: {name!r} names no function; write text:path/to/file.py:function or "
                "text:module:function"
            )
        if name.removesuffix(_IF_FORMAT) not in known and ":" not in name:
            raise ConfigError(
                f"rewards: {name!r} is none of {', '.join(known)}, each also with {_IF_FORMAT} at "
                "its end, and no path/to/file.py:function or module:function, with text: before "
                "it if it reads texts"
            )


def resolve(
    names: Mapping[str, float], options: RewardOptions | None = None
) -> dict[str, tuple[Reward, float]]:
    """Looks up reward functions by name.

    Args:
      names: weights by name: a key of `named_rewards`, which counts only for completions of the
        right format if "_if_format" follows it, or a function of a user's own (`own_rewards.py`).
      options: what some of the rewards depend on; None for the defaults.

    Returns:
      Reward function and weight by name.

    Raises:
      ConfigError: if a name is unknown, or a user's own function can't be loaded.
    """
    check_names(names)
    known = named_rewards(options or RewardOptions())

    def find(name: str) -> Reward:
        if name in known:
            return known[name]
        if own_rewards.is_of_texts(name):
            return lambda answers, targets: answers.told[name]
        if (plain := name.removesuffix(_IF_FORMAT)) in known:
            return _if_format(known[plain])
        return own_rewards.load(name)

    return {name: (find(name), weight) for name, weight in names.items()}


def total(
    rewards: Mapping[str, tuple[Reward, float]], answers: Answers, targets: Targets
) -> tuple[Float[Array, "*B"], dict[str, Float[Array, "*B"]]]:
    """Computes the weighted sum of rewards and each reward by itself.

    With weights of 1 the sum is equation 3.
    """
    parts = {name: reward(answers, targets) for name, (reward, _) in rewards.items()}
    weighted = (weight * parts[name] for name, (_, weight) in rewards.items())
    return functools.reduce(operator.add, weighted), parts


def nothing_said(
    batch: tuple[int, ...], size: int, names: Iterable[str] = ()
) -> tuple[Answers, Targets]:
    """Returns the arrays of completions without an answer, to questions without a target.

    Args:
      batch: the batch shape.
      size: number of boxes in the arrays, A.
      names: of rewards; those over texts are 0.
    """
    no_boxes = jnp.zeros((*batch, size, 4))
    no_images, none_valid = jnp.zeros((*batch, size), jnp.int32), jnp.zeros((*batch, size), bool)
    objects, none = (no_boxes, no_images, none_valid), jnp.zeros(batch, jnp.int32)
    told = {name: jnp.zeros(batch) for name in names if own_rewards.is_of_texts(name)}
    answers = Answers(*objects, jnp.zeros(batch, bool), none, none, none, none, told)
    return answers, Targets(*objects)
