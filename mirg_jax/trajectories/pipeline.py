"""Questions → trajectories: three stages each, many questions at a time.

What becomes of a question follows from the answers in the journal alone. So a run goes on where
another ended by going through everything again, without asking for what is there; and outputs are
written by going through it once more, in order.
"""

import asyncio
import dataclasses
import functools
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from tqdm import tqdm

from mirg_jax.chat.asking import Asking, GivenUp, Line, Pace, Stopped
from mirg_jax.chat.client import Reply, Retry, Unanswerable
from mirg_jax.data.examples import Example
from mirg_jax.errors import ConfigError, UserError
from mirg_jax.grounding.grammar import GroundedObject
from mirg_jax.trajectories import checks, prompts
from mirg_jax.trajectories.journal import Journal
from mirg_jax.trajectories.limits import CapReached, Costs, Purse
from mirg_jax.trajectories.teachers import Request, Teacher


@dataclasses.dataclass(frozen=True)
class Answer:
    """An answer of a stage, and what is wrong with it."""

    stage: str
    attempt: int
    reply: Reply
    dollars: float
    problems: tuple[str, ...]


@dataclasses.dataclass
class Outcome:
    """What became of a question.

    Attributes:
      reasoning, grounded: the answers of stages 1 and 3; "" where there is none.
      objects: of stage 2.
      rejected: why there is no trajectory, with the stage; "" if there is one, or may still be.
      unfinished: not all has been asked.
    """

    question: Example
    answers: list[Answer] = dataclasses.field(default_factory=list)
    reasoning: str = ""
    objects: tuple[GroundedObject, ...] = ()
    grounded: str = ""
    rejected: str = ""
    unfinished: bool = False


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is asked of whom: everything that the outcomes follow from but the answers.

    Attributes:
      settings: of each stage's teacher.
      tries: answers of each stage before a question is given up.
    """

    texts: prompts.Prompts
    rules: checks.Rules
    settings: Mapping[str, str]
    tries: Mapping[str, int]

    def __post_init__(self):
        if min(self.tries.values()) < 1:
            raise ConfigError("tries: at least one answer of each stage must be allowed")

    async def build(self, question: Example, ask: Callable, outcome: Outcome) -> None:
        """Takes a question through the stages.

        Args:
          ask: `async (request) -> (Reply, dollars)`.
          outcome: is filled.

        It raises what `ask` raises, but `GivenUp`.
        """
        try:
            answer = prompts.answer_text(question)
            thoughts, _ = await self._stage(
                outcome, ask, "reasoning", {"answer": answer}, self._check_reasoning
            )
            outcome.reasoning = thoughts
            said = thoughts.removeprefix("<think>").split("</think>")[0].strip()
            _, outcome.objects = await self._stage(
                outcome, ask, "mapping", {"reasoning": said}, self._check_mapping
            )
            listed = {"reasoning": said, "objects": prompts.objects_text(outcome.objects)}
            outcome.grounded, _ = await self._stage(
                outcome, ask, "reassembly", listed, self._check_grounded
            )
        except GivenUp as failed:
            outcome.rejected = str(failed)

    async def _stage(
        self, outcome: Outcome, ask: Callable, stage: str, values: dict[str, str], check: Callable
    ) -> tuple[str, tuple[GroundedObject, ...]]:
        prompt = self.texts.render(stage, outcome.question, **values)
        for attempt in range(1, self.tries[stage] + 1):
            request = Request(
                outcome.question, stage, attempt, prompt, outcome.objects, self.settings[stage]
            )
            try:
                reply, dollars = await ask(request)
            except GivenUp as failed:
                raise GivenUp(f"{stage}: {failed}") from None
            text, objects, problems = "", (), [reply.problem]
            if not reply.problem:
                text, objects, problems = check(outcome, reply.text.strip())
            answer = Answer(stage, attempt, reply, dollars, tuple(problems))
            outcome.answers.append(answer)
            if not problems:
                return text, objects
        raise GivenUp(f"{stage}: {problems[0]}")

    def _check_reasoning(self, outcome: Outcome, text: str):
        return text, (), checks.check_reasoning(text, outcome.question, self.rules)

    def _check_mapping(self, outcome: Outcome, text: str):
        return text, *checks.read_mapping(text, outcome.question, self.rules)

    def _check_grounded(self, outcome: Outcome, text: str):
        found, problems = checks.check_grounded(text, outcome.question, outcome.objects, self.rules)
        return found, (), problems


def replay(
    questions: Iterable[Example],
    plan: Plan,
    journal: Journal,
    lacking: Callable[[Request], None] = lambda request: None,
) -> Iterator[Outcome]:
    """What the journal makes of each question, in order; nothing is asked.

    Args:
      lacking: is told of each request that the journal has no answer to, and may put one there.
    """

    async def ask(request: Request) -> tuple[Reply, float]:
        if request.key not in journal:
            lacking(request)
        if (found := _recorded(journal, request)) is None:
            raise Stopped
        return found

    for question in questions:
        outcome = Outcome(question)
        steps = plan.build(question, ask, outcome)
        try:
            steps.send(None)  # it never waits, so it runs to its end
        except StopIteration:
            pass
        except Stopped:
            outcome.unfinished = True
        yield outcome


def _recorded(journal: Journal, request: Request) -> tuple[Reply, float] | None:
    row = journal.get(request.key)
    if row is None:
        return None
    if "failed" in row:
        raise GivenUp(row["reason"])
    tokens = row["prompt_tokens"], row["completion_tokens"]
    return Reply(row["text"], row["problem"], *tokens), row["dollars"]


def record(journal: Journal, request: Request, reply: Reply, costs: Costs, seconds: float) -> float:
    """Writes an answer down; its price."""
    dollars = costs.dollars(reply.prompt_tokens, reply.completion_tokens)
    journal.reply(
        request.key,
        dollars,
        id=request.question.id,
        stage=request.stage,
        **{"try": request.attempt},
        **dataclasses.asdict(reply),
        seconds=round(seconds, 3),
    )
    return dollars


class Run:
    """Asks for what the journal lacks."""

    def __init__(
        self,
        plan: Plan,
        teachers: Mapping[str, Teacher],
        journal: Journal,
        *,
        stages: Mapping[str, Mapping],
        concurrency: int,
        retries: int,
        backoff: float,
        max_dollars: float,
    ):
        """
        Args:
          teachers: by stage.
          stages: as in the config, like all that follow.
        """
        self._plan, self._teachers, self._journal = plan, teachers, journal
        self._asking = Asking(concurrency=concurrency, retries=retries, backoff=backoff)
        self._costs = {stage: Costs(how) for stage, how in stages.items()}
        self._purse = Purse(max_dollars, lambda: journal.dollars)
        paces: dict[tuple, Pace] = {}
        self._lines = {}
        for stage, how in stages.items():
            where = getattr(teachers[stage], "where", (stage,))
            limits = how["requests_per_minute"], how["tokens_per_minute"]
            self._lines[stage] = Line(stage, paces.setdefault((where, limits), Pace(*limits)))

    @property
    def stopped(self) -> str:
        """Why nothing more is asked."""
        return self._asking.stopped

    @property
    def error(self) -> UserError | None:
        """The user's to mend, if that is why."""
        return self._asking.error

    async def run(self, questions: Sequence[Example], *, progress: bool = True) -> None:
        """Takes all questions as far as they go; `stopped` says if that was not to the end."""
        waiting = iter(questions)
        counts = {"accepted": 0, "rejected": 0}
        with tqdm(total=len(questions), unit="question", disable=not progress) as bar:

            async def work() -> None:
                for question in waiting:
                    if self.stopped:
                        return
                    outcome = Outcome(question)
                    try:
                        await self._plan.build(question, self._ask, outcome)
                    except Stopped:
                        return
                    counts["rejected" if outcome.rejected else "accepted"] += 1
                    answered = sum(line.answered for line in self._lines.values())
                    rate = 60 * answered / max(time.monotonic() - began, 1e-9)
                    shown = f"${self._journal.dollars:.2f}, {rate:.0f} answers/min"
                    bar.set_postfix_str(
                        f"{counts['accepted']} accepted, {counts['rejected']} rejected, {shown}",
                        refresh=False,
                    )
                    bar.update()

            began = time.monotonic()
            with self._asking.on_signals():
                async with asyncio.TaskGroup() as group:
                    # While some are asked about, others are made ready.
                    for _ in range(min(self._asking.workers, len(questions))):
                        group.create_task(work())
        for line in self._lines.values():
            self._asking.settle(line)

    async def _ask(self, request: Request) -> tuple[Reply, float]:
        """The answer in the journal, or a new one."""
        if found := _recorded(self._journal, request):
            return found

        def give_up(reason: str) -> None:
            self._journal.failed(request.key, reason)

        try:
            await self._asking.wait(self._teachers[request.stage].make_ready(request))
        except Unanswerable as error:
            give_up(str(error))
            raise GivenUp(str(error)) from None
        line = self._lines[request.stage]
        return await self._asking.ask(line, functools.partial(self._once, request, line), give_up)

    async def _once(self, request: Request, line: Line) -> tuple[Reply, float]:
        costs = self._costs[request.stage]
        most, expected = costs.most(request), costs.expected_tokens(request)
        try:
            async with self._purse.reserve(most):
                await self._asking.wait(line.pace.wait(expected))
                reply, dollars = await self._send(request, most)
        except CapReached:
            self._asking.stop("the next request might cost more than max_dollars leaves")
            raise Stopped from None
        if used := reply.prompt_tokens + reply.completion_tokens:
            line.pace.correct(used - expected)
        return reply, dollars

    async def _send(self, request: Request, most: float) -> tuple[Reply, float]:
        journal = self._journal
        journal.asked(request.key, most)
        began = time.monotonic()
        try:
            reply = await self._teachers[request.stage].ask(request)
        except Retry as retry:
            journal.lost(request.key, str(retry), most if retry.paid else 0.0)
            raise
        except (Unanswerable, UserError) as error:
            journal.lost(request.key, str(error), 0.0)
            raise
        seconds = time.monotonic() - began
        return reply, record(journal, request, reply, self._costs[request.stage], seconds)
