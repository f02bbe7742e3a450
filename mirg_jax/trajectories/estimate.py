"""What is left to ask, in requests, tokens, dollars and hours, before it is asked."""

import collections
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from mirg_jax.trajectories import prompts
from mirg_jax.trajectories.limits import Costs
from mirg_jax.trajectories.pipeline import Outcome, Plan
from mirg_jax.trajectories.prompts import STAGES


class StageEstimate(NamedTuple):
    """Of a stage's requests: `most` if every try is used."""

    requests: int
    most: int
    prompt_tokens: float
    completion_tokens: float
    dollars: float
    most_dollars: float
    minutes: float  # that the limits a minute ask for, at least


class Estimate(NamedTuple):
    """What is left by stage, and what was spent."""

    questions: int
    tasks: dict[str, int]
    spent: float
    stages: dict[str, StageEstimate]

    @property
    def dollars(self) -> float:
        return sum(stage.dollars for stage in self.stages.values())

    @property
    def most_dollars(self) -> float:
        return sum(stage.most_dollars for stage in self.stages.values())

    def __str__(self) -> str:
        header = ("stage", "requests", "at most", "prompt tok", "answer tok", "$", "at most $")
        row = "{:12} {:>9} {:>9} {:>11} {:>11} {:>9} {:>10} {:>8}"
        lines = [
            f"{self.questions} questions: "
            + ", ".join(f"{task} {count}" for task, count in self.tasks.items()),
            row.format(*header, "minutes"),
        ]
        for name, stage in self.stages.items():
            numbers = [stage.requests, stage.most, *map(round, stage[2:4])]
            money = [f"{stage.dollars:.2f}", f"{stage.most_dollars:.2f}", f"{stage.minutes:.0f}"]
            lines.append(row.format(name, *numbers, *money))
        lines.append(
            f"left: ${self.dollars:.2f} if no answer is refused, ${self.most_dollars:.2f} at most; "
            f"spent: ${self.spent:.2f}"
        )
        return "\n".join(lines)


def estimate(
    outcomes: Iterable[Outcome],
    plan: Plan,
    stages: Mapping[str, Mapping],
    spent: float,
    tasks: Mapping[str, int],
) -> Estimate:
    """What is left, by the journal's outcomes.

    Tokens are the means of the answers that are there; where there are none, as the config expects.
    Before an answer is known, the prompts made of it are thought to be as long as it is expected.
    """
    requests: collections.Counter[str] = collections.Counter()
    most: collections.Counter[str] = collections.Counter()
    letters: collections.Counter[str] = collections.Counter()
    images: collections.Counter[str] = collections.Counter()
    measured = {stage: collections.Counter() for stage in STAGES}
    total = 0
    for outcome in outcomes:
        total += 1
        for answer in outcome.answers:
            counts = measured[answer.stage]
            counts["answers"] += 1
            counts["prompt"] += answer.reply.prompt_tokens
            counts["completion"] += answer.reply.completion_tokens
        if not outcome.unfinished:
            continue
        begun = [answer for answer in outcome.answers if answer.problems]
        done = {answer.stage for answer in outcome.answers if not answer.problems}
        unknown = {"reasoning": "x" * 4 * stages["reasoning"]["expected_tokens"]}
        values = {
            "reasoning": {"answer": prompts.answer_text(outcome.question)},
            "mapping": unknown,
            "reassembly": unknown | {"objects": "x" * 4 * stages["mapping"]["expected_tokens"]},
        }
        for stage in STAGES:
            if stage in done:
                continue
            tried = sum(answer.stage == stage for answer in begun)
            requests[stage] += 1
            most[stage] += plan.tries[stage] - tried
            letters[stage] += len(plan.texts.render(stage, outcome.question, **values[stage]))
            images[stage] += len(outcome.question.images)
    return Estimate(
        total,
        dict(tasks),
        spent,
        {
            stage: _of_stage(
                stages[stage], requests[stage], most[stage], letters[stage], images[stage],
                measured[stage],
            )
            for stage in STAGES
        },
    )  # fmt: skip


def _of_stage(how, requests, most, letters, images, measured) -> StageEstimate:
    prompt = letters / 4 + images * how["tokens_per_image"]
    completion = requests * how["expected_tokens"]
    if measured["prompt"]:
        prompt = requests * measured["prompt"] / measured["answers"]
        completion = requests * measured["completion"] / measured["answers"]
    dollars = Costs(how).dollars(prompt, completion)
    minutes = max(
        requests / how["requests_per_minute"] if how["requests_per_minute"] else 0,
        (prompt + completion) / how["tokens_per_minute"] if how["tokens_per_minute"] else 0,
    )
    scale = most / requests if requests else 0
    return StageEstimate(requests, most, prompt, completion, dollars, dollars * scale, minutes)
