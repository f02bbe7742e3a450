"""The box of a response: as the benchmark's authors find it, and as the answer block has it."""

import math
import re

from mirg_jax.data.mig_bench_rows import Fractions
from mirg_jax.grounding import boxes, grammar

_INT, _FLOAT = r"(\d+)", r"(\d+\.\d+)"
# The authors' patterns in the authors' order. That only some allow blanks is theirs too.
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
    """The box that the benchmark's authors read from a response, None without one.

    The first pattern that occurs anywhere decides. If it occurs once, values from 1 up are grid
    coordinates and divided by 1000; if it occurs several times, values above 1 are, and the first
    box counts. The result may be inverted or lie outside the image.

    Args:
      text: the response.
      scale_y: also stretch y as they do for their own model, Migician, which they do only when
        the pattern occurs once.
    """
    for pattern in _AUTHORS_PATTERNS:
        matches = pattern.findall(text)
        if not matches:
            continue
        values = [float(digits) for digits in matches[0]]
        if not all(map(math.isfinite, values)):
            return None  # hundreds of digits; the authors' IoU is 0 or undefined
        if len(matches) > 1:
            return tuple(value / 1000 if value > 1 else value for value in values)
        box = tuple(value / 1000 if value >= 1 else value for value in values)
        return stretch_y(box) if scale_y else box
    return None


def parse_answer(
    text: str, num_images: int | None = None
) -> tuple[Fractions | None, int | None, bool]:
    """The first object of `<answer>`: its box, its image, and whether the format is right.

    Without an answer block, the first box of the text after the thoughts. The box is None where
    there is no valid one; the image, from 1, is None where the response names none.
    """
    response = grammar.parse_response(text, num_images)
    if not response.objects:
        return None, None, response.format_ok
    first = response.objects[0]
    return boxes.grid_to_fraction(first.box), first.image, response.format_ok


def stretch_y(box: Fractions) -> Fractions:
    """The authors' correction for Migician: y1 by 1.05 and y2 by 1.10, at most 0.999."""
    x1, y1, x2, y2 = box
    return x1, round(min(y1 * 1.05, 0.999), 3), x2, round(min(y2 * 1.10, 0.999), 3)
