"""Absolute pixels of the resized image ↔ our grid.

Qwen2.5-VL's published models were taught boxes in pixels of the image as they get it. Ours, trained
on the grid of the data, speak the grid whichever family they come from.
"""

import re
from collections.abc import Sequence

from ml_collections import ConfigDict
from PIL import Image

from mirg_jax.data.images import resolve_image, smart_resize
from mirg_jax.errors import ConfigError, DataError
from mirg_jax.evaluation import scoring
from mirg_jax.grounding import boxes, grammar

NAMES = ("grid", "pixels")

Size = tuple[int, int]  # width, height

_N = r"(\d{1,5})"
_POINTS = rf"\(\s*{_N}\s*,\s*{_N}\s*\)\s*,\s*\(\s*{_N}\s*,\s*{_N}\s*\)"
_START, _END = map(re.escape, (grammar.BOX_START, grammar.BOX_END))
_BOX = re.compile(
    rf"(?:{_START})?(?:{_POINTS}|\[\s*{_N}\s*,\s*{_N}\s*,\s*{_N}\s*,\s*{_N}\s*\])(?:{_END})?",
    re.ASCII,
)


def check(config: ConfigDict) -> bool:
    """Whether the model speaks of pixels. Raises ConfigError for an unknown name."""
    name = config.evaluation.coordinates
    if name not in NAMES:
        raise ConfigError(f"evaluation.coordinates={name!r} is none of {', '.join(NAMES)}")
    return name == "pixels"


def sizes(row: scoring.Row, root: str, config: ConfigDict) -> list[Size]:
    """Width and height of each image of a row as the model gets it; none if one can't be read."""
    found = []
    try:
        for path in row["images"]:
            with Image.open(resolve_image(root, path)) as image:
                width, height = image.size
            limits = config.data.min_pixels, config.data.max_pixels
            found.append(smart_resize(height, width, *limits)[::-1])
    except (OSError, ValueError, DataError, Image.DecompressionBombError):
        return []  # the row is rejected with the reason where its images are loaded
    return found


def _convert(text: str, sizes: Sequence[Size], image: int, write) -> str:
    """Writes each box anew as `write(values, width, height)`.

    It lies in the image that the words before it name, or else in `image`.
    """
    pieces, end = [], 0
    for match in _BOX.finditer(text):
        before = text[end : match.start()]
        image = grammar.find_image_index(before, len(sizes)) or image
        values = [int(digits) for digits in match.groups() if digits]
        pieces += [before, write(values, *sizes[image - 1])]
        end = match.end()
    return "".join([*pieces, text[end:]])


def question_in_pixels(row: scoring.Row, sizes: Sequence[Size]) -> str:
    """A row's question, its boxes as these models write them."""

    def write(values, width, height):
        return str(list(map(round, boxes.grid_to_pixels(values, width, height))))

    return _convert(row["question"], sizes, 1, write) if sizes else row["question"]


def response_on_grid(row: scoring.Row, response: str | None, sizes: Sequence[Size]) -> str | None:
    """A response, its boxes in our own form; those past an image's edge end there."""

    def write(values, width, height):
        fractions = (v / side for v, side in zip(values, 2 * (width, height), strict=True))
        x1, y1, x2, y2 = boxes.fraction_to_grid(list(fractions))
        return f"{grammar.BOX_START}({x1},{y1}),({x2},{y2}){grammar.BOX_END}"

    if response is None or not sizes:
        return response
    image = scoring.target_image(row) or len(sizes)
    return _convert(response, sizes, image, write)
