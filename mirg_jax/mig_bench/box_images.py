"""Finding the image that a response names for each of its boxes."""

import bisect
import dataclasses
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Literal, NamedTuple

from mirg_jax.grounding import grammar
from mirg_jax.grounding.image_words import (
    OTHER,
    SEVERAL,
    UNCLEAR,
    VAGUE,
    find_wordings,
    read_wording,
)
from mirg_jax.mig_bench import box_forms, box_words, image_references
from mirg_jax.mig_bench.box_forms import Box, Numbers
from mirg_jax.mig_bench.image_references import Field, Key

_ANY_0 = re.compile(r"(?<![\d.])0{1,3}(?!\.?\d)|０")
_BRACE = re.compile(r"[{}]")
_CLAUSE = re.compile(r"[^,.!?;\n]{0,32}")
# Between a heading and its object, or between the objects of its list.
_BETWEEN = re.compile(r"[\s,\[(*`]{0,20}(?:json)?[\s,\[(]{0,20}")
_FAR = 80  # characters from a box to a field behind it


class FoundBox(NamedTuple):
    """A box in a response.

    Attributes:
      start: where the box begins in the response.
      end: where it ends.
      corners: x1, y1, x2, y2, in the response's unit.
      image: number, from 1, of the image that the response names for it; `OTHER` if that isn't
        there, `UNCLEAR` if it names one in words that aren't understood; None if it names none.
      in_field: whether the image is named where our own grammar doesn't look for it, such as in a
        field or behind the box.
      is_clear: whether it is clear what the numbers mean; if not, they are as they stand.
    """

    start: int
    end: int
    corners: Numbers
    image: int | None
    in_field: bool
    is_clear: bool = True


def find_boxes(text: str, images: Sequence[str]) -> list[FoundBox]:
    """Finds the boxes of a response, with the image that it names for each.

    The image is, in this order: that of an ID before the box, of its key (`{"Image 2": …}`), of a
    field beside it (`{"image": 2, "bbox_2d": …}`), of a key or a field of an object around it, of
    the other words of its object ("label": "the dog in image 2"), of the field before the box or of
    its row in a table, or, where a response names images behind its boxes ("(1,2),(3,4) in the
    second image", "… | image: 2"), of what is behind it, or of the words before it. If there is
    nothing of all this, but words such as "the left image", the image is `UNCLEAR`; otherwise it is
    that of the box before, if it had no ID.

    Images count from 0 if a field, a key or a heading names an image 0, or the words for a box do.

    Args:
      text: the response.
      images: paths of the question's images.
    """
    boxes = box_forms.find_boxes(text)
    if not boxes:
        return []
    found = _find_boxes(text, boxes, images, first=1)
    if _ANY_0.search(text):
        from_0 = _find_boxes(text, boxes, images, first=0)
        # That of a box is the first only if images count from 0.
        by_words = any(a.image == 1 != b.image for a, b in zip(from_0, found, strict=True))
        if by_words or image_references.has_image_0(text, {box.start for box in boxes}):
            return from_0
    return found


def _find_boxes(
    text: str, boxes: list[Box], images: Sequence[str], first: Literal[0, 1]
) -> list[FoundBox]:
    """Finds the images of boxes, as `find_boxes`; `first` is the number of the first image."""
    fields = image_references.find_fields(text, {box.start for box in boxes}, images, first)
    keys = image_references.find_keys(text, images, first)
    reader = _Reader(text, boxes, fields, len(images), first)
    places = _find_places(text, boxes, fields, keys)
    read_behind = reader.reader_behind()
    found = []
    image, in_field, end = None, False, 0
    for number, (box, place) in enumerate(zip(boxes, places, strict=True)):
        start = box.start
        own = image_references.find_object_id(text, end, start)
        behind = read_behind(number)
        if own is not None:
            pass
        elif (named := reader.in_object(place, number)) is not None:
            image, in_field = named, True
        elif (named := reader.field(end, start)) is not None:
            image, in_field = named, True
        elif behind is not None:
            image, in_field = behind.image, True
        elif (named := reader.words_around(end, number)) is not None:
            image, in_field = named, not reader.grammar_reads(end, start, named)
        elif reader.is_vague(end, number):
            image, in_field = UNCLEAR, False
        end = box.end if behind is None else behind.end
        if own is None:
            named, is_named = image, in_field
        else:  # which the grammar reads itself
            named, is_named = own if own <= len(images) else OTHER, False
        found.append(FoundBox(*box[:3], named, is_named, box.is_clear))
    if len(found) == 1 and found[0].image is None and (named := reader.words_at_end()) is not None:
        return [found[0]._replace(image=named, in_field=True)]
    for number, each in enumerate(found):  # "This box refers to image 2." behind another image
        said = reader.sentence_behind(number)
        if said is not None and each.image != said:
            found[number] = each._replace(image=UNCLEAR, in_field=True)
    return found


# Fields and objects -------------------------------------------------------------------------------


@dataclasses.dataclass(eq=False, slots=True)
class _Object:
    """An object of JSON, whose end may be cut.

    Attributes:
      start: where it begins.
      end: where it ends.
      around: the object around it.
      outer_key: image of the key or heading whose value it lies in; None if that names none.
      key: that of its own latest key.
      image: that of its first field; None if it has none.
      last_box: number of the latest box directly in it.
      pending: image of the latest field behind that box.
    """

    start: int
    end: int
    around: "_Object | None"
    outer_key: int | None
    key: int | None = None
    image: int | None = None
    last_box: int | None = None
    pending: int | None = None


@dataclasses.dataclass(slots=True)
class _Place:
    """The innermost object that a box lies in, and the images of the box's key and fields there."""

    object: _Object | None = None
    key: int | None = None
    before: int | None = None
    after: int | None = None


def _find_places(
    text: str, boxes: list[Box], fields: Iterable[Field], keys: Iterable[Key]
) -> list[_Place]:
    """Finds the place of every box among the objects of a text.

    An object's own field counts for the objects inside it that have none, wherever it stands. A key
    counts for its value, and a heading for the objects that directly follow it.
    """
    opened, closed, named, keyed, boxed = range(5)
    marks = [(m.start(), opened if m[0] == "{" else closed, 0) for m in _BRACE.finditer(text)]
    marks += [(field.start, named, field.image) for field in fields]
    marks += [(key.colon, keyed, key.image) for key in keys]
    marks += [(box.start, boxed, number) for number, box in enumerate(boxes)]
    places = [_Place() for _ in boxes]
    objects: list[_Object] = []
    now: _Object | None = None
    heading, heading_end = None, 0
    for position, kind, what in sorted(marks, key=lambda mark: mark[:2]):
        if kind == opened:
            if now is not None:
                key = now.outer_key if now.key is None else now.key
            else:
                key = heading if _BETWEEN.fullmatch(text, heading_end, position) else None
                heading = key
            now = _Object(position, len(text), now, key)
            objects.append(now)
        elif now is None:
            if kind == keyed:
                heading, heading_end = what, position + 1
        elif kind == closed:
            now.end, now = position, now.around
            heading_end = position + 1
        elif kind == named:
            now.image = _clearer(now.image, what)
            now.pending = what if what != UNCLEAR else _clearer(now.pending, what)
            if now.last_box is not None:
                places[now.last_box].after = _clearer(places[now.last_box].after, what)
        elif kind == keyed:
            now.key = what
        elif what is not None:  # the number of a box
            places[what] = _Place(now, now.key, before=now.pending)
            now.last_box, now.pending = what, None
    for each in objects:  # those around come first
        if each.image is None and each.around is not None:
            each.image = each.around.image
    return places


def _clearer(first: int | None, second: int | None) -> int | None:
    """Returns the first of two images, if it is named and understood."""
    return second if first in (None, UNCLEAR) else first


class _Behind(NamedTuple):
    """The image that is named behind a box, and where the search for the next box's goes on."""

    image: int
    end: int


class _Reader:
    """Reads the image that a part of a response names; None if it names none.

    Args:
      text: the response.
      boxes: its boxes.
      fields: its fields that name an image.
      num_images: number of images of the question.
      first: number that the response gives the first of them, 1 or 0.
    """

    def __init__(
        self,
        text: str,
        boxes: list[Box],
        fields: Sequence[Field],
        num_images: int,
        first: int,
    ):
        self._text, self._boxes, self._num_images = text, boxes, num_images
        self._fields, self._starts = fields, [field.start for field in fields]
        self._first = first

    def field(self, start: int, end: int) -> int | None:
        """Reads the last field that begins between two places."""
        last = bisect.bisect_left(self._starts, end) - 1
        return self._fields[last].image if last >= 0 and self._starts[last] >= start else None

    def words(self, start: int, end: int) -> int | None:
        """Reads the last words between two places that name an image, as "the second image"."""
        return box_words.read(self._text[start:end], self._num_images, self._first)

    def words_around(self, start: int, number: int) -> int | None:
        """Reads the words from a place to a box; if they are only references, those behind it."""
        box = self._boxes[number]
        before, behind = self._text[start : box.start], self._text[box.end : self._next(number)]
        return box_words.read_around(before, behind, self._num_images, self._first)

    def sentence_behind(self, number: int) -> int | None:
        """Reads the sentence behind a box that says which image the box is of."""
        said = box_words.refers_to(self._text[self._boxes[number].end : self._next(number)])
        if said is None or not said["box"]:
            return None
        return box_words.read_sentence(said, self._num_images, self._first)

    def words_at_end(self) -> int | None:
        """Reads the sentences behind the only box that say where it is."""
        behind = self._text[self._boxes[0].end :]
        return box_words.read_sentences(behind, self._num_images, self._first)

    def grammar_reads(self, start: int, end: int, image: int) -> bool:
        """Returns whether our own grammar reads an image from the words between two places."""
        return grammar.find_image_index(self._text[start:end], self._num_images) == (image or None)

    def in_object(self, place: _Place, number: int) -> int | None:
        """Reads the objects around a box: the words of its own as far as no other box comes."""
        own = place.object
        if own is None:
            return None
        beside = place.before if place.after is None else _clearer(place.before, place.after)
        for image in (place.key, beside, own.outer_key, own.image):
            if image is not None:
                return image
        box = self._boxes[number]
        start, end = own.start, min(own.end, self._next(number))
        if number:
            start = max(start, self._boxes[number - 1].end)
        after, before = self.words(box.end, end), self.words(start, box.start)
        return before if after is None else after

    def reader_behind(self) -> Callable[[int], _Behind | None]:
        """Returns the function that reads what a response names behind each box.

        It reads words if the first box has some behind it, and fields if the last box has one too:
        those behind the first alone may be the second's headings.
        """
        before = 0, self._boxes[0].start
        if self.field(*before) is None and self.words(*before) is None:
            if self._words_behind(0):
                return self._words_behind
            if self._field_behind(0) and self._field_behind(len(self._boxes) - 1):
                return self._field_behind
        return lambda number: None

    def _words_behind(self, number: int) -> _Behind | None:
        """Reads the first words that begin in the clause behind a box."""
        start, end = self._boxes[number].end, self._next(number)
        sentence = box_words.refers_to(self._text[start:end])
        if sentence is not None:
            image = box_words.read_sentence(sentence, self._num_images, self._first)
            return None if image is None else _Behind(image, start + sentence.end())
        clause = _CLAUSE.match(self._text, start, end)
        words = next(find_wordings(self._text[start:end]), None)
        if words is None or clause is None or start + words.start() > clause.end():
            return None
        image = read_wording(words, self._num_images, self._first)
        return None if image is None else _Behind(image, start + words.end())

    def _field_behind(self, number: int) -> _Behind | None:
        """Reads the first field behind a box."""
        start = self._boxes[number].end
        following = bisect.bisect_left(self._starts, start)
        field = self._fields[following] if following < len(self._fields) else None
        if field is None or field.start >= min(self._next(number), start + _FAR):
            return None
        return _Behind(field.image, field.start + 1)

    def is_vague(self, start: int, number: int) -> bool:
        """Returns whether words around a box are about an image, but don't say which."""
        box = self._boxes[number]
        clause = _CLAUSE.match(self._text, box.end, self._next(number))
        return any(
            VAGUE.search(text) or SEVERAL.search(text)
            for text in (self._text[start : box.start], clause[0] if clause else "")
        )

    def _next(self, number: int) -> int:
        """Returns where the box after one begins, or the text ends."""
        following = self._boxes[number + 1 : number + 2]
        return following[0].start if following else len(self._text)
