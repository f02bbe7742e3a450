"""An estimate of what is still to be asked: requests, tokens, dollars and minutes."""

import collections
import dataclasses
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from mirg_jax.trajectories import prompts
from mirg_jax.trajectories.plan import Plan, QuestionOutcome
from mirg_jax.trajectories.prompts import STAGES
from mirg_jax.trajectories.settings import StageSettings


class StageEstimate(NamedTuple):
    """What a stage has still to ask.

    Attributes:
      requests: if no answer is refused.
      most: requests if every try is used.
      dollars, most_dollars: their prices.
      minutes: that the rate limits require at least.
    """

    requests: int
    most: int
    prompt_tokens: float
    completion_tokens: float
    dollars: float
    most_dollars: float
    minutes: float


class Estimate(NamedTuple):
    """What is still to be asked, by stage, and what was spent.

    Attributes:
      questions: number of all questions, finished ones included.
      tasks: number of questions of each task.
      spent: dollars.
    """

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
            tokens = round(stage.prompt_tokens), round(stage.completion_tokens)
            money = [f"{stage.dollars:.2f}", f"{stage.most_dollars:.2f}", f"{stage.minutes:.0f}"]
            lines.append(row.format(name, stage.requests, stage.most, *tokens, *money))
        lines.append(
            f"left: ${self.dollars:.2f} if no answer is refused, ${self.most_dollars:.2f} at most; "
            f"spent: ${self.spent:.2f}"
        )
        return "\n".join(lines)


@dataclasses.dataclass
class _StageCounts:
    """What a stage has still to ask, and what was measured of its answers so far.

    Attributes:
      most: requests if every try is used.
      characters: of the prompts still to be sent.
      images: still to be sent.
      answers, prompt_tokens, completion_tokens: of the answers so far.
    """

    requests: int = 0
    most: int = 0
    characters: int = 0
    images: int = 0
    answers: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0

    def estimate(self, settings: StageSettings) -> StageEstimate:
        costs, limits = settings.costs, settings.limits
        if self.prompt_tokens:
            prompt = self.requests * self.prompt_tokens / self.answers
            completion = self.requests * self.completion_tokens / self.answers
        else:
            prompt = self.characters / 4 + self.images * costs.tokens_per_image
            completion = self.requests * costs.expected_tokens
        minutes = 0.0
        if limits.requests_per_minute:
            minutes = self.requests / limits.requests_per_minute
        if limits.tokens_per_minute:
            minutes = max(minutes, (prompt + completion) / limits.tokens_per_minute)
        dollars = costs.dollars(prompt, completion)
        most = dollars * self.most / self.requests if self.requests else 0.0
        return StageEstimate(self.requests, self.most, prompt, completion, dollars, most, minutes)


def estimate(
    outcomes: Iterable[QuestionOutcome], plan: Plan, tasks: Mapping[str, int], *, spent: float
) -> Estimate:
    """Estimates what is still to be asked.

    Tokens are the means of the answers that were measured; without any, those that the settings
    expect. A prompt that will hold an answer still unknown is assumed to hold one of the expected
    length.

    Args:
      outcomes: by the journal.
      tasks: number of questions of each task.
      spent: dollars.
    """
    stages = {stage: _StageCounts() for stage in STAGES}
    questions = 0
    for outcome in outcomes:
        questions += 1
        refused: collections.Counter[str] = collections.Counter()
        done = set()
        for answer in outcome.answers:
            counts = stages[answer.stage]
            counts.answers += 1
            counts.prompt_tokens += answer.reply.prompt_tokens
            counts.completion_tokens += answer.reply.completion_tokens
            if answer.problems:
                refused[answer.stage] += 1
            else:
                done.add(answer.stage)
        if not outcome.unfinished:
            continue
        values = _assumed_values(outcome, plan)
        for stage in STAGES:
            if stage not in done:
                counts = stages[stage]
                counts.requests += 1
                counts.most += plan.stages[stage].tries - refused[stage]
                prompt = plan.texts.render(stage, outcome.question, **values[stage])
                counts.characters += len(prompt)
                counts.images += len(outcome.question.images)
    by_stage = {stage: counts.estimate(plan.stages[stage]) for stage, counts in stages.items()}
    return Estimate(questions, dict(tasks), spent, by_stage)


def _assumed_values(outcome: QuestionOutcome, plan: Plan) -> dict[str, dict[str, str]]:
    """Returns what goes into each stage's prompt, with placeholders of the expected length."""

    def placeholder(stage: str) -> str:
        return "x" * 4 * plan.stages[stage].costs.expected_tokens

    reasoning = {"reasoning": placeholder("reasoning")}
    return {
        "reasoning": {"answer": prompts.answer_text(outcome.question)},
        "mapping": reasoning,
        "reassembly": reasoning | {"objects": placeholder("mapping")},
    }
