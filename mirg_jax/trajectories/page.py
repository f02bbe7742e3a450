"""Trajectories as an HTML page: tables of the yields, and examples with every box drawn."""

import collections
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mirg_jax.data.images import Root
from mirg_jax.grounding.boxes import grid_to_fraction
from mirg_jax.report import browser
from mirg_jax.report.browser import task_title
from mirg_jax.trajectories.plan import QuestionOutcome


class Sample:
    """The first few outcomes of each task, as many accepted as rejected ones."""

    def __init__(self, most: int, tasks: int):
        """
        Args:
          most: outcomes in total.
          tasks: number of tasks.
        """
        self._each = -(-most // max(1, 2 * tasks))
        self._counts: collections.Counter[tuple[str, bool]] = collections.Counter()
        self.outcomes: list[QuestionOutcome] = []

    def add(self, outcome: QuestionOutcome) -> None:
        """Keeps an outcome if it is finished and there are too few of its task and result."""
        which = outcome.question.task, bool(outcome.rejected)
        if not outcome.unfinished and self._counts[which] < self._each:
            self._counts[which] += 1
            self.outcomes.append(outcome)


def write_trajectory_page(
    path: pathlib.Path,
    summary: Mapping[str, Any],
    outcomes: Iterable[QuestionOutcome],
    image_root: Root,
) -> None:
    """Writes the page.

    Args:
      summary: the content of summary.json.
      outcomes: the examples to show, all finished. An image that can't be read is replaced by the
        reason.
    """
    sections = [
        (heading, browser.table(lines) if len(lines) > 1 else "<p>None.</p>\n")
        for heading, lines in _tables(summary).items()
    ]
    outcomes = list(outcomes)
    cards = [_card(outcome, image_root) for outcome in outcomes]
    facets = {
        "Task": browser.task_titles([outcome.question.task for outcome in outcomes]),
        "Result": ("accepted", "rejected"),
    }
    view = browser.View("Trajectories", cards, facets, spread=("Task", "Result"))
    browser.write(path, "Trajectories", sections, [view])


def _tables(summary: Mapping[str, Any]) -> dict[str, list[Sequence[Any]]]:
    """Returns the page's tables by heading; the first row of each is its header."""
    names = ("questions", "accepted", "rejected", "unfinished")
    counts = ("answers", "refused", "prompt_tokens", "completion_tokens", "dollars")
    tasks, stages = summary["tasks"], summary["stages"]
    return {
        "Questions": [
            ("task", *names),
            *((task_title(task), *map(row.get, names)) for task, row in tasks.items()),
            ("all", *map(summary.get, names)),
        ],
        "Why questions were rejected": [
            ("task", "reason", "questions"),
            *(
                (task_title(task), reason, count)
                for task, row in tasks.items()
                for reason, count in row["reasons"].items()
            ),
        ],
        "Answers by stage": [
            ("stage", *counts),
            *((stage, *(round(row[name], 2) for name in counts)) for stage, row in stages.items()),
        ],
        "Who answered": [
            ("stage", "as", "name", "answers"),
            *(
                (stage, what.removesuffix("s"), name, count)
                for stage, row in stages.items()
                for what in ("servers", "models")
                for name, count in row[what].items()
            ),
        ],
        "Why answers were refused": [
            ("stage", "reason", "answers"),
            *(
                (stage, reason, count)
                for stage, row in stages.items()
                for reason, count in row["reasons"].items()
            ),
        ],
    }


def _card(outcome: QuestionOutcome, image_root: Root) -> browser.Card:
    question = outcome.question
    result = "rejected" if outcome.rejected else "accepted"
    answers = []
    for answer in reversed(outcome.answers):  # readers look at the last stage first
        is_trajectory = answer.stage == "reassembly" and not answer.problems
        answers.append(
            browser.Answer(
                name=f"{answer.stage}, try {answer.attempt}",
                mark="✗" if answer.problems else "✓",
                said="; ".join(answer.problems),
                good=not answer.problems,
                text=outcome.grounded if is_trajectory else answer.reply.text,
                objects=() if is_trajectory else outcome.objects,
            )
        )
    title = task_title(question.task)
    return browser.Card(
        title=f"{title}, {question.id}: {outcome.rejected or result}",
        question=question.question,
        root=image_root,
        images=question.images,
        truth=[
            browser.PlacedBox(target.image, grid_to_fraction(target.box))
            for target in question.targets
            if target.image
        ],
        answers=answers,
        facets={"Task": (title,), "Result": (result,)},
    )
