"""Conversion of completions and targets to the static-shape arrays of rewards (on the host)."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool

from mirg_jax.data.examples import Example
from mirg_jax.grounding.boxes import GRID
from mirg_jax.grounding.grammar import parse_response
from mirg_jax.rl.rewards import Answers, Targets


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


def answer_arrays(
    texts: Sequence[str], examples: Sequence[Example], mask: Bool[np.ndarray, "B G L"], size: int
) -> Answers:
    """Parses the completions of each example.

    Args:
      texts: B·G completions, grouped by prompt.
      examples: the B examples.
      mask: the completions' tokens.
      size: maximum number of boxes per answer in the arrays; further ones are only counted.
    """
    B, G, _ = mask.shape
    parsed = [parse_response(text, len(examples[i // G].images)) for i, text in enumerate(texts)]
    boxes, images, valid = zip(*(_fill(p.objects, size) for p in parsed), strict=True)
    return Answers(
        boxes=np.stack(boxes).reshape(B, G, size, 4),
        images=np.stack(images).reshape(B, G, size),
        valid=np.stack(valid).reshape(B, G, size),
        format_ok=np.array([p.format_ok for p in parsed]).reshape(B, G),
        lengths=mask.sum(-1).astype(np.int32),
        count=np.array([len(p.objects) for p in parsed], np.int32).reshape(B, G),
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
