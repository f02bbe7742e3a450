"""MIG-Bench's questions as families of models are asked them: words, boxes and pictures."""

import re
from collections.abc import Sequence
from typing import Literal

from PIL import Image

from mirg_jax.data.examples import IMAGE_MARK
from mirg_jax.data.images import shrink
from mirg_jax.grounding import boxes, grammar
from mirg_jax.mig_bench.benchmark import Row
from mirg_jax.mig_bench.families import Family, SizeOf, size_given
from mirg_jax.mig_bench.scoring import Protocol

Part = tuple[Literal["text", "image"], str]

_QUESTION_BOX = re.compile(r"\((\d+),(\d+)\),\((\d+),(\d+)\)")
_TAGGED_BOX = re.compile(r"<\|box_start\|>\((\d+),(\d+)\),\((\d+),(\d+)\)<\|box_end\|>")
_TAGS = {
    grammar.BOX_START: "<box>",
    grammar.BOX_END: "</box>",
    grammar.OBJECT_START: "<ref>",
    grammar.OBJECT_END: "</ref>",
}


def message(
    family: Family, row: Row, protocol: Protocol, size_of: SizeOf | None = None
) -> list[Part]:
    """A row's question as a message: texts, and images by their path, in order.

    Args:
      size_of: needed where the family's numbers are pixels.

    Raises:
      DataError: of `size_of`.
    """
    question = row.question.replace(IMAGE_MARK, "")
    if protocol == "authors":
        question = rewrite(family, question + family.form.authors, row.images, authors=True)
    else:
        question = rewrite(family, question, row.images, size_of)
        question = f"{question.strip()} {family.form.answer}".strip()
    parts: list[Part] = []
    text = ""
    for n, path in enumerate(row.images, start=1):
        text += family.before.format(n=n)
        parts += [("text", text)] * bool(text) + [("image", path)]
        text = family.after
    return [*parts, ("text", text + question)]


def rewrite(
    family: Family,
    question: str,
    images: Sequence[str],
    size_of: SizeOf | None = None,
    *,
    authors: bool = False,
) -> str:
    """A question with its boxes and tags as the family has them.

    Args:
      images: the paths of the question's images.
      size_of: needed where the family writes pixels.
      authors: as the benchmark's authors do it, slips included.

    Raises:
      DataError: of `size_of`.
    """
    match family.question_box:
        case "pixels" if not authors:
            return _boxes_in_pixels(question, images, size_of)
        case "kept" | "pixels":
            return question
        case "removed":
            return _other_tags(_without_boxes(question))
        case "list":
            return _QUESTION_BOX.sub(r"[\1,\2,\3,\4]", _other_tags(question))
        case "fractions":
            return _boxes_in_fractions(_other_tags(question), authors)


def _boxes_in_pixels(question: str, images: Sequence[str], size_of: SizeOf) -> str:
    """Pixels of the image that the words before a box name last, or else of the first."""

    def pixels(match: re.Match) -> str:
        image = grammar.find_image_index(question[: match.start()], len(images)) or 1
        size = size_of(images[image - 1])
        corners = boxes.grid_to_pixels([int(n) for n in match.groups()], *size)
        return "[{}, {}, {}, {}]".format(*map(round, corners))

    return _TAGGED_BOX.sub(pixels, question)


def _boxes_in_fractions(question: str, authors: bool) -> str:
    def fractions(match: re.Match) -> str:
        # The authors put "0." before the digits, which makes 0.58 of 58.
        said = [f"0.{n}" if authors else f"{int(n) / boxes.GRID:g}" for n in match.groups()]
        return f"[{','.join(said)}]"

    return _QUESTION_BOX.sub(fractions, question)


def _without_boxes(question: str) -> str:
    """Without its boxes and the brackets that they stand in."""
    return re.sub(rf"\({_TAGGED_BOX.pattern}\)", "", question)


def _other_tags(question: str) -> str:
    for tag, other in _TAGS.items():
        question = question.replace(tag, other)
    return question


def picture(family: Family, image: Image.Image, protocol: Protocol, max_pixels: int) -> Image.Image:
    """An image as it is sent.

    One whose pixels are counted gets the size that the model's own processor would give it, which
    then leaves it as it is.
    """
    size = image.size
    if family.numbers == "pixels":
        size = size_given(size, max_pixels)
    elif protocol == "authors" and max(size) > family.authors_side > 0:
        side, longest = family.authors_side, max(size)
        size = tuple(max(1, int(side * length / longest)) for length in size)
    if size != image.size:
        return image.resize(size, Image.Resampling.BICUBIC)
    return shrink(image, max_pixels)
