"""Writes outcomes to files: the paper's variants of the data, rejected questions, refused answers
and a summary."""

import collections
import contextlib
import dataclasses
import json
import pathlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TextIO

from mirg_jax.data.examples import Example, Rejected, to_line
from mirg_jax.data.pipeline import response_of
from mirg_jax.errors import DataError, reason_kind
from mirg_jax.grounding.grammar import parse_response
from mirg_jax.trajectories.checks import match_targets
from mirg_jax.trajectories.plan import QuestionOutcome
from mirg_jax.trajectories.prompts import STAGES

VARIANTS = ("grounded", "reasoning", "bbox_caption", "answer_only")


def variants(outcome: QuestionOutcome) -> dict[str, Example]:
    """Returns an accepted question as each variant of the paper's Table 3.

    grounded: reasoning with ids and boxes (stage 3). reasoning: in words only (stage 1).
    bbox_caption: the answer with its name, for plain SFT. answer_only: the targets only, for RL.
    """
    question = outcome.question
    response = parse_response(outcome.grounded, len(question.images))
    names = {(obj.image, obj.number): obj.label for obj in response.mentions}
    targets = []
    matches = match_targets(response.objects, question.targets)
    for target, match in zip(question.targets, matches, strict=True):
        obj = response.objects[match.index]
        name = names[obj.image, obj.number]
        targets.append(dataclasses.replace(target, image=obj.image, label=target.label or name))
    captioned = dataclasses.replace(question, targets=tuple(targets))
    return {
        "grounded": dataclasses.replace(question, response=outcome.grounded),
        "reasoning": dataclasses.replace(question, response=outcome.reasoning),
        "bbox_caption": dataclasses.replace(question, response=response_of(captioned)),
        "answer_only": question,
    }


class Yields:
    """Counts of accepted and rejected questions by task, and of answers by stage."""

    def __init__(self):
        self._tasks: dict[str, collections.Counter] = {}
        self._reasons: dict[str, collections.Counter] = {}
        counts = ("answers", "refused", "prompt_tokens", "completion_tokens", "dollars")
        self._stages = {stage: dict.fromkeys(counts, 0) for stage in STAGES}
        self._refused = {stage: collections.Counter() for stage in STAGES}
        names = ("servers", "models")
        self._origins = {s: {name: collections.Counter() for name in names} for s in STAGES}

    def add(self, outcome: QuestionOutcome) -> None:
        """Counts a question and its answers."""
        task = outcome.question.task
        counts = self._tasks.setdefault(task, collections.Counter())
        counts["questions"] += 1
        if outcome.unfinished:
            counts["unfinished"] += 1
        elif outcome.rejected:
            counts["rejected"] += 1
            reasons = self._reasons.setdefault(task, collections.Counter())
            reasons[reason_kind(outcome.rejected)] += 1
        else:
            counts["accepted"] += 1
        for answer in outcome.answers:
            counts = self._stages[answer.stage]
            counts["answers"] += 1
            counts["refused"] += bool(answer.problems)
            counts["prompt_tokens"] += answer.reply.prompt_tokens
            counts["completion_tokens"] += answer.reply.completion_tokens
            counts["dollars"] += answer.dollars
            for name, value in (("servers", answer.reply.server), ("models", answer.reply.model)):
                if value:
                    self._origins[answer.stage][name][value] += 1
            if answer.problems:
                self._refused[answer.stage][reason_kind(answer.problems[0])] += 1

    def to_json(self, asked: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Returns the content of summary.json; `asked` is as in `write_outcomes`."""
        names = ("questions", "accepted", "rejected", "unfinished")
        total = sum(self._tasks.values(), collections.Counter())
        return {
            **{name: total[name] for name in names},
            "tasks": {
                task: {name: counts[name] for name in names}
                | {"reasons": dict(self._reasons.get(task, collections.Counter()).most_common())}
                for task, counts in self._tasks.items()
            },
            "stages": {
                stage: counts
                | {"reasons": dict(self._refused[stage].most_common())}
                | {name: dict(found) for name, found in self._origins[stage].items()}
                | ({"asked": asked[stage]} if asked else {})
                for stage, counts in self._stages.items()
            },
        }


def write_outcomes(
    outcomes: Iterable[QuestionOutcome],
    folder: pathlib.Path,
    asked: Mapping[str, Any] | None = None,
) -> Iterator[QuestionOutcome]:
    """Writes each outcome, and yields it: VARIANT.jsonl, rejected.jsonl, refused.jsonl and, at the
    end, summary.json. The files appear when they are complete.

    Args:
      asked: what each stage's answers depend on besides the question, for the summary.
    """
    yields = Yields()
    with contextlib.ExitStack() as stack:
        files = {
            name: stack.enter_context(complete_file(folder / f"{name}.jsonl"))
            for name in (*VARIANTS, "rejected", "refused")
        }
        for outcome in outcomes:
            yields.add(outcome)
            _write_outcome(outcome, files)
            yield outcome
        with complete_file(folder / "summary.json") as file:
            json.dump(yields.to_json(asked), file, indent=1)
            file.write("\n")


def _write_outcome(outcome: QuestionOutcome, files: dict[str, TextIO]) -> None:
    question = outcome.question
    if outcome.rejected:
        row = Rejected(question.source, question.id, outcome.rejected)
        files["rejected"].write(json.dumps(dataclasses.asdict(row)) + "\n")
    elif not outcome.unfinished:
        for name, example in variants(outcome).items():
            files[name].write(to_line(example))
    for answer in outcome.answers:
        if answer.problems:
            refused = {
                "id": question.id,
                "task": question.task,
                "stage": answer.stage,
                "try": answer.attempt,
                "reasons": answer.problems,
                "text": answer.reply.text,
            }
            files["refused"].write(json.dumps(refused) + "\n")


@contextlib.contextmanager
def complete_file(path: pathlib.Path) -> Iterator[TextIO]:
    """Opens a file for writing that gets its name only when it is complete."""
    part = path.with_name(path.name + ".part")
    with open(part, "w", encoding="utf-8") as file:
        yield file
    part.rename(path)


def check_some_accepted(summary: dict[str, Any], folder: pathlib.Path) -> None:
    """Checks that not every question was rejected.

    Args:
      summary: as in summary.json.
      folder: the folder of the outputs.

    Raises:
      DataError: if all were; the message has the first reason.
    """
    if summary["accepted"] or summary["unfinished"] or not summary["rejected"]:
        return
    path = folder / "rejected.jsonl"
    with open(path, encoding="utf-8") as file:
        first = json.loads(file.readline())
    raise DataError(
        f"no question was accepted, {summary['rejected']} were rejected; the first: "
        f"{first['reason']}; all reasons are in {path}"
    )


def yield_table(summary: dict[str, Any]) -> str:
    """Returns a summary's counts of questions by task as lines of text."""
    lines = [f"{'task':20} {'questions':>9} {'accepted':>9} {'rejected':>9} {'unfinished':>10}"]
    for task, row in (*summary["tasks"].items(), ("all", summary)):
        numbers = [row[name] for name in ("questions", "accepted", "rejected", "unfinished")]
        lines.append("{:20} {:9} {:9} {:9} {:10}".format(task, *numbers))
    return "\n".join(lines)
