"""The forms in which responses write a box: four numbers in brackets, in words, or under names.

A table of forms, each a pattern and what its four numbers mean. A list of four numbers that a word
before it calls something else, such as "images (1, 2, 3, 4)" or `"scores": [0.9, 0.8, 0.7, 0.1]`,
is no box.
"""

import re
from collections.abc import Callable, Iterator
from typing import NamedTuple

Numbers = tuple[float, float, float, float]

# Few digits, and white space only after another character, so that matching takes linear time.
_N = r"(-?\d{1,5}(?:\.\d{1,20})?)"
_FOUR = rf"\s*{_N}\s*,\s*{_N}\s*,\s*{_N}\s*,\s*{_N}\s*"
_SPACED = rf"\s*{_N}\s+{_N}\s+{_N}\s+{_N}\s*"
_POINT = rf"\s*{_N}\s*,\s*{_N}\s*"
# The authors' prompt has the opening token at the end too, and some models repeat it.
_OPEN = r"(?:(?:<\|box_start\|>|<box>)\s*)?"
_CLOSE = r"(?:\s*(?:<\|box_end\|>|<\|box_start\|>|</box>))?"
_IS = r"[\"'*`]{0,3}\s{0,3}[:=]\s{0,3}[*`]{0,3}\s{0,3}"


_IS_AT = rf"(?:{_IS}|(?:\s+corner)?(?:\s+(?:is|at|is\s+at)|:)?\s+)"


class Box(NamedTuple):
    """A box in a response.

    Attributes:
      start: where it begins in the response.
      end: where it ends.
      corners: x1, y1, x2, y2, in the response's unit.
    """

    start: int
    end: int
    corners: Numbers


def _corners(a: float, b: float, c: float, d: float) -> Numbers:
    return a, b, c, d


def _rows_first(a: float, b: float, c: float, d: float) -> Numbers:
    return b, a, d, c


def _sized(a: float, b: float, c: float, d: float) -> Numbers:
    return a, b, a + c, b + d


def _centred(a: float, b: float, c: float, d: float) -> Numbers:
    return a - c / 2, b - d / 2, a + c / 2, b + d / 2


_QUOTED = r"\s*,\s*".join([rf"[\"']{_N}[\"']"] * 4)
_BRACKETED = re.compile(
    rf"<(?P<tag>b?box)>(?:{_SPACED}|{_FOUR})</(?P=tag)>|<\|box_start\|>{_FOUR}<\|box_end\|>"
    rf"|{_OPEN}"
    rf"(?:(?<!\),)(?<!\),\s)\({_POINT}\)(?:\s*,\s*|\s+|\s*[-–—]\s*)\({_POINT}\)(?!\s*,\s*\()"
    rf"|(?<!\],)(?<!\],\s)\[{_POINT}\]\s*,\s*\[{_POINT}\](?!\s*,\s*\[)"
    rf"|\[\[{_FOUR}\]\]|\[{_FOUR}\]|\({_FOUR}\)|\[{_SPACED}\]|\[\s*{_QUOTED}\s*\])"
    rf"{_CLOSE}",
    re.ASCII,
)
_BOX_NAME = r"\b(?:bbox(?:_2d)?|box|bounding[ _]box|coordinates|coords)"
_PLAIN = (
    # "12,30,200,300", but not what a sign reads; bbox: 12, 30, 200, 300; only four numbers.
    re.compile(
        r"(?:(?<![A-Za-z]\s)(?<![A-Za-z])|(?<=\bat\s)|(?<=\bis\s))"
        rf"(?P<box>[\"'](?:{_FOUR}|{_SPACED})[\"'])",
        re.ASCII,
    ),
    re.compile(rf"{_BOX_NAME}{_IS}(?P<box>{_FOUR})(?![\s,]*\d)", re.ASCII | re.IGNORECASE),
    re.compile(
        rf"(?:\A|<answer>|</think>)\s{{0,9}}(?P<box>{_FOUR})(?=<\|im_end\|>|</answer>|\Z)", re.ASCII
    ),
    re.compile(
        rf"(?P<box>\btop[ _-]?left{_IS_AT}[\[(]{_POINT}[\])]\s*,?\s*(?:[-*]\s|and(?:\s+the)?\s+)?"
        rf"[\"']?bottom[ _-]?right{_IS_AT}[\[(]{_POINT}[\])])",
        re.ASCII | re.IGNORECASE,
    ),
)
# Numbers under a name each: {"x1": 12, "y1": 30, …}, left=12, <xmin>12</xmin>.
_NAMES: dict[tuple[str, ...], Callable[[float, float, float, float], Numbers]] = {
    ("x1", "y1", "x2", "y2"): _corners,
    ("x0", "y0", "x1", "y1"): _corners,
    ("xmin", "ymin", "xmax", "ymax"): _corners,
    ("minx", "miny", "maxx", "maxy"): _corners,
    ("xtl", "ytl", "xbr", "ybr"): _corners,
    ("left", "top", "right", "bottom"): _corners,
    ("left", "top", "width", "height"): _sized,
    ("xmin", "ymin", "width", "height"): _sized,
    ("x", "y", "width", "height"): _sized,
    ("x", "y", "w", "h"): _sized,
    ("cx", "cy", "w", "h"): _centred,
    ("cx", "cy", "width", "height"): _centred,
    ("centerx", "centery", "width", "height"): _centred,
    ("xcenter", "ycenter", "width", "height"): _centred,
}
_NAME = (
    r"([xy][_-]?(?:[012]|min|max|center|tl|br)?|(?:min|max|center)[_-]?[xy]|c[xy]|[wh]|width|height|"
    r"left|top|right|bottom)"
)
_NAMED = rf"<?[\"']?(?<!\w){_NAME}(?:{_IS}[\"']?|>\s{{0,3}}){_N}[\"']?(?:</[\w-]{{1,12}}>)?"
_FOUR_NAMED = re.compile(r"\s{0,3}[,;]?\s{0,20}".join([_NAMED] * 4), re.ASCII | re.IGNORECASE)

# Behind the sides of an image and a corner of a box: the box's own sides.
_SIDES = re.compile(rf"\W{{0,20}}(?:w|h|width|height){_IS}", re.IGNORECASE)

# The key or the word before a list, and what its numbers then mean.
_BEFORE = re.compile(
    rf"(?P<name>(?:[A-Za-z0-9_-]{{1,40}}|图[片像]?)[\"']?)(?:{_IS}|[\"'*`]{{0,3}}\s{{0,2}})[\"'\[(]?\s?\Z"
)
_ORDERS = {
    "cxcywh": _centred,
    "xyxy": _corners,
    "x1y1x2y2": _corners,
    "xywh": _sized,
    "ltwh": _sized,
    "tlwh": _sized,
    "yxyx": _rows_first,
    "y1x1y2x2": _rows_first,
    "yminxminymaxxmax": _rows_first,
}
# Names of four numbers in a row, and a field that tells their order.
_STATED = re.compile(
    rf"[\[(]\s?{_NAME}\s?,\s?{_NAME}\s?,\s?{_NAME}\s?,\s?{_NAME}\s?[\])]"
    rf"|(?<![a-z])(?:format|mode)[\"'*`]{{0,3}}\s?[:=]\s?[\"'*`]{{0,3}}(?P<order>{'|'.join(_ORDERS)})\b",
    re.ASCII | re.IGNORECASE,
)
_GEMINIS = re.compile(r"(?<!b)box(?:es)?2d")  # whose boxes are [ymin, xmin, ymax, xmax]
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
    found = []
    stated = _stated_order(text)
    key, end = "", -1
    for match in _BRACKETED.finditer(text):
        numbers = [float(n) for n in match.groups() if n and n[-1].isdecimal()]
        is_next = end >= 0 and _COMMA.fullmatch(text, end, match.start())  # of a list of boxes
        key, end = key if is_next else _name_before(text, match.start()), match.end()
        if corners := _read_list(text, match.start(), numbers, stated, key):
            found.append(Box(*match.span(), corners))
    for pattern in _PLAIN:
        for match in pattern.finditer(text):
            start, end = match.span("box")
            numbers = [float(digits) for digits in re.findall(_N, match["box"], re.ASCII)]
            name = _name_before(text, start)
            if corners := _read_list(text, start, numbers, stated, name):
                found.append(Box(start, end, corners))
    found += _find_named(text)
    boxes, end = [], 0
    for box in sorted(found):
        if box.start >= end:
            boxes.append(box)
            end = box.end
    return boxes


def _read_list(
    text: str, start: int, numbers: list[float], stated: Callable[..., Numbers] | None, name: str
) -> Numbers | None:
    """Returns the corners of a list of four numbers; None if it is a list of something else.

    Args:
      text: the response.
      start: where the list begins.
      numbers: the four.
      stated: what they mean by the words of the response; None if those don't say.
      name: the key or the word before it.
    """
    if text.startswith("<", start):  # marked as a box
        return _corners(*numbers)
    is_counting = all(n % 1 == 0 for n in numbers) and 0 <= numbers[0] <= _MOST_COUNTED
    is_counting = is_counting and sorted({*numbers}) == numbers and numbers[3] <= _MOST_COUNTED
    bare = name.rstrip("\"'")
    if any(map(_NO_BOX.fullmatch, (name, bare))) or (is_counting and _PLURAL.fullmatch(bare)):
        return None
    letters = re.sub(r"[\s_\"'-]", "", name.lower())
    meaning = next((read for order, read in _ORDERS.items() if order in letters), None)
    if meaning is None and stated is None and _GEMINIS.search(letters):
        meaning = _rows_first
    return (meaning or stated or _corners)(*numbers)


def _name_before(text: str, start: int) -> str:
    """Returns the key or the word right before a list, "image_ids" for "imageIds"; "" if none."""
    before = _BEFORE.search(text[max(0, start - _FAR) : start])
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", before["name"]) if before else ""


def _stated_order(text: str) -> Callable[[float, float, float, float], Numbers] | None:
    """Returns what four numbers mean by the words of a response; None if it doesn't say.

    As in "[ymin, xmin, ymax, xmax]", "(x, y, width, height)" or `"format": "xywh"`.
    """
    for found in _STATED.finditer(text):
        if found["order"]:
            return _ORDERS[found["order"].lower()]
        a, b, c, d = (re.sub(r"[_-]", "", name.lower()) for name in found.groups()[:4])
        if (a, b, c, d) in _NAMES:
            return _NAMES[a, b, c, d]
        if _NAMES.get((b, a, d, c)) is _corners:
            return _rows_first
    return None


def _find_named(text: str) -> Iterator[Box]:
    """Yields the boxes whose four numbers have a name each."""
    place = 0
    while match := _FOUR_NAMED.search(text, place):
        names = [re.sub(r"[_-]", "", name.lower()) for name in match.groups()[::2]]
        numbers = dict(zip(names, map(float, match.groups()[1::2]), strict=True))
        place = match.start(1) + 1
        of_image = names[0] in ("width", "height") and _SIDES.match(text, match.end())
        for order, read in _NAMES.items():
            if numbers.keys() == {*order} and not of_image:
                yield Box(*match.span(), read(*(numbers[name] for name in order)))
                place = match.end()
