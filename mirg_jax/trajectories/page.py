"""Trajectories as one HTML page: the yields, and examples with every box drawn in its image."""

import collections
import html
import importlib.resources
import pathlib
import string
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mirg_jax.evaluation.report import coloured, option, overlay, picture, script, style, task_title
from mirg_jax.grounding.boxes import grid_to_fraction
from mirg_jax.grounding.grammar import GroundedObject, parse_response
from mirg_jax.trajectories.outputs import whole
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
    outcomes = list(outcomes)
    template = importlib.resources.files(__package__).joinpath("page.html").read_text("utf-8")
    names = ("questions", "accepted", "rejected", "unfinished")
    counts = ("answers", "refused", "prompt_tokens", "completion_tokens", "dollars")
    reasons = [
        (task_title(task), reason, count)
        for task, row in summary["tasks"].items()
        for reason, count in row["reasons"].items()
    ]
    refused = [
        (stage, reason, count)
        for stage, row in summary["stages"].items()
        for reason, count in row["reasons"].items()
    ]
    page = string.Template(template).substitute(
        style=style(),
        script=script(),
        tasks=_table(
            ("task", *names),
            [(task_title(t), *map(row.get, names)) for t, row in summary["tasks"].items()]
            + [("all", *map(summary.get, names))],
        ),
        rejected=_table(("task", "reason", "questions"), reasons),
        stages=_table(
            ("stage", *counts),
            [
                (stage, *(round(row[name], 2) for name in counts))
                for stage, row in summary["stages"].items()
            ],
        ),
        refused=_table(("stage", "reason", "answers"), refused),
        task_options="".join(
            option(task, task_title(task)) for task in sorted({o.question.task for o in outcomes})
        ),
        examples="\n".join(_card(outcome, image_root) for outcome in outcomes),
    )
    with whole(path) as file:
        file.write(page.encode(errors="replace").decode())  # a teacher may send half a pair


def _table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    if not rows:
        return "<p>None.</p>"

    def line(cells: Sequence[Any], tag: str) -> str:
        return f"<tr>{''.join(f'<{tag}>{html.escape(str(c))}</{tag}>' for c in cells)}</tr>"

    return f"<table>{line(header, 'th')}{''.join(line(row, 'td') for row in rows)}</table>"


def _card(outcome: Outcome, image_root: str | pathlib.Path) -> str:
    question = outcome.question
    objects: Sequence[GroundedObject] = outcome.objects
    if outcome.grounded:
        objects = parse_response(outcome.grounded, len(question.images)).mentions
    drawn: list[list[str]] = [[] for _ in question.images]
    for target in question.targets:
        if target.image:
            drawn[target.image - 1].append(overlay(grid_to_fraction(target.box), "truth", ""))
    for obj in objects:
        label = f"[{obj.image}-{obj.number}] {obj.label}"
        drawn[obj.image - 1].append(overlay(grid_to_fraction(obj.box), "predicted", label))
    figures = "".join(
        f"<figure>{picture(image_root, path).replace('</svg>', ''.join(marks) + '</svg>')}"
        f"<figcaption>Image-{n}</figcaption></figure>"
        for n, (path, marks) in enumerate(zip(question.images, drawn, strict=True), start=1)
    )
    blocks = []
    for answer in outcome.answers:
        what = f"{answer.stage}, try {answer.attempt}"
        if answer.problems:
            what += f': <span class="reason">{html.escape("; ".join(answer.problems))}</span>'
        shown = coloured(answer.reply.text)
        if answer.stage == "reassembly" and not answer.problems:
            shown = coloured(outcome.grounded)
        blocks.append(
            f'<div class="run {"" if answer.problems else "hit"}">{what}'
            f'<div class="response">{shown}</div></div>'
        )
    result = "rejected" if outcome.rejected else "accepted"
    title = f"{task_title(question.task)}, {question.id}: {result}"
    why = f'<p class="reason">{html.escape(outcome.rejected)}</p>' if outcome.rejected else ""
    return (
        f'<article data-task="{html.escape(question.task)}" data-result="{result}">'
        f"<h3>{html.escape(title)}</h3><p>{coloured(question.question)}</p>{why}"
        f'<div class="strip">{figures}</div>{"".join(blocks)}</article>'
    )
