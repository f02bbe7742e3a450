"""Finding the boxes of a response in any family's form, and the image that it names for each."""

import re
from collections.abc import Iterator
from typing import NamedTuple

from mirg_jax.grounding import grammar

# Few digits, and white space only after another character, so that matching takes linear time.
_N = r"(\d{1,5}(?:\.\d{1,20})?)"
_FOUR = rf"\s*{_N}\s*,\s*{_N}\s*,\s*{_N}\s*,\s*{_N}\s*"
_BOX = re.compile(
    rf"<box>\s*{_N}\s+{_N}\s+{_N}\s+{_N}\s*</box>"
    r"|(?:(?:<\|box_start\|>|<box>)\s*)?"
    rf"(?:\(\s*{_N}\s*,\s*{_N}\s*\)\s*,\s*\(\s*{_N}\s*,\s*{_N}\s*\)"
    rf"|\[\[{_FOUR}\]\]|\[{_FOUR}\]|\({_FOUR}\))"
    # The authors' prompt has the opening token at the end too, and some models repeat it.
    r"(?:\s*(?:<\|box_end\|>|<\|box_start\|>|</box>))?",
    re.ASCII,
)
# An object of JSON without objects inside it, whose end may be cut.
_OBJECT = re.compile(r"\{[^{}]*(?:\}|\Z)")
# A field such as "image": 2, image_index=1, 'frame_id': "3"; the prefix of a text value is skipped.
_IMAGE_FIELD = re.compile(
    r"\b(?:image|img|picture|photo|frame)[ _-]?(?:index|idx|id|number|num|no)?[\"']?"
    r"\s{0,3}[:=]\s{0,3}[\"']?(?:(?:image|img|picture|photo|frame)[ #_-]{0,2})?(\d{1,3})"
    # Not the number of something else, as in "image: 2 dogs".
    r"(?=\s{0,3}[\"']?\s{0,3}(?:[,;|)}\]>\n]|\Z))",
    re.IGNORECASE | re.ASCII,
)
_CLAUSE = re.compile(r"[^,.!?;\n]{0,32}")


class FoundBox(NamedTuple):
    """A box in a response.

    Attributes:
      start: where the box begins in the response.
      end: where it ends.
      values: its four numbers, in the response's unit.
      image: number, from 1, of the image that the response names for it; None if it names none.
      in_field: whether the image is named in a field or after the box, rather than in the words
        before it.
    """

    start: int
    end: int
    values: tuple[float, float, float, float]
    image: int | None
    in_field: bool


def has_box(text: str) -> bool:
    """Returns whether a text has a box in any family's form."""
    return _BOX.search(text) is not None


def find_boxes(text: str, num_images: int) -> Iterator[FoundBox]:
    """Yields the boxes of a response, with the image that it names for each.

    The image is, in this order: that of a field beside the box (`{"image": 2, "bbox_2d": …}`), of
    the other fields of its object ("label": "the dog in image 2"), of the field or words before
    the box, or, where a response names images behind its boxes ("(1,2),(3,4) in the second
    image"), of the words behind it. Otherwise it is that of the box before. Fields count from 1, or
    from 0 if any of them is 0. An image that does not exist counts as not named.

    Args:
      text: the response.
      num_images: number of images of the question.
    """
    matches = list(_BOX.finditer(text))
    fields = [int(match[1]) for match in _IMAGE_FIELD.finditer(text)]
    reader = _ImageReader(num_images, first=0 if 0 in fields else 1)
    objects = list(_OBJECT.finditer(text))
    image, in_field, at = None, False, 0
    behind = _names_behind(text, matches, reader)
    for number, match in enumerate(matches):
        before_start = 0
        if number:
            before_start = matches[number - 1].end()
            before_start += len(_behind(text, matches, number - 1)) if behind else 0
        while at < len(objects) and objects[at].end() <= match.start():
            at += 1
        own = objects[at] if at < len(objects) and objects[at].start() < match.start() else None
        if own and (named := reader.beside(text, own, matches, number)):
            image, in_field = named, True
        elif named := reader.field(text[before_start : match.start()]):
            image, in_field = named, True
        elif behind and (named := reader.words(_behind(text, matches, number))):
            image, in_field = named, True
        elif named := reader.words(text[before_start : match.start()]):
            image, in_field = named, False
        x1, y1, x2, y2 = (float(digits) for digits in match.groups() if digits)
        yield FoundBox(match.start(), match.end(), (x1, y1, x2, y2), image, in_field)


class _ImageReader:
    """Reads the image that a piece of text names; None if there is none or it doesn't exist.

    Args:
      num_images: number of images of the question.
      first: number of the first image in fields.
    """

    def __init__(self, num_images: int, first: int):
        self._num_images, self._first = num_images, first

    def field(self, text: str) -> int | None:
        """Reads the last field that names an image."""
        match = None
        for match in _IMAGE_FIELD.finditer(text):  # noqa: B007
            pass
        if match is None:
            return None
        image = int(match[1]) + 1 - self._first
        return image if 1 <= image <= self._num_images else None

    def words(self, text: str) -> int | None:
        """Reads the last words that name an image, such as "the second image"."""
        return grammar.find_image_index(text, self._num_images)

    def beside(self, text: str, own: re.Match, matches: list[re.Match], number: int) -> int | None:
        """Reads the object around a box, as far as it is about this box alone."""
        start, end = own.span()
        if number:
            start = max(start, matches[number - 1].end())
        if number + 1 < len(matches):
            end = min(end, matches[number + 1].start())
        before, after = text[start : matches[number].start()], text[matches[number].end() : end]
        return self.field(before) or self.field(after) or self.words(after) or self.words(before)


def _behind(text: str, matches: list[re.Match], number: int) -> str:
    """Returns the first words behind a box, up to the next box or mark."""
    end = matches[number + 1].start() if number + 1 < len(matches) else len(text)
    clause = _CLAUSE.match(text, matches[number].end(), end)
    return clause[0] if clause else ""


def _names_behind(text: str, matches: list[re.Match], reader: _ImageReader) -> bool:
    """Returns whether a response names images behind its boxes, judged by the first box."""
    if not matches:
        return False
    before = text[: matches[0].start()]
    return not (reader.field(before) or reader.words(before)) and bool(
        reader.words(_behind(text, matches, 0))
    )
