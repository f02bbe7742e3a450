"""Questions → trajectories: three stages each, many questions at a time.

What becomes of a question follows from the answers in the journal alone. So a run goes on where
another ended by going through everything again, without asking for what is there; and outputs are
written by going through it once more, in order.
"""

import asyncio
import collections
import contextlib
import dataclasses
import random
import signal
import time
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping, Sequence

from tqdm import tqdm

from mirg_jax.data.examples import Example
from mirg_jax.errors import ConfigError, UserError
from mirg_jax.grounding.grammar import GroundedObject
from mirg_jax.trajectories import checks, prompts
from mirg_jax.trajectories.journal import Journal
from mirg_jax.trajectories.limits import CapReached, Costs, Pace, Purse
from mirg_jax.trajectories.teachers import Reply, Request, Retry, Teacher, Unanswerable

_LONGEST_WAIT = 60.0
# Requests given up one after the other, with no answer to any other between: the server is down.
_OUTAGE = 3


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


class _Failed(Exception):
    """A request that has no answer for good."""


class _Stopped(Exception):
    """Nothing more is asked."""


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

        Raises:
          What `ask` raises, but `_Failed`.
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
        except _Failed as failed:
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
            except _Failed as failed:
                raise _Failed(f"{stage}: {failed}") from None
            text, objects, problems = "", (), [reply.problem]
            if not reply.problem:
                text, objects, problems = check(outcome, reply.text.strip())
            answer = Answer(stage, attempt, reply, dollars, tuple(problems))
            outcome.answers.append(answer)
            if not problems:
                return text, objects
        raise _Failed(f"{stage}: {problems[0]}")

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
            raise _Stopped
        return found

    for question in questions:
        outcome = Outcome(question)
        steps = plan.build(question, ask, outcome)
        try:
            steps.send(None)  # it never waits, so it runs to its end
        except StopIteration:
            pass
        except _Stopped:
            outcome.unfinished = True
        yield outcome


def _recorded(journal: Journal, request: Request) -> tuple[Reply, float] | None:
    row = journal.get(request.key)
    if row is None:
        return None
    if "failed" in row:
        raise _Failed(row["reason"])
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
          teachers, stages: by stage; the latter as in the config.
          concurrency, retries, backoff, max_dollars: as in the config.
        """
        if concurrency < 1:
            raise ConfigError("concurrency: at least one request must be under way")
        self._plan, self._teachers, self._journal = plan, teachers, journal
        self._retries, self._backoff = retries, backoff
        self._slots = asyncio.Semaphore(concurrency)
        # More questions than requests: while some are asked about, others are made ready.
        self._questions = concurrency + -(-concurrency // 2)
        self._costs = {stage: Costs(how) for stage, how in stages.items()}
        self._purse = Purse(max_dollars, lambda: journal.dollars)
        paces: dict[tuple, Pace] = {}
        self._paces = {}
        for stage, how in stages.items():
            where = getattr(teachers[stage], "where", (stage,))
            limits = how["requests_per_minute"], how["tokens_per_minute"]
            self._paces[stage] = paces.setdefault((where, limits), Pace(*limits))
        # By stage: requests given up since the last answer, and how many answers there were.
        self._held: dict[str, list[tuple[str, str]]] = {stage: [] for stage in stages}
        self._answered: collections.Counter[str] = collections.Counter()
        self._waits: set[asyncio.Task] = set()
        self.stopped: str = ""  # why nothing more is asked
        self.error: UserError | None = None

    def stop(self, why: str, error: UserError | None = None) -> None:
        """Asks nothing more; requests under way are waited for."""
        if not self.stopped:
            self.stopped, self.error = why, error
            for task in self._waits:
                task.cancel()

    async def _wait(self, wait: Coroutine) -> None:
        """Waits, until nothing more is asked."""
        if self.stopped:
            wait.close()
            raise _Stopped
        task = asyncio.create_task(wait)
        self._waits.add(task)
        try:
            await task
        except asyncio.CancelledError:
            if not self.stopped:
                raise
            raise _Stopped from None
        finally:
            self._waits.discard(task)

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
                    except _Stopped:
                        return
                    counts["rejected" if outcome.rejected else "accepted"] += 1
                    rate = 60 * self._answered.total() / max(time.monotonic() - began, 1e-9)
                    shown = f"${self._journal.dollars:.2f}, {rate:.0f} answers/min"
                    bar.set_postfix_str(
                        f"{counts['accepted']} accepted, {counts['rejected']} rejected, {shown}",
                        refresh=False,
                    )
                    bar.update()

            began = time.monotonic()
            with self._on_signals():
                async with asyncio.TaskGroup() as group:
                    for _ in range(min(self._questions, len(questions))):
                        group.create_task(work())
        for stage, held in self._held.items():
            if held and not self.stopped:
                if self._answered[stage]:
                    self._give_up_held(stage)
                else:
                    self._down(stage)

    @contextlib.contextmanager
    def _on_signals(self) -> Iterator[None]:
        """SIGINT and SIGTERM stop cleanly; a second one at once."""
        loop = asyncio.get_running_loop()
        signals = (signal.SIGINT, signal.SIGTERM)

        def handle(number: signal.Signals) -> None:
            loop.remove_signal_handler(number)
            self.stop(f"{number.name}: requests under way are waited for")

        for number in signals:
            with contextlib.suppress(RuntimeError, ValueError):  # not in the main thread
                loop.add_signal_handler(number, handle, number)
        try:
            yield
        finally:
            for number in signals:
                loop.remove_signal_handler(number)

    async def _ask(self, request: Request) -> tuple[Reply, float]:
        """The answer in the journal, or a new one."""
        if found := _recorded(self._journal, request):
            return found
        costs, pace = self._costs[request.stage], self._paces[request.stage]
        most = costs.most(request)
        expected = costs.expected_tokens(request)
        try:
            await self._wait(self._teachers[request.stage].make_ready(request))
        except Unanswerable as error:
            self._journal.failed(request.key, str(error))
            raise _Failed(str(error)) from None
        for attempt in range(self._retries + 1):
            if self.stopped:
                raise _Stopped
            try:
                async with self._slots, self._purse.reserve(most):
                    await self._wait(pace.wait(expected))
                    return await self._once(request, most, expected)
            except CapReached:
                self.stop("the next request might cost more than max_dollars leaves")
                raise _Stopped from None
            except Retry as retry:
                reason = str(retry)
                if attempt == self._retries:
                    break
                if retry.after is not None:
                    pace.pause(min(retry.after, 3600.0))
                else:
                    wait = min(self._backoff * 2**attempt, _LONGEST_WAIT)
                    await self._wait(asyncio.sleep(wait * random.uniform(0.5, 1.0)))
            except Unanswerable as error:
                reason = str(error)
                if error.by_server and not self._answered[request.stage]:
                    break
                self._journal.failed(request.key, reason)
                raise _Failed(reason) from None
            except UserError as error:
                self.stop(str(error), error)
                raise _Stopped from None
        # Given up, if others are answered.
        self._held[request.stage].append((request.key, reason))
        if len(self._held[request.stage]) >= _OUTAGE:
            self._down(request.stage)
            raise _Stopped
        raise _Failed(reason)

    async def _once(self, request: Request, most: float, expected: float) -> tuple[Reply, float]:
        journal, costs = self._journal, self._costs[request.stage]
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
        dollars = record(journal, request, reply, costs, time.monotonic() - began)
        used = reply.prompt_tokens + reply.completion_tokens
        if used:
            self._paces[request.stage].correct(used - expected)
        self._answered[request.stage] += 1
        self._give_up_held(request.stage)
        return reply, dollars

    def _give_up_held(self, stage: str) -> None:
        """Its teacher answers others: what it didn't answer it won't."""
        for key, reason in self._held[stage]:
            self._journal.failed(key, reason)
        self._held[stage].clear()

    def _down(self, stage: str) -> None:
        reason = self._held[stage][-1][1]
        text = f"{stage}: no request is answered ({reason}); mend that and run again to go on"
        self.stop(text, UserError(text))
