"""The pipeline: takes many questions through the stages at a time, and journals all answers."""

import asyncio
import functools
import time
from collections.abc import Mapping, Sequence

from tqdm import tqdm

from mirg_jax.chat.asking import Asking, GivenUp, Line, Pace, Stopped
from mirg_jax.chat.client import Retry, Unanswerable
from mirg_jax.data.examples import Example
from mirg_jax.errors import UserError
from mirg_jax.files.streams import progress_bar, say
from mirg_jax.trajectories.journal import Journal, PricedReply, record_reply, recorded_reply
from mirg_jax.trajectories.limits import Budget, CapReached
from mirg_jax.trajectories.plan import Plan, QuestionOutcome
from mirg_jax.trajectories.request import Request
from mirg_jax.trajectories.settings import RequestSettings
from mirg_jax.trajectories.teachers import Teacher


class Pipeline:
    """Sends the requests that the journal has no answer to."""

    def __init__(
        self,
        plan: Plan,
        teachers: Mapping[str, Teacher],
        journal: Journal,
        requests: RequestSettings,
    ):
        """
        Args:
          teachers: by stage.
        """
        self._plan, self._teachers, self._journal = plan, teachers, journal
        self._asking = Asking(
            concurrency=requests.concurrency, retries=requests.retries, backoff=requests.backoff
        )
        self._budget = Budget(requests.max_dollars, lambda: journal.dollars)
        # Stages that ask the same model on the same server share its limits.
        paces: dict[tuple, Pace] = {}
        self._lines: dict[str, Line] = {}
        self._origins = {stage: _Origin(teachers[stage], stage) for stage in plan.stages}
        for stage, settings in plan.stages.items():
            limits = settings.limits
            pace = Pace(limits.requests_per_minute, limits.tokens_per_minute)
            pace = paces.setdefault((teachers[stage].server or stage, limits), pace)
            self._lines[stage] = Line(stage, pace)

    @property
    def stopped(self) -> str:
        """Why the run stopped before all questions were done; "" if it didn't."""
        return self._asking.stopped

    @property
    def error(self) -> UserError | None:
        """The error that stopped the run, if it was one."""
        return self._asking.error

    async def run(self, questions: Sequence[Example], *, progress: bool = True) -> None:
        """Takes all questions through the stages; `stopped` says whether it had to end early.

        Args:
          progress: shows a progress bar.
        """
        waiting = iter(questions)
        with progress_bar(total=len(questions), unit="question", disable=not progress) as bar:
            counter = _Progress(bar, self._journal, self._lines)

            async def work() -> None:
                for question in waiting:
                    if self.stopped:
                        return
                    outcome = QuestionOutcome(question)
                    try:
                        await self._plan.run_stages(outcome, self._ask)
                    except Stopped:
                        return
                    counter.add(outcome)

            with self._asking.on_signals():
                async with asyncio.TaskGroup() as group:
                    for _ in range(min(self._asking.workers, len(questions))):
                        group.create_task(work())
        for line in self._lines.values():
            self._asking.settle(line)

    async def _ask(self, request: Request) -> PricedReply:
        """Returns the answer in the journal, or a new one."""
        if found := recorded_reply(self._journal, request):
            self._origins[request.stage].kept(found.reply.server)
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

    async def _once(self, request: Request, line: Line) -> PricedReply:
        """Sends a request once, within the budget and the rate limits."""
        costs = self._plan.stages[request.stage].costs
        most, expected = costs.most_dollars(request), costs.expected_total(request)
        try:
            async with self._budget.reserve(most):
                await self._asking.wait(line.pace.wait(expected))
                priced = await self._send(request, most)
        except CapReached:
            self._asking.stop("the next request might cost more than max_dollars leaves")
            raise Stopped from None
        if used := priced.reply.prompt_tokens + priced.reply.completion_tokens:
            line.pace.correct(used - expected)
        return priced

    async def _send(self, request: Request, most: float) -> PricedReply:
        """Sends a request once, and journals what comes of it.

        Args:
          most: dollars that it can cost.
        """
        journal = self._journal
        self._origins[request.stage].asked()
        journal.asked(request.key, most)
        began = time.monotonic()
        try:
            reply = await self._teachers[request.stage].ask(request)
        except Retry as error:
            journal.lost(request.key, str(error), most if error.paid else 0.0)
            raise
        except (Unanswerable, UserError) as error:
            journal.lost(request.key, str(error), 0.0)
            raise
        costs = self._plan.stages[request.stage].costs
        return record_reply(journal, request, reply, costs, time.monotonic() - began)


class _Origin:
    """Says once if a stage's answers so far are of another server than further ones.

    The same model may be served elsewhere, so that is not refused. Where answers of an earlier
    version came from is not known.
    """

    def __init__(self, teacher: Teacher, stage: str):
        self._stage, self._now = stage, teacher.server[0] if teacher.server else ""
        self._other, self._asks, self._told = "", False, False

    def kept(self, server: str) -> None:
        """Takes note of the server of an answer in the journal."""
        if server and server != self._now:
            self._other = server
            self._tell()

    def asked(self) -> None:
        """Takes note that a request is sent."""
        self._asks = True
        self._tell()

    def _tell(self) -> None:
        if self._now and self._other and self._asks and not self._told:
            self._told = True
            say(
                f"{self._stage}: answers so far are of {self._other}, further ones of {self._now}; "
                "if another model is served there, give another --output_dir"
            )


class _Progress:
    """A progress bar with counts of questions, the dollars spent and the rate of answers."""

    def __init__(self, bar: tqdm, journal: Journal, lines: Mapping[str, Line]):
        self._bar, self._journal, self._lines = bar, journal, lines
        self._began = time.monotonic()
        self._accepted = self._rejected = 0

    def add(self, outcome: QuestionOutcome) -> None:
        """Counts a finished question."""
        if outcome.rejected:
            self._rejected += 1
        else:
            self._accepted += 1
        answered = sum(line.answered for line in self._lines.values())
        rate = 60 * answered / max(time.monotonic() - self._began, 1e-9)
        self._bar.set_postfix_str(
            f"{self._accepted} accepted, {self._rejected} rejected, "
            f"${self._journal.dollars:.2f}, {rate:.0f} answers/min",
            refresh=False,
        )
        self._bar.update()
