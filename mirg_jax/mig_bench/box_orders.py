"""What the four numbers of a box mean by the words of a response: corners, sides or a centre.

A response states an order as "[ymin, xmin, ymax, xmax]", "(x, y, width, height)", "# y1, x1, y2, x2",
"xywh", `"format": "xyxy"` or "COCO format". An order that is stated for the whole response holds for
all its boxes. If several are stated, each holds for its own box: the one right before it, or else
those between it and the box before, or, where the first box has none before it, those behind.
"""  # noqa: E501

import bisect
import itertools
import re
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

Numbers = tuple[float, float, float, float]


class Order(NamedTuple):
    """What four numbers are.

    Attributes:
      read: function from the four, rearranged, to corners x1, y1, x2, y2.
      places: where each of its arguments stands among the four.
    """

    read: Callable[[float, float, float, float], Numbers]
    places: tuple[int, int, int, int] = (0, 1, 2, 3)

    def corners(self, numbers: Sequence[float]) -> Numbers:
        a, b, c, d = (numbers[place] for place in self.places)
        return self.read(a, b, c, d)


class Stated(NamedTuple):
    """Words that state an order, and where they stand in a response."""

    start: int
    end: int
    order: Order


def _corners(a: float, b: float, c: float, d: float) -> Numbers:
    return a, b, c, d


def _sized(a: float, b: float, c: float, d: float) -> Numbers:
    return a, b, a + c, b + d


def _centred(a: float, b: float, c: float, d: float) -> Numbers:
    return a - c / 2, b - d / 2, a + c / 2, b + d / 2


CORNERS = Order(_corners)
ROWS_FIRST = Order(_corners, (1, 0, 3, 2))
_SIZED, _CENTRED = Order(_sized), Order(_centred)

# Numbers under a name each: {"x1": 12, "y1": 30, …}, left=12, <xmin>12</xmin>.
NAMES: dict[tuple[str, ...], Callable[[float, float, float, float], Numbers]] = {
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
# Only as names of an order: "width" and "height" beside x1 and y1 may be an image's.
_OF_ORDERS = NAMES | {
    (*point, *sides): _sized
    for point in (("x1", "y1"), ("x0", "y0"), ("xmin", "ymin"), ("left", "top"))
    for sides in (("w", "h"), ("width", "height"))
}
NAME = (
    r"([xy][_-]?(?:[012]|min|max|center|tl|br)?|(?:min|max|center)[_-]?[xy]|c[xy]|[wh]|width|height|"
    r"left|top|right|bottom)"
)
WORDS = {
    "cxcywh": _CENTRED,
    "xyxy": CORNERS,
    "x1y1x2y2": CORNERS,
    "xminyminxmaxymax": CORNERS,
    "ltrb": CORNERS,
    "xywh": _SIZED,
    "ltwh": _SIZED,
    "tlwh": _SIZED,
    "yxyx": ROWS_FIRST,
    "y1x1y2x2": ROWS_FIRST,
    "yminxminymaxxmax": ROWS_FIRST,
}
_OF_DATA = {"coco": _SIZED, "yolo": _CENTRED, "pascalvoc": CORNERS, "voc": CORNERS}
_NEXT = r"[\"'`*]?\s?,\s?(?:and\s)?[\"'`*]?"
LIST = rf"(?<![\w.])(?:{_NEXT.join([NAME] * 3)}(?:{_NEXT}|\sand\s){NAME})(?!\w)"
_STATED = re.compile(
    rf"{LIST}|(?<![A-Za-z0-9_])(?P<word>{'|'.join(WORDS)})(?![A-Za-z0-9_])"
    r"|\b(?P<data>coco|yolo|(?:pascal[\s_-]?)?voc)(?:[\s_-]{1,2}(?:bbox\s|box\s)?"
    r"(?:format|style|convention|notation|order)\b|(?=\)))",
    re.ASCII | re.IGNORECASE,
)
# Before an order that is not the box's.
_DENIED = re.compile(
    r"(?:\b(?:not|from|than|without|never|instead\sof|convert\w{0,8})|n['’]t)"
    r"\s(?:(?:in|using|use|the|a|an|of)\s){0,2}[\"'`*\[(]{0,2}\Z",
    re.IGNORECASE,
)
# Between an order and its box.
_ADJACENT = re.compile(r"[\s\"'`*\])}:=#/|([{,-]{0,12}(?:(?:is|are|format)[\s:`*]{1,3})?")


def find_stated(text: str) -> list[Stated]:
    """Finds the words of a response that state an order."""
    return [
        Stated(*found.span(), order)
        for found in _STATED.finditer(text)
        if (order := _order_of(found)) is not None
        and not _DENIED.search(text, max(0, found.start() - 40), found.start())
    ]


def _order_of(found: re.Match) -> Order | None:
    if word := found["word"]:
        return WORDS[word.lower()]
    if data := found["data"]:
        return _OF_DATA[re.sub(r"[\s_-]", "", data.lower())]
    return of_names(found.groups()[:4])


def of_names(names: Sequence[str]) -> Order | None:
    """Returns the order of four names of numbers; None if they are not those of a box."""
    plain = [re.sub(r"[_-]", "", name.lower()) for name in names]
    for order, read in _OF_ORDERS.items():
        if {*plain} == {*order}:
            a, b, c, d = map(plain.index, order)
            return Order(read, (a, b, c, d))
    return None


def of_boxes(text: str, spans: Sequence[tuple[int, int]]) -> Iterator[tuple[Order | None, bool]]:
    """Yields the order that is stated for each box, None for none, and whether it is clear.

    Args:
      text: the response.
      spans: where its boxes begin and end, in order.
    """
    stated = find_stated(text)
    orders = {each.order for each in stated}
    if len(orders) <= 1:
        yield from itertools.repeat((next(iter(orders), None), True), len(spans))
        return
    starts = [each.start for each in stated]
    ends = [0, *(end for _, end in spans)]
    nexts = [*(start for start, _ in spans), len(text)]

    def between(number: int) -> list[Stated]:
        """Those before a box, from the box before."""
        low, high = (bisect.bisect_left(starts, at) for at in (ends[number], nexts[number]))
        return stated[low:high]

    before_first = between(0)
    last: Order | None = None
    for number, (start, end) in enumerate(spans):
        if before_first:
            own = between(number)
            if own and _is_adjacent(text, own[-1].end, start):
                own = own[-1:]
            found = {each.order for each in own} or {last}
            if number == len(spans) - 1:  # what is behind it can only be its own, or contradict
                found |= {each.order for each in between(number + 1)}
        else:
            own = between(number + 1)
            if own and _is_adjacent(text, end, own[0].start):
                own = own[:1]
            found = {each.order for each in own}
        last = found.pop() if len(found) == 1 else None
        yield last, last is not None


def _is_adjacent(text: str, start: int, end: int) -> bool:
    return _ADJACENT.fullmatch(text, start, end) is not None
