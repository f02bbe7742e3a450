"""The page of composed examples: counts, what was left out, and examples with their boxes."""

import pathlib
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from mirg_jax.compose import counts
from mirg_jax.grounding.boxes import grid_to_fraction
from mirg_jax.report import browser

_EACH = 12  # examples of each task and file


class Sample:
    """The first examples of each task and file."""

    def __init__(self):
        self._counts: Counter[tuple[str, str]] = Counter()
        self.examples: list[tuple[str, dict[str, Any]]] = []

    def add(self, file: str, row: dict[str, Any]) -> None:
        """Keeps a row if there are too few of its task and file."""
        which = file, row["task"]
        if self._counts[which] < _EACH:
            self._counts[which] += 1
            self.examples.append((file, row))


def write_page(
    path: pathlib.Path,
    manifest: Mapping[str, Any],
    examples: Sequence[tuple[str, Mapping[str, Any]]],
    root: pathlib.Path,
) -> None:
    """Writes the page.

    Args:
      path: the file to write.
      manifest: the content of manifest.json.
      examples: names of files, and rows of them.
      root: folder that the rows' images are relative to.
    """
    sections = [
        (heading, browser.table(lines) if len(lines) > 1 else "<p>None.</p>\n")
        for heading, lines in _tables(manifest).items()
    ]
    cards = [_card(file, row, root) for file, row in examples]
    facets = {
        "Task": tuple(dict.fromkeys(row["task"] for _, row in examples)),
        "File": tuple(dict.fromkeys(file for file, _ in examples)),
    }
    view = browser.View("Examples", cards, facets, spread=("Task", "File"))
    browser.write(path, "Composed examples", sections, [view])


def _tables(manifest: Mapping[str, Any]) -> dict[str, list[Sequence[Any]]]:
    """Returns the page's tables by heading; the first row of each is its header."""
    return {
        "Examples": [counts.HEADER, *counts.rows(manifest)],
        "Photos": [("split", "photos"), *manifest["photos"].items()],
        "Why draws gave no example": [
            ("file", "task", "reason", "draws"),
            *(
                (file, task, each["reason"], each["count"])
                for file, task, row in counts.by_task(manifest)
                for each in row["draws_left_out"]
            ),
        ],
        "What of the labels was left out": [
            ("reason", "cases", "the first"),
            *((e["reason"], e["count"], e["first"]) for e in manifest["labels_left_out"]),
        ],
    }


def _card(file: str, row: Mapping[str, Any], root: pathlib.Path) -> browser.Card:
    return browser.Card(
        title=row["id"],
        question=row["question"],
        root=root,
        images=row["images"],
        truth=[
            browser.PlacedBox(each["image"], grid_to_fraction(each["box"]))
            for each in row["targets"]
        ],
        answers=[],
        facets={"Task": (row["task"],), "File": (file,)},
        badge=row["targets"][0]["label"],
    )
