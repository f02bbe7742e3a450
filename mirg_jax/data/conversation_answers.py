"""What an answer of a conversation says: its objects with their images, and its trajectory."""

import re
from collections.abc import Sequence
from typing import NamedTuple

from mirg_jax.data import named_images
from mirg_jax.data.json_rows import on_grid, quote, refuse_fractions
from mirg_jax.errors import DataError
from mirg_jax.grounding.grammar import (
    ANSWER_END,
    ANSWER_START,
    BOX_END,
    BOX_START,
    THINK_END,
    THINK_START,
    GroundedObject,
    find_objects,
    format_response,
    parse_response,
    without_ending,
)

_BLOCKS = (THINK_START, THINK_END, ANSWER_START, ANSWER_END)
# Thoughts as other models mark them.
_OTHER_THOUGHTS = re.compile(
    r"</?(?:think(?:ing)?|thoughts?|reason(?:ing)?|reflection)>|◁/?think▷", re.IGNORECASE
)
_NUMBER = re.compile(r"-?\d{1,4}(?:\.\d{1,20})?", re.ASCII)
# Four numbers, as in the JSON of Qwen2.5-VL; pixels of an image that may be of any size.
_OTHER_BOX = re.compile(
    r"[\[(]\s{0,9}-?\d{1,5}(?:\.\d{1,9})?(?:\s{0,9},\s{0,9}-?\d{1,5}(?:\.\d{1,9})?){3}\s{0,9}[\])]",
    re.ASCII,
)
_BOX = re.compile(f"{re.escape(BOX_START)}([^<]*){re.escape(BOX_END)}")


class Answer(NamedTuple):
    """What an answer says.

    Attributes:
      objects: the boxes of the answer, with the image that it names for each.
      response: thoughts and answer in the form of a trajectory; None if there are no thoughts.
    """

    objects: tuple[GroundedObject, ...]
    response: str | None


def read_answer(said: str, thoughts: str, num_images: int) -> Answer:
    """Reads an answer. Boxes of thoughts are not its objects.

    Args:
      said: the answer; thoughts may stand before it in `<think>`, and it may be in `<answer>`.
      thoughts: the thoughts that stand beside the answer; "" for none.
      num_images: number of images of the question.

    Raises:
      DataError: if there is no box, a box is not usable, or the blocks are not in order.
    """
    said = _BOX.sub(_with_integers, without_ending(said))
    for mark in _OTHER_THOUGHTS.findall(said):
        if mark not in _BLOCKS:
            raise DataError(
                f"the answer has {mark}; mark thoughts by {THINK_START} and {THINK_END}"
            )
    thoughts = _BOX.sub(_with_integers, thoughts)
    if thoughts:
        if THINK_START in said or THINK_END in said:
            raise DataError("an answer has thoughts beside it and in it; remove one of the two")
        said = f"{THINK_START}{thoughts}{THINK_END}{said}"
    counts = [said.count(tag) for tag in _BLOCKS]
    if max(counts) > 1 or counts[0] > counts[1] or counts[2] != counts[3]:
        raise DataError(
            f"the answer's blocks are not {THINK_START}…{THINK_END} and "
            f"{ANSWER_START}…{ANSWER_END}, once each"
        )
    parsed = parse_response(said, num_images)
    thoughts = (parsed.thinking or "").strip()
    text = said.rpartition(THINK_END)[2] if parsed.answer is None else parsed.answer
    response = None
    if thoughts:
        response = said.strip()
        if parsed.answer is None or THINK_START not in said:
            response = format_response(thoughts, text.strip())
        parsed = parse_response(response, num_images)
        objects, problems = parsed.objects, parsed.problems
    else:
        objects, problems = find_objects(text, num_images)
    if problems:  # part of an answer is not the answer
        raise DataError("; ".join(problems))
    if not objects:
        if other := _OTHER_BOX.search(text):
            raise DataError(
                f"the answer's box {quote(other[0])} is of another form; write "
                f"{BOX_START}(x1,y1),(x2,y2){BOX_END}, in thousandths of the image's sides"
            )
        raise DataError("the answer holds no box")
    return Answer(_with_images(objects, text, num_images), response)


def _with_images(
    objects: tuple[GroundedObject, ...], text: str, num_images: int
) -> tuple[GroundedObject, ...]:
    """Gives objects the image named right behind each, if none is named before the first.

    Raises:
      DataError: if other words refer to an image, or two images are named for a box.
    """
    says_more = num_images > 1 and named_images.check_answer(text, num_images)
    if objects[0].image is not None:
        return _by_places(objects, text, num_images)
    behind = named_images.find_behind(text, num_images)
    if set(behind) == {None}:
        if says_more and not any(each.image for each in objects):
            raise DataError(
                "the answer names an image where it isn't read; name each box's image before it, "
                'as "In the second image: "'
            )
        return objects
    if len(behind) != len(objects) or not all(behind):
        raise DataError(
            "the answer names an image behind one box, and none or one that is not there behind "
            "another; name each box's image before it"
        )
    return _replace_images(objects, behind)


def _by_places(
    objects: tuple[GroundedObject, ...], text: str, num_images: int
) -> tuple[GroundedObject, ...]:
    """Compares the images of objects with those named right behind their boxes.

    Raises:
      DataError: if another one is named behind a box, and it isn't plain which is the box's.
    """
    boxed, _ = find_objects(text, num_images)  # without those that are named by their IDs only
    named = [each.image for each in boxed]
    images = named_images.check_places(text, named, num_images)
    changed = [each for each, image in zip(boxed, images, strict=True) if each.image != image]
    if changed and (len(boxed) != len(objects) or any(each.number for each in changed)):
        raise DataError(
            "the answer names an image behind a box, and another one by the box's ID; name only "
            "the box's own"
        )
    return _replace_images(objects, images) if changed else objects


def _replace_images(
    objects: tuple[GroundedObject, ...], images: Sequence[int | None]
) -> tuple[GroundedObject, ...]:
    return tuple(
        GroundedObject(each.box, image, each.number, each.label)
        for each, image in zip(objects, images, strict=True)
    )


def _with_integers(box: re.Match) -> str:
    """Writes the numbers of a box as integers where they are some but for rounding.

    Raises:
      DataError: if they are fractions of the image.
    """
    numbers = [float(each) if "." in each else int(each) for each in _NUMBER.findall(box[1])]
    refuse_fractions(numbers, f"the box {quote(box[1])}")

    def on_the_grid(number: re.Match) -> str:
        return str(on_grid(float(number[0]))) if "." in number[0] else number[0]

    return f"{BOX_START}{_NUMBER.sub(on_the_grid, box[1])}{BOX_END}"
