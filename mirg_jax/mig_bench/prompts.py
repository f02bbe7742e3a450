"""MIG-Bench's questions as prompts for each family of models: text, boxes and images."""

import re
from collections.abc import Sequence
from typing import Literal

from PIL import Image

from mirg_jax.data.examples import IMAGE_MARK
from mirg_jax.data.images import shrink
from mirg_jax.errors import DataError
from mirg_jax.grounding import boxes, grammar
from mirg_jax.grounding.image_words import OTHER, WORDING, find_image
from mirg_jax.mig_bench.benchmark import Row
from mirg_jax.mig_bench.families import Family, SizeOf, size_given
from mirg_jax.mig_bench.scoring import Protocol

Part = tuple[Literal["text", "image"], str]

_QUESTION_BOX = re.compile(r"\((\d+),(\d+)\),\((\d+),(\d+)\)")
_TAGGED_BOX = re.compile(r"<\|box_start\|>\((\d+),(\d+)\),\((\d+),(\d+)\)<\|box_end\|>")
_BEHIND_BOX = re.compile(
    rf"[\s)]*(?:(?:of|in|on|from)\s+)?(?:the\s+)?(?:{WORDING.pattern})", re.IGNORECASE | re.ASCII
)
_TAGS = {
    grammar.BOX_START: "<box>",
    grammar.BOX_END: "</box>",
    grammar.OBJECT_START: "<ref>",
    grammar.OBJECT_END: "</ref>",
}


class UnclearQuestionError(DataError):
    """A question that can't be put in a family's form, as it doesn't say where a box is."""


def message(
    family: Family, row: Row, protocol: Protocol, size_of: SizeOf | None = None
) -> list[Part]:
    """Returns a row's question as the parts of a message: texts, and images by their path.

    Args:
      family: the family of the model.
      row: the row.
      protocol: whose prompt to use.
      size_of: function from an image's path to its size; required if the family uses pixels.

    Raises:
      DataError: if `size_of` does, or as `rewrite`.
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
        if text:
            parts.append(("text", text))
        parts.append(("image", path))
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
    """Rewrites the boxes and tags of a question in the family's form.

    Args:
      family: the family of the model.
      question: the question as in the benchmark.
      images: the paths of the question's images.
      size_of: function from an image's path to its size; required if the family uses pixels.
      authors: whether to do it as the benchmark's authors do, including their mistakes.

    Raises:
      UnclearQuestionError: if a box has to be in pixels, and it isn't clear of which image.
      DataError: if `size_of` does.
    """
    match family.question_box:
        case "pixels" if not authors:
            assert size_of is not None
            return _boxes_in_pixels(question, images, size_of)
        case "thousandths" if not authors:
            return _boxes_in_pixels(question, images, lambda _: (boxes.GRID, boxes.GRID))
        case "kept" | "pixels" | "thousandths":
            return question
        case "removed":
            return _other_tags(_without_boxes(question))
        case "list":
            return _QUESTION_BOX.sub(r"[\1,\2,\3,\4]", _other_tags(question))
        case "fractions":
            return _boxes_in_fractions(_other_tags(question), authors)


def _boxes_in_pixels(question: str, images: Sequence[str], size_of: SizeOf) -> str:
    """Converts boxes to pixels of the image that they are said to be in."""

    def pixels(match: re.Match) -> str:
        image = _image_of_box(question, match, len(images))
        sizes = {size_of(path) for path in (images[image - 1 : image] if image else images)}
        if len(sizes) > 1:
            raise UnclearQuestionError(
                f"the question doesn't say which of its {len(images)} images {match[0]} is in, and "
                "they are of several sizes; name the image before the box"
            )
        corners = boxes.grid_to_pixels([int(n) for n in match.groups()], *sizes.pop())
        return "[{}, {}, {}, {}]".format(*map(round, corners))

    return _TAGGED_BOX.sub(pixels, question)


def _image_of_box(question: str, box: re.Match, num_images: int) -> int:
    """Returns the image that a question says a box is in; `OTHER` if it says none that is there.

    It is named in the sentence before the box, right behind it, or anywhere before it.
    """
    before = question[: box.start()]
    sentence = re.split(r"[.?!\n]\s", before)[-1]
    behind = _BEHIND_BOX.match(question, box.end())
    for text in (sentence, behind[0] if behind else "", before):
        if (image := find_image(text, num_images)) is not None:
            return image
    return OTHER


def _boxes_in_fractions(question: str, authors: bool) -> str:
    """Converts boxes to fractions of the image."""

    def fractions(match: re.Match) -> str:
        # The authors put "0." before the digits, so that 58 becomes 0.58.
        said = [f"0.{n}" if authors else f"{int(n) / boxes.GRID:g}" for n in match.groups()]
        return f"[{','.join(said)}]"

    return _QUESTION_BOX.sub(fractions, question)


def _without_boxes(question: str) -> str:
    """Removes boxes together with the brackets around them."""
    return re.sub(rf"\({_TAGGED_BOX.pattern}\)", "", question)


def _other_tags(question: str) -> str:
    """Replaces Qwen2-VL's tokens by plain tags."""
    for tag, other in _TAGS.items():
        question = question.replace(tag, other)
    return question


def picture(family: Family, image: Image.Image, protocol: Protocol, max_pixels: int) -> Image.Image:
    """Returns an image in the size in which it is sent.

    For families with pixel coordinates it is the size that the model's own processor would resize
    it to, so that the processor doesn't change it.

    Args:
      family: the family of the model.
      image: the image as stored.
      protocol: whose rule to use.
      max_pixels: upper limit on its pixels.
    """
    size = image.size
    if family.numbers == "pixels":
        size = size_given(size, max_pixels)
    elif protocol == "authors" and max(size) > family.authors_side > 0:
        side, longest = family.authors_side, max(size)
        width, height = (max(1, int(side * length / longest)) for length in size)
        size = width, height
    if size != image.size:
        return image.resize(size, Image.Resampling.BICUBIC)
    return shrink(image, max_pixels)
