"""An HTML page of examples: a gallery, then a browser of all examples with filters and sorting.

The page is self-contained: pictures are embedded and nothing is loaded from elsewhere. Its content
comes from models and data files and is not trusted. So examples are passed as JSON, and the page's
script shows them as text, never as HTML; no script runs except the one whose hash the page names.
"""

import base64
import hashlib
import html
import importlib.resources
import itertools
import json
import math
import os
import pathlib
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from mirg_jax.data.images import ImageRoot, Root
from mirg_jax.grounding import tasks
from mirg_jax.grounding.grammar import GroundedObject
from mirg_jax.report import spans, thumbnails

Fractions = tuple[float, float, float, float]

_GALLERY = 12  # examples


class PlacedBox(NamedTuple):
    """A box, in fractions of the image's sides, and the number of its image, from 1."""

    image: int
    box: Fractions


@dataclass(frozen=True)
class Answer:
    """An answer to an example's question.

    Attributes:
      name: name of its author.
      mark: its result in a few characters, for the list.
      said: its result in words.
      good: whether it is good; None if it is neither good nor bad.
      text: its text; None if there is none.
      box: the box that is scored.
      objects: objects with image and number that are drawn in addition to those of the text.
    """

    name: str
    mark: str
    said: str
    good: bool | None
    text: str | None
    box: PlacedBox | None = None
    objects: Sequence[GroundedObject] = ()


@dataclass(frozen=True)
class Card:
    """An example.

    Attributes:
      title: its heading.
      question: its question.
      root: folder that image paths are relative to.
      images: paths of its images.
      truth: the true boxes.
      answers: the answers to its question.
      facets: values of this example by facet of the view.
      numbers: values of this example by sort order of the view.
      badge: its result in a few words, for the gallery.
      drawn: index of the answer whose box the gallery draws.
    """

    title: str
    question: str
    root: Root
    images: Sequence[str]
    truth: Sequence[PlacedBox]
    answers: Sequence[Answer]
    facets: Mapping[str, Sequence[str]] = field(default_factory=dict)
    numbers: Mapping[str, float] = field(default_factory=dict)
    badge: str = ""
    drawn: int = 0


@dataclass(frozen=True)
class View:
    """Examples of one kind.

    Attributes:
      name: heading of the view.
      cards: the examples.
      facets: what they can be filtered by, each with its values in order.
      orders: what they can be sorted by; the first is their order in `cards`.
      differences: whether they can be sorted by the difference of two orders too.
      spread: the two facets over which a gallery is spread: subject and result.
    """

    name: str
    cards: Sequence[Card]
    facets: Mapping[str, Sequence[str]]
    orders: Sequence[str] = ()
    differences: bool = False
    spread: tuple[str, str] | None = None


def write(
    path: str | pathlib.Path,
    title: str,
    sections: Sequence[tuple[str, str]],
    views: Sequence[View],
    *,
    pictures: bool = True,
) -> None:
    """Writes the page under a temporary name and renames it when it is complete.

    The page begins with a gallery of the first view that has examples.

    Args:
      path: the file to write; its folder is created.
      title: heading of the page.
      sections: headings and HTML of the sections between the gallery and the browser.
      views: the examples.
      pictures: whether images are read; if not, boxes are drawn on blank frames.
    """
    shown = [card for view in views for card in view.cards]
    images = list(dict.fromkeys((ImageRoot.of(c.root), p) for c in shown for p in c.images))
    made = thumbnails.make(images) if pictures else [thumbnails.BLANK] * len(images)
    numbers = {image: number for number, image in enumerate(images)}
    views = [view for view in views if view.cards]
    chosen = gallery(views[0]) if views else []
    # The gallery's pictures precede the script, so that it can show them immediately.
    early = {
        numbers[ImageRoot.of(card.root), path]
        for card in (views[0].cards[number] for number in chosen)
        for path in card.images
    }
    data = {
        "tokens": spans.TOKENS,
        "pictures": [
            {"path": name, "width": made.width, "height": made.height, "problem": made.problem}
            for (_, name), made in zip(images, made, strict=True)
        ],
        "views": [_view(view, numbers) for view in views],
        "gallery": [_tile(views[0], number) for number in chosen],
    }
    assets = importlib.resources.files(__package__)
    style, script = (assets.joinpath(f"report.{kind}").read_text("utf-8") for kind in ("css", "js"))
    page = string.Template(assets.joinpath("report.html").read_text("utf-8")).substitute(
        title=html.escape(title),
        style=style,
        style_hash=_hash(style),
        script=script,
        script_hash=_hash(script),
        links="".join(
            f'<a href="#section-{number}">{html.escape(heading)}</a>\n'
            for number, (heading, _) in enumerate(sections)
        ),
        sections="".join(
            f'<section><h2 id="section-{number}">{html.escape(heading)}</h2>\n{body}</section>\n'
            for number, (heading, body) in enumerate(sections)
        ),
        gallery="".join(_picture(number, made[number]) for number in sorted(early)),
        # "<" could end the element. In JSON it occurs only inside strings, where it can be escaped.
        data=json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False).replace(
            "<", "\\u003c"
        ),
    )
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part-{os.getpid()}")
    with part.open("w", encoding="utf-8", errors="replace") as file:  # a text may hold half a pair
        head, tail = page.rsplit("<!-- pictures -->", 1)
        file.write(head)
        for number, thumbnail in enumerate(made):
            if number not in early:
                file.write(_picture(number, thumbnail))
        file.write(tail)
    part.replace(path)


class _GalleryPlace(NamedTuple):
    """The place of a card in the gallery: indices of its subject and result, and its number."""

    subject: int
    result: int
    card: int


def gallery(view: View, most: int = _GALLERY) -> list[int]:
    """Chooses cards for the gallery, spread over the two facets in `spread`.

    Subjects (values of the first facet) take turns. A subject's turns go through its results
    (values of the second facet) one after another, and neighbouring subjects begin with different
    results. Within a subject and result, the first cards are taken.

    Args:
      view: the view.
      most: maximum number of cards.

    Returns:
      The numbers of the chosen cards, ordered by subject, result and number.
    """
    if view.spread is None:
        return []
    subjects, results = (list(view.facets[name]) for name in view.spread)
    places = []
    for number, card in enumerate(view.cards):
        subject, result = (card.facets[name][0] for name in view.spread)
        places.append(_GalleryPlace(subjects.index(subject), results.index(result), number))
    places.sort()
    waiting = [
        [list(group) for _, group in itertools.groupby(of_subject, key=lambda place: place.result)]
        for _, of_subject in itertools.groupby(places, key=lambda place: place.subject)
    ]
    chosen: list[_GalleryPlace] = []
    turn = 0
    while len(chosen) < min(most, len(places)):
        for number, groups in enumerate(waiting):
            groups[:] = [group for group in groups if group]
            if groups and len(chosen) < most:
                chosen.append(groups[(turn + number) % len(groups)].pop(0))
        turn += 1
    return [place.card for place in sorted(chosen)]


def table(cells: Sequence[Sequence[Any]]) -> str:
    """Returns a header and lines as an HTML table."""

    def line(values: Sequence[Any], tag: str) -> str:
        return f"<tr>{''.join(f'<{tag}>{html.escape(str(v))}</{tag}>' for v in values)}</tr>\n"

    header, *lines = cells
    body = "".join(line(values, "td") for values in lines)
    return f'<div class="scroll" tabindex="0"><table>{line(header, "th")}{body}</table></div>\n'


def task_title(name: str) -> str:
    """Returns the short title of a task; a task that is not of the benchmark keeps its name."""
    return tasks.MIG_BENCH_TASKS[name].short if name in tasks.MIG_BENCH_TASKS else name


def task_titles(names: Sequence[str]) -> list[str]:
    """Returns the titles of the tasks that occur, in the order of the paper."""
    present = dict.fromkeys(names)
    known = [name for name in tasks.MIG_BENCH_TASKS if name in present]
    return [task_title(name) for name in dict.fromkeys([*known, *present])]


def _hash(text: str) -> str:
    """Returns the hash of an inline style or script for a Content-Security-Policy."""
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _picture(number: int, thumbnail: thumbnails.Thumbnail) -> str:
    """Returns an element with a picture's data for the script; empty if there is no picture."""
    if not thumbnail.data:
        return ""
    return f'<script type="text/plain" id="picture-{number}">{thumbnail.data}</script>\n'


def _tile(view: View, number: int) -> dict[str, Any]:
    """Returns the JSON of an example in the gallery."""
    card = view.cards[number]
    facet, _ = view.spread
    subject, *_ = card.facets[facet]
    return {"card": number, "subject": subject, "badge": card.badge, "drawn": card.drawn}


def _view(view: View, pictures: Mapping[tuple[ImageRoot, str], int]) -> dict[str, Any]:
    return {
        "name": view.name,
        "facets": [[name, list(values)] for name, values in view.facets.items()],
        "orders": list(view.orders),
        "differences": view.differences,
        "spread": view.spread,
        "cards": [_card(card, view, pictures) for card in view.cards],
    }


def _card(card: Card, view: View, pictures: Mapping[tuple[ImageRoot, str], int]) -> dict[str, Any]:
    count = len(card.images)
    usual = card.truth[0].image if card.truth else 1
    asked = _spans(spans.read(card.question, count))
    return {
        "title": card.title,
        "question": asked["pieces"],
        "asked": asked["places"],
        "images": [pictures[ImageRoot.of(card.root), path] for path in card.images],
        "truth": [_box(true.image, true.box) for true in card.truth],
        "answers": [_answer(answer, count, usual) for answer in card.answers],
        "facets": [
            [values.index(value) for value in card.facets.get(name, ())]
            for name, values in view.facets.items()
        ],
        "numbers": [_finite(card.numbers.get(name, math.nan)) for name in view.orders],
    }


def _answer(answer: Answer, count: int, usual: int) -> dict[str, Any]:
    made = {"name": answer.name, "mark": answer.mark, "said": answer.said, "good": answer.good}
    if answer.box:
        made["box"] = _box(answer.box.image, answer.box.box)
    if answer.text is None:
        return made
    return made | _spans(spans.read(answer.text, count, usual, answer.objects))


def _spans(found: spans.Spans) -> dict[str, Any]:
    return {
        "pieces": found.pieces,
        "names": found.names,
        "places": [[place.object, *_box(place.image, place.box)] for place in found.places],
    }


def _box(image: int, box: Fractions) -> list[float]:
    """Returns image, left, top, width and height of a box, clipped to the image.

    The box's corners may be in any order.
    """
    x1, y1, x2, y2 = (min(max(value, 0.0), 1.0) if value == value else 0.0 for value in box)
    sides = min(x1, x2), min(y1, y2), abs(x2 - x1), abs(y2 - y1)
    return [image, *(round(value, 4) for value in sides)]


def _finite(value: float) -> float | None:
    """Rounds a number for JSON, which has no NaN or infinity."""
    return round(float(value), 4) if math.isfinite(value) else None
