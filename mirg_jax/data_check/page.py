"""The page of a check: the tables, and examples with their boxes, used and left out."""

import collections
import pathlib
from collections.abc import Sequence

from mirg_jax.data.examples import Example
from mirg_jax.data.images import ImageRoot
from mirg_jax.data_check.survey import Measured
from mirg_jax.data_check.tables import Table
from mirg_jax.errors import reason_kind
from mirg_jax.grounding.boxes import grid_to_fraction
from mirg_jax.report import browser
from mirg_jax.report.browser import Answer, Card, PlacedBox, task_title

_EACH = 12  # examples of each file and task that are used, and of each reason
_MOST = 600


class Sample:
    """The first examples of each file and task, and of each reason why they are left out."""

    def __init__(self):
        self._counts: collections.Counter[tuple[str, str]] = collections.Counter()
        self.cards: list[Card] = []

    def add(self, file: str, found: Measured, root: ImageRoot) -> None:
        """Keeps an example if there are too few like it."""
        like = file, reason_kind(found.problem) or f"used {found.example.task}"
        if self._counts[like] < _EACH and len(self.cards) < _MOST:
            self._counts[like] += 1
            self.cards.append(_card(file, found, root))


def write(path: pathlib.Path, tables: Sequence[tuple[str, Table]], cards: Sequence[Card]) -> None:
    """Writes the page.

    Args:
      path: the file to write.
      tables: headings and tables.
      cards: the examples.
    """
    sections = [
        (heading, browser.table(table) if len(table) > 1 else "<p>None.</p>\n")
        for heading, table in tables
    ]
    facets = {
        "Task": tuple(dict.fromkeys(card.facets["Task"][0] for card in cards)),
        "Use": ("used", "left out"),
        "File": tuple(dict.fromkeys(card.facets["File"][0] for card in cards)),
    }
    view = browser.View("Examples", cards, facets, spread=("Task", "Use"))
    browser.write(path, "Data as a run would use them", sections, [view])


def _card(file: str, found: Measured, root: ImageRoot) -> Card:
    example, problem = found.example, found.problem
    title = task_title(example.task)
    answers = []
    if problem:
        answers.append(Answer("left out", "✗", problem, False, None))
    if example.response is not None:
        answers.append(Answer("response", "", "", None, example.response))
    size = f"{found.tokens} tokens" if found.tokens else "not readable"
    return Card(
        title=f"{example.source or example.id}, {title}",
        question=example.question,
        root=root,
        images=example.images,
        truth=_boxes(example),
        answers=answers,
        facets={
            "Task": (title,),
            "Use": ("left out" if problem else "used",),
            "File": (file,),
        },
        badge=f"left out, {size}" if problem else size,
    )


def _boxes(example: Example) -> list[PlacedBox]:
    """Returns an example's boxes; one that may be in any image is in all of them."""
    count = len(example.images)
    return [
        PlacedBox(image, grid_to_fraction(target.box))
        for target in example.targets
        for image in ([target.image] if target.image else range(1, count + 1))
    ]
