"""The forms in which responses write a box: four numbers in brackets, in words, or under names.

Patterns of the forms; `box_orders` has what the numbers of a list mean. A list of four numbers that
a word before it calls something else, such as "images (1, 2, 3, 4)" or
`"scores": [0.9, 0.8, 0.7, 0.1]`, is no box.
"""

import re
from collections.abc import Iterator
from typing import NamedTuple

from mirg_jax.mig_bench import box_orders
from mirg_jax.mig_bench.box_orders import Numbers

# Few digits, and white space only after another character, so that matching takes linear time.
_N = r"(-?\d{1,5}(?:\.\d{1,20})?)"
_FOUR = rf"\s*{_N}\s*,\s*{_N}\s*,\s*{_N}\s*,\s*{_N}\s*"
_SPACED = rf"\s*{_N}\s+{_N}\s+{_N}\s+{_N}\s*"
_POINT = rf"\s*{_N}\s*,\s*{_N}\s*"
# The authors' prompt has the opening token at the end too, and some models repeat it.
_OPEN = r"(?:(?:<\|box_start\|>|<box>)\s*)?"
_CLOSE = r"(?:\s*(?:<\|box_end\|>|<\|box_start\|>|</box>))?"
_IS = r"[\"'*`]{0,3}\s{0,3}[:=]\s{0,3}[*`]{0,3}\s{0,3}"


class Box(NamedTuple):
    """A box in a response.

    Attributes:
      start: where it begins in the response.
      end: where it ends.
      corners: x1, y1, x2, y2, in the response's unit.
      is_clear: whether it is clear what its numbers mean; if not, they are as they stand.
    """

    start: int
    end: int
    corners: Numbers
    is_clear: bool = True


_TAGS = r"(?:b?box(?:_2d)?|bounding[ _]?box)"
_QUOTED = r"\s*,\s*".join([rf"[\"']{_N}[\"']"] * 4)
_BRACKETED = re.compile(
    rf"<(?P<tag>{_TAGS})>(?:{_SPACED}|{_FOUR}|\s{{0,9}}\[{_FOUR}\]\s{{0,9}})</(?P=tag)>"
    rf"|<\|box_start\|>{_FOUR}<\|box_end\|>"
    rf"|{_OPEN}"
    rf"(?:(?<!\),)(?<!\),\s)\({_POINT}\)(?:\s*,\s*|\s+|\s*[-–—]\s*)\({_POINT}\)(?!\s*,\s*\()"
    rf"|(?<!\],)(?<!\],\s)\[{_POINT}\]\s*,\s*\[{_POINT}\](?!\s*,\s*\[)"
    rf"|\[\[{_FOUR}\]\]|\[{_FOUR}\]|\({_FOUR}\)|\[{_SPACED}\]|\[\s*{_QUOTED}\s*\])"
    rf"{_CLOSE}",
    re.ASCII,
)
_WORDS = "|".join(box_orders.WORDS)
_BOX_NAME = (
    rf"\b(?:bbox(?:_2d)?|box|bounding[ _]box|coordinates|coords)(?:_(?:{_WORDS}))?"
    r"(?:\s?\([a-zA-Z0-9_, ]{3,40}\))?"
)
_PLAIN = (
    # "12,30,200,300", but not what a sign reads; bbox: 12, 30, 200, 300; only four numbers.
    re.compile(
        r"(?:(?<![A-Za-z]\s)(?<![A-Za-z])|(?<=\bat\s)|(?<=\bis\s))"
        rf"(?P<box>[\"'](?:{_FOUR}|{_SPACED})[\"'])",
        re.ASCII,
    ),
    re.compile(
        rf"(?:{_BOX_NAME}|{box_orders.LIST}[\])]?){_IS}(?P<box>{_FOUR})(?![\s,]*\d)",
        re.ASCII | re.IGNORECASE,
    ),
    re.compile(
        rf"(?:\A|<answer>|</think>)\s{{0,9}}(?P<box>{_FOUR})(?=<\|im_end\|>|</answer>|\Z)", re.ASCII
    ),
)
# Opposite corners: "Top-left: (12, 30), bottom-right: (200, 300)".
_CORNER = (
    r"\b(?P<v{0}>top|upper|bottom|lower)[ _-]?(?P<h{0}>left|right)(?:[ _-]corner)?"
    r"(?:\s?\([^()\n]{{1,20}}\))?(?:[\"'*`]{{0,3}}\s{{0,3}}[:=]\s{{0,3}}[*`]{{0,3}}\s{{0,3}}"
    r"|[*`]{{0,3}}(?:\s{{1,3}}(?:is\s)?(?:at\s)?|:\s{{1,3}}))"
    r"[\[(]\s*(?P<x{0}>{1})\s*,\s*(?P<y{0}>{1})\s*[\])]"
)
_TWO_CORNERS = re.compile(
    _CORNER.format(1, _N.strip("()"))
    + r"[\s,;*`]{0,9}(?:[-*•]\s{1,3}|and(?:\s+the)?\s+)?[\"'*`]{0,3}"
    + _CORNER.format(2, _N.strip("()")),
    re.ASCII | re.IGNORECASE,
)
_NAMED = (
    rf"<?[\"'*`]{{0,3}}(?<!\w){box_orders.NAME}(?:{_IS}[\"']?|>\s{{0,3}}){_N}"
    r"[\"']?(?:</[\w-]{1,12}>)?"
)
_FOUR_NAMED = re.compile(
    r"\s{0,3}[,;]?\s{0,20}(?:[-*•]\s{1,3})?".join([_NAMED] * 4), re.ASCII | re.IGNORECASE
)

# Behind the sides of an image and a corner of a box: the box's own sides.
_SIDES = re.compile(rf"\W{{0,20}}(?:w|h|width|height){_IS}", re.IGNORECASE)

# The key or the word before a list, and what its numbers then mean.
_BEFORE = re.compile(
    rf"(?P<name>(?:[A-Za-z0-9_-]{{1,40}}|图[片像]?)[\"']?)(?:{_IS}|[\"'*`]{{0,3}}\s{{0,2}})[\"'\[(]?\s?\Z"
)
# Gemini's boxes are [ymin, xmin, ymax, xmax]: as a key or tag, and in prose right before a box.
_GEMINIS = re.compile(r"(?<!b)box(?:es)?2d")
_IN_PROSE = re.compile(
    r"(?<![A-Za-z])box(?:es)?[_ ]?2d\b[\"'`*]{0,3}(?:(?!box)[^.;:\n\[\](){}<>\"]){0,50}"
    r"(?::[\s`*]{0,3})?\Z",
    re.IGNORECASE,
)
_WORD = re.compile(r"[A-Za-z]*")
_OF_ELSE = re.compile(r"box|coord|corner|[.;]\s|\n", re.IGNORECASE)
_COMMA = re.compile(r"\s{0,9},\s{0,9}")
_NO_BOX = re.compile(
    r"(?:.*_)?(?:ids?|indices|index|idxs?|numbers|scores?|confidences?|prob(?:abilitie)?s|logits|"
    r"colou?rs?|rgba?|bgr|shape|counts|timestamps|size|resolution|bounds|keypoints|points|line|"
    r"segmentation|polygon)"
    r"|(?:.*_)?(?:images|imgs|pictures|pics|photos|frames|views|pages)[\"']",  # as a key
    re.IGNORECASE,
)
# A plural before a few small numbers that grow counts things, but for a plural of boxes.
_PLURAL = re.compile(
    r"(?!(?:.*_)?(?:boxes|bboxes|coordinates|coords|corners|points|positions|locations|places|regions|"
    r"areas|rectangles|rects|this|does)\Z)[a-z_-]{2,}[a-rt-z]s|图[片像]?",
    re.IGNORECASE,
)
_MOST_COUNTED = 20
_FAR = 60  # characters before a list that are looked at


def has_box(text: str) -> bool:
    """Returns whether a text has a box in any form."""
    return bool(find_boxes(text))


def find_boxes(text: str) -> list[Box]:
    """Finds the boxes of a response, in order."""
    lists = []
    key, end = "", -1
    for match in _BRACKETED.finditer(text):
        numbers = [float(n) for n in match.groups() if n and n[-1].isdecimal()]
        is_next = end >= 0 and _COMMA.fullmatch(text, end, match.start())  # of a list of boxes
        if not is_next:
            key = match["tag"] or _name_before(text, match.start())
            if text.startswith("<|", match.start()):
                key = "xyxy"  # Qwen's tokens
        end = match.end()
        lists.append(_List(match.start(), end, numbers, key))
    for pattern in _PLAIN:
        for match in pattern.finditer(text):
            start, end = match.span("box")
            numbers = [float(digits) for digits in re.findall(_N, match["box"], re.ASCII)]
            lists.append(_List(start, end, numbers, _name_before(text, start)))
    lists = _with_geminis(text, lists)
    others = [*_find_named(text), *_find_corners(text)]
    found: list[_List | Box] = [each for each in lists if _is_box(text, each)]
    found = _without_overlaps([*found, *others])
    orders = box_orders.of_boxes(text, [(each.start, each.end) for each in found])
    return [
        each if isinstance(each, Box) else _read_list(each, *order)
        for each, order in zip(found, orders, strict=True)
    ]


class _List(NamedTuple):
    """A list of four numbers, and the key, the tag or the word before it."""

    start: int
    end: int
    numbers: list[float]
    name: str


def _with_geminis(text: str, lists: list[_List]) -> list[_List]:
    """Names lists as Gemini's that follow one in prose, as "the box_2d is BOX, and … is BOX"."""
    found, in_prose, end = [], False, 0
    for each in sorted(lists):
        if _IN_PROSE.search(text[max(0, each.start - _FAR) : each.start]):
            in_prose = True
        elif in_prose and not _OF_ELSE.search(text, max(end, each.start - _FAR), each.start):
            if _WORD.fullmatch(each.name) and not _NO_BOX.fullmatch(each.name):
                each = each._replace(name="box_2d")
        found.append(each)
        end = each.end
    return found


def _without_overlaps(found: list[_List | Box]) -> list[_List | Box]:
    kept, end = [], 0
    for each in sorted(found, key=lambda each: (each.start, each.end)):
        if each.start >= end:
            kept.append(each)
            end = each.end
    return kept


def _is_box(text: str, found: _List) -> bool:
    """Returns whether a list of four numbers is not one of something else."""
    if text.startswith("<", found.start):  # marked as a box
        return True
    numbers, name = found.numbers, found.name
    is_counting = all(n % 1 == 0 for n in numbers) and 0 <= numbers[0] <= _MOST_COUNTED
    is_counting = is_counting and sorted({*numbers}) == numbers and numbers[3] <= _MOST_COUNTED
    bare = name.rstrip("\"'")
    return not any(map(_NO_BOX.fullmatch, (name, bare))) and not (
        is_counting and _PLURAL.fullmatch(bare)
    )


def _read_list(found: _List, stated: box_orders.Order | None, is_clear: bool) -> Box:
    """Reads a list by its name, or else by the order that is stated for it."""
    letters = re.sub(r"[\s_\"'-]", "", found.name.lower())
    order = next((order for word, order in box_orders.WORDS.items() if word in letters), None)
    if order is None and is_clear:
        order = stated
        if order is None and _GEMINIS.search(letters):
            order = box_orders.ROWS_FIRST
    clear = order is not None or is_clear
    corners = (order or box_orders.CORNERS).corners(found.numbers)
    return Box(found.start, found.end, corners, clear)


def _name_before(text: str, start: int) -> str:
    """Returns the key or the word right before a list, "image_ids" for "imageIds"; "" if none."""
    before = text[max(0, start - _FAR) : start]
    if _IN_PROSE.search(before):
        return "box_2d"
    found = _BEFORE.search(before)
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", found["name"]) if found else ""


def _find_named(text: str) -> Iterator[Box]:
    """Yields the boxes whose four numbers have a name each."""
    place = 0
    while match := _FOUR_NAMED.search(text, place):
        names = [re.sub(r"[_-]", "", name.lower()) for name in match.groups()[::2]]
        numbers = dict(zip(names, map(float, match.groups()[1::2]), strict=True))
        place = match.start(1) + 1
        of_image = names[0] in ("width", "height") and _SIDES.match(text, match.end())
        for order, read in box_orders.NAMES.items():
            if numbers.keys() == {*order} and not of_image:
                yield Box(*match.span(), read(*(numbers[name] for name in order)))
                place = match.end()


def _find_corners(text: str) -> Iterator[Box]:
    """Yields the boxes of which two opposite corners are given by their names."""
    for match in _TWO_CORNERS.finditer(text):
        is_top, is_left = (
            [match[name].lower() in words for name in names]
            for names, words in ((("v1", "v2"), ("top", "upper")), (("h1", "h2"), ("left",)))
        )
        if is_top[0] != is_top[1] and is_left[0] != is_left[1]:
            x1, x2 = (float(match[name]) for name in (("x1", "x2") if is_left[0] else ("x2", "x1")))
            y1, y2 = (float(match[name]) for name in (("y1", "y2") if is_top[0] else ("y2", "y1")))
            yield Box(*match.span(), (x1, y1, x2, y2))
