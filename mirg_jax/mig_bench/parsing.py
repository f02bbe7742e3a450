"""Finding the box of a response, by the rule of the benchmark's authors or in the answer block."""

import math
import re
from typing import NamedTuple

from mirg_jax.data.mig_bench_rows import Fractions
from mirg_jax.grounding import boxes, grammar

_INT, _FLOAT = r"(\d+)", r"(\d+\.\d+)"
# The authors' patterns, in their order; only some of them allow spaces.
_AUTHORS_PATTERNS = tuple(
    re.compile(pattern)
    for pattern in (
        rf"\({_INT},\s*{_INT}\),\s*\({_INT},\s*{_INT}\)",
        rf"\[{_FLOAT},\s*{_FLOAT},\s*{_FLOAT},\s*{_FLOAT}\]",
        rf"\({_FLOAT},{_FLOAT}\),\({_FLOAT},{_FLOAT}\)",
        rf"\({_FLOAT},\s*{_FLOAT},\s*{_FLOAT},\s*{_FLOAT}\)",
        rf"\[{_INT},\s*{_INT},\s*{_INT},\s*{_INT}\]",
        rf"<box>{_INT}\s+{_INT}\s+{_INT}\s+{_INT}</box>",
    )
)


def parse_authors(text: str, scale_y: bool = False) -> Fractions | None:
    """Finds the box that the benchmark's authors would read from a response; None if there is none.

    The first pattern that occurs anywhere decides. If it occurs once, values from 1 up are grid
    coordinates and divided by 1000; if it occurs several times, values above 1 are, and the first
    box counts. The result may be inverted or lie outside the image.

    Args:
      text: the response.
      scale_y: whether to apply the correction for their own model, Migician; they do so only if the
        pattern occurs once.
    """
    for pattern in _AUTHORS_PATTERNS:
        matches = pattern.findall(text)
        if not matches:
            continue
        values = [float(digits) for digits in matches[0]]
        if not all(map(math.isfinite, values)):
            return None  # hundreds of digits; the authors' IoU is 0 or undefined
        several = len(matches) > 1
        x1, y1, x2, y2 = (
            value / 1000 if value > 1 or (value == 1 and not several) else value for value in values
        )
        box = x1, y1, x2, y2
        return stretch_y(box) if scale_y and not several else box
    return None


class ParsedAnswer(NamedTuple):
    """What a protocol reads from a response.

    Attributes:
      box: the box that is scored; None if there is no valid one.
      image: number, from 1, of the image that the response names; None if it names none.
      format_ok: whether the format is right; None if the protocol doesn't check it.
    """

    box: Fractions | None
    image: int | None
    format_ok: bool | None


def parse_answer(text: str, num_images: int | None = None, *, direct: bool = False) -> ParsedAnswer:
    """Finds the first object of the answer block.

    Without an answer block it is the first box after the thoughts.

    Args:
      text: the response.
      num_images: number of images of the question.
      direct: whether an answer without thoughts was asked for.
    """
    response = grammar.parse_response(text, num_images, direct=direct)
    if not response.objects:
        return ParsedAnswer(None, None, response.format_ok)
    first = response.objects[0]
    return ParsedAnswer(boxes.grid_to_fraction(first.box), first.image, response.format_ok)


def stretch_y(box: Fractions) -> Fractions:
    """Applies the authors' correction for Migician: y1 × 1.05 and y2 × 1.10, at most 0.999."""
    x1, y1, x2, y2 = box
    return x1, round(min(y1 * 1.05, 0.999), 3), x2, round(min(y2 * 1.10, 0.999), 3)
