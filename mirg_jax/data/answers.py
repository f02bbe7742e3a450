"""Completions and targets as the static-shape arrays of rewards (on the host); rewards of texts."""

from collections.abc import Sequence

import jax
import numpy as np
from jaxtyping import Float, Int

from mirg_jax.data.examples import Example
from mirg_jax.grounding.boxes import GRID
from mirg_jax.grounding.grammar import Response, parse_response
from mirg_jax.rl.rewards import Answers, Targets, gated_object_reward

_AT_ONCE = 4096  # texts whose rewards are computed together
_BOXES = 8  # of an answer that can match a target, as the default of grpo.max_objects

_gated = jax.jit(gated_object_reward)


def _fill(objects, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    boxes = np.zeros((size, 4), np.float32)
    images = np.zeros(size, np.int32)
    valid = np.zeros(size, bool)
    for i, found in enumerate(objects[:size]):
        boxes[i] = np.asarray(found.box, np.float32) / GRID
        images[i] = found.image or 0
        valid[i] = True
    return boxes, images, valid


def why_unusable(example: Example, size: int) -> str:
    """Returns why an example can't be rewarded, or "" if it can.

    Args:
      example: the example.
      size: maximum number of targets.
    """
    if not example.targets:
        return "the row has no target box to reward"
    if (count := len(example.targets)) > size:
        return f"{count} targets are more than grpo.max_objects={size}; raise it or remove the row"
    return ""


def parse(texts: Sequence[str], examples: Sequence[Example]) -> list[Response]:
    """Parses completions, each with the example that it answers."""
    return [
        parse_response(text, len(example.images), direct=bool(example.direct))
        for text, example in zip(texts, examples, strict=True)
    ]


def answer_arrays(
    texts: Sequence[str], examples: Sequence[Example], lengths: Int[np.ndarray, "B G"], size: int
) -> Answers:
    """Parses the completions of each example.

    Args:
      texts: B·G completions, grouped by prompt.
      examples: the B examples.
      lengths: the completions' numbers of tokens.
      size: maximum number of boxes per answer in the arrays; further ones are only counted.
    """
    B, G = lengths.shape
    asked = [example for example in examples for _ in range(G)]
    parsed = parse(texts, asked)
    boxes, images, valid = zip(*(_fill(p.objects, size) for p in parsed), strict=True)
    return Answers(
        boxes=np.stack(boxes).reshape(B, G, size, 4),
        images=np.stack(images).reshape(B, G, size),
        valid=np.stack(valid).reshape(B, G, size),
        format_ok=np.array([p.format_ok for p in parsed]).reshape(B, G),
        lengths=lengths.astype(np.int32),
        count=np.array([len(p.objects) for p in parsed], np.int32).reshape(B, G),
        mentions=np.array([len(p.mentions) for p in parsed], np.int32).reshape(B, G),
        placed=np.array(
            [sum(m.image is not None for m in p.mentions) for p in parsed], np.int32
        ).reshape(B, G),
    )


def target_arrays(examples: Sequence[Example], group: int, size: int) -> Targets:
    """Returns the targets of each example, repeated for the completions of its group.

    Args:
      examples: the examples, which have at most `size` targets each (see `why_unusable`).
      group: completions per prompt.
      size: number of targets per example in the arrays.
    """
    arrays = zip(*(_fill(example.targets, size) for example in examples), strict=True)
    return Targets(*(np.repeat(np.stack(a)[:, None], group, axis=1) for a in arrays))


def overlaps(texts: Sequence[str], examples: Sequence[Example]) -> Float[np.ndarray, " N"]:
    """Returns the reward "object_gated" of each text, to six decimals.

    That is the mean IoU of its boxes with the targets; a box counts only in the right image.

    Args:
      texts: the responses.
      examples: the example that each of them answers.
    """
    found = [np.zeros(0)]
    for at in range(0, len(texts), _AT_ONCE):
        asked = examples[at : at + _AT_ONCE]
        size = max(_BOXES, *(len(example.targets) for example in asked))
        no_tokens = np.zeros((len(asked), 1), np.int32)
        answers = answer_arrays(texts[at : at + _AT_ONCE], asked, no_tokens, size)
        targets = target_arrays(asked, 1, size)
        # On the grid, where areas are whole numbers: an IoU of a half is then exactly that.
        answers, targets = (
            each._replace(boxes=np.rint(each.boxes * GRID)) for each in (answers, targets)
        )
        found.append(np.asarray(_gated(answers, targets), np.float64)[:, 0])
    return np.concatenate(found).round(6)
