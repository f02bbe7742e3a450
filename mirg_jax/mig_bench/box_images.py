"""Finding the boxes of a response in any family's form, and the image that it names for each."""

import bisect
import dataclasses
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from mirg_jax.mig_bench import image_references
from mirg_jax.mig_bench.image_references import OTHER, Field

# Few digits, and white space only after another character, so that matching takes linear time.
_N = r"(-?\d{1,5}(?:\.\d{1,20})?)"
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
_BRACE = re.compile(r"[{}]")
_CLAUSE = re.compile(r"[^,.!?;\n]{0,32}")


class FoundBox(NamedTuple):
    """A box in a response.

    Attributes:
      start: where the box begins in the response.
      end: where it ends.
      values: its four numbers, in the response's unit.
      image: number, from 1, of the image that the response names for it; `OTHER` if that isn't
        there; None if it names none.
      in_field: whether the image is named where our own grammar doesn't look for it, such as in a
        field or behind the box.
    """

    start: int
    end: int
    values: tuple[float, float, float, float]
    image: int | None
    in_field: bool


def has_box(text: str) -> bool:
    """Returns whether a text has a box in any family's form."""
    return _BOX.search(text) is not None


def find_boxes(text: str, images: Sequence[str]) -> Iterator[FoundBox]:
    """Yields the boxes of a response, with the image that it names for each.

    The image is, in this order: that of an ID before the box, of a field beside the box (`{"image":
    2, "bbox_2d": …}`), of a field of an object around it, of the other words of its object
    ("label": "the dog in image 2"), of the field or words before the box, or, where a response
    names images behind its boxes ("(1,2),(3,4) in the second image"), of the words behind it.
    Otherwise it is that of the box before, if it had no ID.

    Args:
      text: the response.
      images: paths of the question's images.
    """
    matches = list(_BOX.finditer(text))
    if not matches:
        return
    starts = {match.start() for match in matches}
    fields = image_references.find_fields(text, starts, images)
    reader = _Reader(text, matches, fields, len(images))
    places = _find_places(text, matches, fields)
    behind = reader.names_behind()
    image, in_field, end = None, False, 0
    for number, (match, place) in enumerate(zip(matches, places, strict=True)):
        own = image_references.find_object_id(text, end, match.start())
        if own is not None:
            pass
        elif (named := reader.in_object(place, number)) is not None:
            image, in_field = named, True
        elif (named := reader.field(end, match.start())) is not None:
            image, in_field = named, True
        elif behind and (named := reader.words(*reader.clause(number))) is not None:
            image, in_field = named, True
        elif (named := reader.words(end, match.start())) is not None:
            image, in_field = named, not reader.grammar_reads(end, match.start())
        end = reader.clause(number)[1] if behind else match.end()
        x1, y1, x2, y2 = (float(digits) for digits in match.groups() if digits)
        found = FoundBox(match.start(), match.end(), (x1, y1, x2, y2), image, in_field)
        if own is not None:  # which the grammar reads itself
            there = own if own <= len(images) else OTHER
            found = found._replace(image=there, in_field=False)
        yield found


# Fields and objects -------------------------------------------------------------------------------


@dataclasses.dataclass(eq=False, slots=True)
class _Object:
    """An object of JSON, whose end may be cut.

    Attributes:
      start: where it begins.
      end: where it ends.
      around: the object around it.
      image: that of its first field; None if it has none.
      last_box: number of the latest box directly in it.
      pending: image of the latest field behind that box.
    """

    start: int
    end: int
    around: "_Object | None"
    image: int | None = None
    last_box: int | None = None
    pending: int | None = None


@dataclasses.dataclass(slots=True)
class _Place:
    """The innermost object that a box lies in, and the images of its fields beside the box."""

    object: _Object | None = None
    before: int | None = None
    after: int | None = None


def _find_places(text: str, matches: list[re.Match], fields: list[Field]) -> list[_Place]:
    """Finds the place of every box among the objects of a text.

    An object's own field counts for the objects inside it that have none, wherever it stands.
    """
    opened, closed, named, boxed = range(4)
    marks = [(m.start(), opened if m[0] == "{" else closed, 0) for m in _BRACE.finditer(text)]
    marks += [(field.start, named, field.image) for field in fields]
    marks += [(match.start(), boxed, number) for number, match in enumerate(matches)]
    places = [_Place() for _ in matches]
    objects: list[_Object] = []
    now: _Object | None = None
    for position, kind, what in sorted(marks):
        if kind == opened:
            now = _Object(position, len(text), now)
            objects.append(now)
        elif now is None:
            continue
        elif kind == closed:
            now.end, now = position, now.around
        elif kind == named:
            now.image = what if now.image is None else now.image
            now.pending = what
            if now.last_box is not None and places[now.last_box].after is None:
                places[now.last_box].after = what
        else:
            places[what] = _Place(now, before=now.pending)
            now.last_box, now.pending = what, None
    for each in objects:  # those around come first
        if each.image is None and each.around is not None:
            each.image = each.around.image
    return places


class _Reader:
    """Reads the image that a part of a response names; None if it names none.

    Args:
      text: the response.
      matches: its boxes.
      fields: its fields that name an image.
      num_images: number of images of the question.
    """

    def __init__(
        self, text: str, matches: list[re.Match], fields: Sequence[Field], num_images: int
    ):
        self._text, self._matches, self._num_images = text, matches, num_images
        self._fields, self._starts = fields, [field.start for field in fields]

    def field(self, start: int, end: int) -> int | None:
        """Reads the last field that begins between two places."""
        last = bisect.bisect_left(self._starts, end) - 1
        return self._fields[last].image if last >= 0 and self._starts[last] >= start else None

    def words(self, start: int, end: int) -> int | None:
        """Reads the last words between two places that name an image, as "the second image"."""
        return image_references.find_words(self._text[start:end], self._num_images)

    def grammar_reads(self, start: int, end: int) -> bool:
        """Returns whether our own grammar reads the same from the words between two places."""
        return image_references.grammar_reads(self._text[start:end], self._num_images)

    def in_object(self, place: _Place, number: int) -> int | None:
        """Reads the objects around a box: the words of its own as far as no other box comes."""
        if place.object is None:
            return None
        for image in (place.before, place.after, place.object.image):
            if image is not None:
                return image
        box = self._matches[number]
        start, end = place.object.start, min(place.object.end, self._next(number))
        if number:
            start = max(start, self._matches[number - 1].end())
        after, before = self.words(box.end(), end), self.words(start, box.start())
        return before if after is None else after

    def clause(self, number: int) -> tuple[int, int]:
        """Returns where the first words behind a box are, up to the next box or mark."""
        end = self._matches[number].end()
        clause = _CLAUSE.match(self._text, end, self._next(number))
        return end, clause.end() if clause else end

    def names_behind(self) -> bool:
        """Returns whether a response names images behind its boxes, judged by the first box."""
        before = 0, self._matches[0].start()
        if self.field(*before) is not None or self.words(*before) is not None:
            return False
        return self.words(*self.clause(0)) is not None

    def _next(self, number: int) -> int:
        """Returns where the box after one begins, or the text ends."""
        following = self._matches[number + 1 : number + 2]
        return following[0].start() if following else len(self._text)
