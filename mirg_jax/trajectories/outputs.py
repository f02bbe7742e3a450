"""Outcomes → files: the paper's variants of the data, what was refused and why, and the yields."""

import collections
import contextlib
import dataclasses
import json
import pathlib
from collections.abc import Iterable, Iterator
from typing import Any, TextIO

from mirg_jax.data.examples import Example, Rejected, to_line
from mirg_jax.data.pipeline import response_of
from mirg_jax.grounding.grammar import parse_response
from mirg_jax.trajectories.checks import match
from mirg_jax.trajectories.ingest import kind
from mirg_jax.trajectories.pipeline import Outcome
from mirg_jax.trajectories.prompts import STAGES

VARIANTS = ("grounded", "reasoning", "bbox_caption", "answer_only")


def variants(outcome: Outcome) -> dict[str, Example]:
    """An accepted question as each variant of the paper's Table 3 has it.

    grounded: reasoning with ids and boxes (stage 3). reasoning: in words alone (stage 1).
    bbox_caption: the answer with its name, for plain SFT. answer_only: the targets alone, for RL.
    """
    question = outcome.question
    response = parse_response(outcome.grounded, len(question.images))
    names = {(obj.image, obj.number): obj.label for obj in response.mentions}
    targets = []
    places = match(response.objects, question.targets)
    for target, (place, _) in zip(question.targets, places, strict=True):
        obj = response.objects[place]
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
    """Counts what became of questions and answers."""

    def __init__(self):
        self._tasks: dict[str, collections.Counter] = {}
        self._reasons: dict[str, collections.Counter] = {}
        counts = ("answers", "refused", "prompt_tokens", "completion_tokens", "dollars")
        self._stages = {stage: dict.fromkeys(counts, 0) for stage in STAGES}
        self._refused = {stage: collections.Counter() for stage in STAGES}

    def add(self, outcome: Outcome) -> None:
        task = outcome.question.task
        counts = self._tasks.setdefault(task, collections.Counter())
        counts["questions"] += 1
        if outcome.unfinished:
            counts["unfinished"] += 1
        elif outcome.rejected:
            counts["rejected"] += 1
            reasons = self._reasons.setdefault(task, collections.Counter())
            reasons[kind(outcome.rejected)] += 1
        else:
            counts["accepted"] += 1
        for answer in outcome.answers:
            counts = self._stages[answer.stage]
            counts["answers"] += 1
            counts["refused"] += bool(answer.problems)
            counts["prompt_tokens"] += answer.reply.prompt_tokens
            counts["completion_tokens"] += answer.reply.completion_tokens
            counts["dollars"] += answer.dollars
            if answer.problems:
                self._refused[answer.stage][kind(answer.problems[0])] += 1

    def to_json(self) -> dict[str, Any]:
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
                stage: counts | {"reasons": dict(self._refused[stage].most_common())}
                for stage, counts in self._stages.items()
            },
        }


def write(outcomes: Iterable[Outcome], folder: pathlib.Path) -> Iterator[Outcome]:
    """Writes each outcome as it passes: VARIANT.jsonl, rejected.jsonl, refused.jsonl and, at the
    end, summary.json. A file appears when it is whole."""
    yields = Yields()
    with contextlib.ExitStack() as stack:
        files = {
            name: stack.enter_context(whole(folder / f"{name}.jsonl"))
            for name in (*VARIANTS, "rejected", "refused")
        }
        for outcome in outcomes:
            yields.add(outcome)
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
            yield outcome
        with whole(folder / "summary.json") as file:
            json.dump(yields.to_json(), file, indent=1)
            file.write("\n")


@contextlib.contextmanager
def whole(path: pathlib.Path) -> Iterator[TextIO]:
    """A file to write that takes its name once it is written."""
    part = path.with_name(path.name + ".part")
    with open(part, "w", encoding="utf-8") as file:
        yield file
    part.rename(path)


def table(summary: dict[str, Any]) -> str:
    """The yields as lines of text."""
    lines = [f"{'task':20} {'questions':>9} {'accepted':>9} {'rejected':>9} {'unfinished':>10}"]
    for task, row in (*summary["tasks"].items(), ("all", summary)):
        numbers = [row[name] for name in ("questions", "accepted", "rejected", "unfinished")]
        lines.append("{:20} {:9} {:9} {:9} {:10}".format(task, *numbers))
    return "\n".join(lines)
