"""What is asked about a question, and what becomes of it: three stages, each answer checked.

The outcome of a question follows from the answers in the journal alone. So an interrupted run
resumes by going through all questions again and asking only for answers that are not there, and
outputs are written by going through them once more, in order.
"""

import dataclasses
import json
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from mirg_jax.chat.asking import GivenUp, Stopped
from mirg_jax.chat.completions import Reply
from mirg_jax.data.examples import Example
from mirg_jax.grounding.grammar import GroundedObject
from mirg_jax.trajectories import checks, prompts
from mirg_jax.trajectories.journal import Journal, PricedReply, recorded_reply
from mirg_jax.trajectories.request import Request
from mirg_jax.trajectories.settings import StageSettings

AskTeacher = Callable[[Request], Awaitable[PricedReply]]


@dataclasses.dataclass(frozen=True)
class StageAnswer:
    """A stage's answer; `problems` says why it was refused, and is empty if it was accepted."""

    stage: str
    attempt: int
    reply: Reply
    dollars: float
    problems: tuple[str, ...]


@dataclasses.dataclass
class QuestionOutcome:
    """What became of a question.

    Attributes:
      answers: of all stages, in order, refused ones included.
      reasoning, grounded: the accepted answers of stages 1 and 3; "" where there is none.
      objects: of stage 2.
      rejected: the stage that gave no trajectory, and the reason; "" if the question is not
        rejected.
      unfinished: more requests are to be sent.
    """

    question: Example
    answers: list[StageAnswer] = dataclasses.field(default_factory=list)
    reasoning: str = ""
    objects: tuple[GroundedObject, ...] = ()
    grounded: str = ""
    rejected: str = ""
    unfinished: bool = False


class _Checked(NamedTuple):
    """What a check made of an answer."""

    text: str
    objects: tuple[GroundedObject, ...]
    problems: list[str]


_Check = Callable[[QuestionOutcome, str], _Checked]


@dataclasses.dataclass(frozen=True)
class Plan:
    """The stages: their prompts, teachers and checks.

    With the answers in the journal, it determines the outcome of every question.

    Attributes:
      texts: the prompts.
      rules: the rules of the checks.
      stages: the settings of the stages, by name.
      pictures: returns a hash of some images, by their paths; None if one can't be read.
    """

    texts: prompts.Prompts
    rules: checks.Rules
    stages: Mapping[str, StageSettings]
    pictures: Callable[[Sequence[str]], str | None]

    def asked(self) -> dict[str, dict[str, Any]]:
        """Returns what each stage's answers depend on besides the question, for records."""
        return {
            stage: {
                "teacher": json.loads(settings.teacher.identity),
                "prompts_sha256": self.texts.hash_of(stage),
            }
            for stage, settings in self.stages.items()
        }

    async def run_stages(self, outcome: QuestionOutcome, ask: AskTeacher) -> None:
        """Takes a question through the stages.

        What `ask` raises is passed on, except `GivenUp`, which rejects the question.

        Args:
          outcome: of the question; it is filled in.
          ask: returns the answer to a request.
        """
        try:
            values = {"answer": prompts.answer_text(outcome.question)}
            checked = await self._stage(outcome, ask, "reasoning", values, self._check_reasoning)
            outcome.reasoning = checked.text
            thoughts = checked.text.removeprefix("<think>").split("</think>")[0].strip()
            values = {"reasoning": thoughts}
            checked = await self._stage(outcome, ask, "mapping", values, self._check_mapping)
            outcome.objects = checked.objects
            values["objects"] = prompts.objects_text(outcome.objects)
            checked = await self._stage(outcome, ask, "reassembly", values, self._check_grounded)
            outcome.grounded = checked.text
        except GivenUp as error:
            outcome.rejected = str(error)

    async def _stage(
        self,
        outcome: QuestionOutcome,
        ask: AskTeacher,
        stage: str,
        values: Mapping[str, str],
        check: _Check,
    ) -> _Checked:
        """Asks until an answer passes the check.

        Raises:
          GivenUp: no answer did.
        """
        prompt = self.texts.render(stage, outcome.question, **values)
        identity = self.stages[stage].teacher.identity
        pictures = self.pictures(outcome.question.images)
        for attempt in range(1, self.stages[stage].tries + 1):
            request = Request(
                outcome.question, stage, attempt, prompt, outcome.objects, identity, pictures
            )
            try:
                reply, dollars = await ask(request)
            except GivenUp as error:
                raise GivenUp(f"{stage}: {error}") from None
            checked = _Checked("", (), [reply.problem])
            if not reply.problem:
                checked = check(outcome, reply.text.strip())
            problems = tuple(checked.problems)
            outcome.answers.append(StageAnswer(stage, attempt, reply, dollars, problems))
            if not problems:
                return checked
        raise GivenUp(f"{stage}: {problems[0]}")

    def _check_reasoning(self, outcome: QuestionOutcome, text: str) -> _Checked:
        return _Checked(text, (), checks.check_reasoning(text, outcome.question, self.rules))

    def _check_mapping(self, outcome: QuestionOutcome, text: str) -> _Checked:
        objects, problems = checks.read_mapping(text, outcome.question, self.rules)
        return _Checked(text, objects, problems)

    def _check_grounded(self, outcome: QuestionOutcome, text: str) -> _Checked:
        grounded, problems = checks.check_grounded(
            text, outcome.question, outcome.objects, self.rules
        )
        return _Checked(grounded, (), problems)


def _ignore(request: Request) -> None:
    pass


def replay(
    questions: Iterable[Example],
    plan: Plan,
    journal: Journal,
    on_missing: Callable[[Request], None] = _ignore,
) -> Iterator[QuestionOutcome]:
    """Yields the outcome of each question by the journal, in order; sends no request.

    Args:
      on_missing: is called with each request that the journal has no answer to, and may add one.
    """

    async def ask(request: Request) -> PricedReply:
        if journal.find(request) is None:
            on_missing(request)
        if (found := recorded_reply(journal, request)) is None:
            raise Stopped
        return found

    for question in questions:
        outcome = QuestionOutcome(question)
        steps = plan.run_stages(outcome, ask)
        try:
            steps.send(None)  # the coroutine never waits, so this runs it to its end
        except StopIteration:
            pass
        except Stopped:
            outcome.unfinished = True
        yield outcome
