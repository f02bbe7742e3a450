"""Trajectories as one HTML page: the yields, and examples with every box drawn in its image."""

import collections
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

from mirg_jax.grounding.boxes import grid_to_fraction
from mirg_jax.report import browser
from mirg_jax.report.browser import task_title
from mirg_jax.trajectories.pipeline import Outcome


class Sample:
    """The first outcomes of each task, accepted and rejected, so many in all."""

    def __init__(self, most: int, tasks: int):
        self._each = -(-most // max(1, 2 * tasks))
        self._counts: collections.Counter[tuple[str, bool]] = collections.Counter()
        self.outcomes: list[Outcome] = []

    def add(self, outcome: Outcome) -> None:
        which = outcome.question.task, bool(outcome.rejected)
        if not outcome.unfinished and self._counts[which] < self._each:
            self._counts[which] += 1
            self.outcomes.append(outcome)


def write(
    path: pathlib.Path,
    summary: Mapping[str, Any],
    outcomes: Iterable[Outcome],
    image_root: str | pathlib.Path,
) -> None:
    """Writes the page.

    Args:
      summary: of `outputs`.
      outcomes: to be shown, finished. A picture that can't be read is replaced by the reason.
    """
    names = ("questions", "accepted", "rejected", "unfinished")
    counts = ("answers", "refused", "prompt_tokens", "completion_tokens", "dollars")
    tasks, stages = summary["tasks"], summary["stages"]
    yields = [(task_title(task), *map(row.get, names)) for task, row in tasks.items()]
    tables = {
        "What became of the questions": [
            ("task", *names),
            *yields,
            ("all", *map(summary.get, names)),
        ],
        "Why questions have no trajectory": [
            ("task", "reason", "questions"),
            *(
                (task_title(task), reason, count)
                for task, row in tasks.items()
                for reason, count in row["reasons"].items()
            ),
        ],
        "The stages' answers": [
            ("stage", *counts),
            *((stage, *(round(row[name], 2) for name in counts)) for stage, row in stages.items()),
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
    sections = [
        (heading, browser.table(lines) if len(lines) > 1 else "<p>None.</p>\n")
        for heading, lines in tables.items()
    ]
    outcomes = list(outcomes)
    cards = [_card(outcome, image_root) for outcome in outcomes]
    facets = {
        "Task": browser.task_titles([outcome.question.task for outcome in outcomes]),
        "Result": ("accepted", "rejected"),
    }
    view = browser.View("Trajectories", cards, facets, spread=("Task", "Result"))
    browser.write(path, "Trajectories", sections, [view])


def _card(outcome: Outcome, image_root: str | pathlib.Path) -> browser.Card:
    question = outcome.question
    result = "rejected" if outcome.rejected else "accepted"
    answers = []
    for answer in reversed(outcome.answers):  # the last stage's is looked at first
        whole = answer.stage == "reassembly" and not answer.problems
        answers.append(
            browser.Answer(
                name=f"{answer.stage}, try {answer.attempt}",
                mark="✗" if answer.problems else "✓",
                said="; ".join(answer.problems),
                good=not answer.problems,
                text=outcome.grounded if whole else answer.reply.text,
                objects=() if whole else outcome.objects,
            )
        )
    title = task_title(question.task)
    return browser.Card(
        title=f"{title}, {question.id}: {outcome.rejected or result}",
        question=question.question,
        root=image_root,
        images=question.images,
        truth=[
            (target.image, grid_to_fraction(target.box))
            for target in question.targets
            if target.image
        ],
        answers=answers,
        facets={"Task": (title,), "Result": (result,)},
        badge=f"{result}, {outcome.rejected}" if outcome.rejected else result,
    )
