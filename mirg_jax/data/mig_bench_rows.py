"""The fields of a row of a MIG-Bench file, and which image its answer lies in.

A row is `{task, images, question, answer, additional_info, need_format}`. Training and scoring both
read it here. No field names the answer's image, so it is taken from wording:

1. from `additional_info` where that holds a box: it then says the answer in words;
2. from the question otherwise, where captions of images name none (`data.named_images`).

What the published file holds, and why the rule is this:

- group_grounding (499 rows): finding the image is the task, so the question names none. Every
  `additional_info` is "It is in the first image. <|box_start|>(241,378),(447,621)<|box_end|>. ".
- reasoning (101 rows): `additional_info` is an earlier wording of the question, without a box. In
  39 rows it ends on another image than the question does, so it must not be read.
- diff (528 rows): neither says which image; the answer's image is unknown.
- the other seven tasks: `additional_info` is empty, and the question names the image to look in
  ("the object in the first image …, locate it in the 2th image"), and none otherwise in a way
  that `grounding.question_words` takes for it.

Rows that `data.examples.write_mig_bench` writes say the image in the same way, whatever the task.
"""

from typing import Any, NamedTuple

from mirg_jax.data.json_rows import four_numbers, images_field, text_field
from mirg_jax.data.named_images import find_asked_image
from mirg_jax.grounding.grammar import BOX_START
from mirg_jax.grounding.image_words import find_wordings, read_wording

Fractions = tuple[float, float, float, float]


class Fields(NamedTuple):
    """What a row holds.

    Attributes:
      answer: x1, y1, x2, y2 as in the file, in fractions of the image; some of the published file
        are inverted or end beyond the image.
      target_image: the image, from 1, that the answer lies in, None where the row doesn't say.
    """

    task: str
    images: tuple[str, ...]
    question: str
    answer: Fractions
    target_image: int | None


def read_fields(row: dict[str, Any]) -> Fields:
    """Reads a row.

    Raises:
      DataError: a field is missing or of another type.
    """
    images = images_field(row)
    question = text_field(row, "question")
    return Fields(
        task=text_field(row, "task"),
        images=images,
        question=question,
        answer=four_numbers(row.get("answer"), "'answer'"),
        target_image=find_target_image(question, row.get("additional_info"), len(images)),
    )


def find_target_image(question: str, additional_info: Any, num_images: int) -> int | None:
    """The image, from 1, that the answer lies in by the module's rule, None where nothing says."""
    if isinstance(additional_info, str) and BOX_START in additional_info:
        named = {read_wording(words, num_images) for words in find_wordings(additional_info)}
        return (named.pop() or None) if len(named) == 1 else None
    return find_asked_image(question, num_images).image
