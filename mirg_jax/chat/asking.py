"""Many requests at a time, each asked until it is answered or given up."""

import asyncio
import contextlib
import random
import signal
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from typing import TypeVar

from mirg_jax.chat.client import Retry, Unanswerable
from mirg_jax.errors import ConfigError, UserError

_LONGEST_WAIT = 60.0
# Requests given up one after the other, with no answer to any other between: the server is down.
_OUTAGE = 3

T = TypeVar("T")


class Pace:
    """Spaces requests evenly so that neither limit a minute is passed; 0 is no limit."""

    def __init__(self, requests: float, tokens: float = 0.0):
        self._per_request = 60 / requests if requests else 0.0
        self._per_token = 60 / tokens if tokens else 0.0
        self._free = self._paused = 0.0  # when the next may go; until when none may

    async def wait(self, tokens: float = 0.0) -> None:
        """Waits for the turn of a request of so many tokens, prompt and answer."""
        loop = asyncio.get_running_loop()
        start = max(loop.time(), self._free)
        self._free = start + max(self._per_request, tokens * self._per_token)
        while (left := max(start, self._paused) - loop.time()) > 0:
            await asyncio.sleep(left)

    def correct(self, tokens: float) -> None:
        """So many tokens more (or less, below 0) were used than was thought."""
        self._free += tokens * self._per_token

    def pause(self, seconds: float) -> None:
        """Lets nothing go for a while: the server said so."""
        self._paused = max(self._paused, asyncio.get_running_loop().time() + seconds)


class Stopped(Exception):
    """Nothing more is asked."""


class GivenUp(Exception):
    """A request that has no answer."""


class Line:
    """Requests of one kind to one server.

    Attributes:
      name: how errors call it.
      answered: how many were.
    """

    def __init__(self, name: str, pace: Pace):
        self.name, self.pace, self.answered = name, pace, 0
        # Given up since the last answer: who is to be told, and why.
        self._held: list[tuple[Callable[[str], None], str]] = []

    def was_answered(self) -> None:
        """The server answers others: what it didn't answer it won't."""
        self.answered += 1
        self.give_up_held()

    def hold(self, give_up: Callable[[str], None], reason: str) -> bool:
        """Gives a request up if others are answered; whether they still may be."""
        self._held.append((give_up, reason))
        return len(self._held) < _OUTAGE

    def give_up_held(self) -> None:
        for give_up, reason in self._held:
            give_up(reason)
        self._held.clear()

    @property
    def held(self) -> str:
        """Why the last one held was given up; "" for none."""
        return self._held[-1][1] if self._held else ""


class Asking:
    """Requests of several lines that share their number and stop together.

    Attributes:
      stopped: why nothing more is asked; "" while it is.
      error: the user's to mend, if that is why.
    """

    def __init__(self, *, concurrency: int, retries: int, backoff: float):
        """
        Args:
          concurrency: requests under way at a time.
          retries: of a request that had no answer, before it is given up.
          backoff: seconds before the first; doubled each time, up to a minute.
        """
        if concurrency < 1:
            raise ConfigError("concurrency: at least one request must be under way")
        self._slots = asyncio.Semaphore(concurrency)
        self._retries, self._backoff = retries, backoff
        # More at work than requests: while some are asked, others are made ready.
        self.workers = concurrency + -(-concurrency // 2)
        self._waits: set[asyncio.Task] = set()
        self.stopped = ""
        self.error: UserError | None = None

    def stop(self, why: str, error: UserError | None = None) -> None:
        """Asks nothing more; requests under way are waited for."""
        if not self.stopped:
            self.stopped, self.error = why, error
            for task in self._waits:
                task.cancel()

    async def wait(self, wait: Coroutine) -> None:
        """Waits, until nothing more is asked.

        Raises:
          Stopped: nothing is.
        """
        if self.stopped:
            wait.close()
            raise Stopped
        task = asyncio.create_task(wait)
        self._waits.add(task)
        try:
            await task
        except asyncio.CancelledError:
            if not self.stopped:
                raise
            raise Stopped from None
        finally:
            self._waits.discard(task)

    @contextlib.contextmanager
    def on_signals(self) -> Iterator[None]:
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

    async def ask(
        self, line: Line, once: Callable[[], Awaitable[T]], give_up: Callable[[str], None]
    ) -> T:
        """The answer to a request.

        Args:
          once: sends it, and raises as a `Client` does; its waits are `wait`'s.
          give_up: is told why there is none, once that is certain.

        Raises:
          GivenUp: it has none, or none yet.
          Stopped: nothing more is asked.
        """
        for attempt in range(self._retries + 1):
            if self.stopped:
                raise Stopped
            try:
                async with self._slots:
                    answer = await once()
                line.was_answered()
                return answer
            except Retry as retry:
                reason = str(retry)
                if attempt == self._retries:
                    break
                if retry.after is not None:
                    line.pace.pause(min(retry.after, 3600.0))
                else:
                    wait = min(self._backoff * 2**attempt, _LONGEST_WAIT)
                    await self.wait(asyncio.sleep(wait * random.uniform(0.5, 1.0)))
            except Unanswerable as error:
                reason = str(error)
                if error.by_server and not line.answered:
                    break
                give_up(reason)
                raise GivenUp(reason) from None
            except UserError as error:
                self.stop(str(error), error)
                raise Stopped from None
        if not line.hold(give_up, reason):
            self._down(line)
            raise Stopped
        raise GivenUp(reason)

    def settle(self, line: Line) -> None:
        """At the end: what is held is given up, or the server is down."""
        if line.held and not self.stopped:
            if line.answered:
                line.give_up_held()
            else:
                self._down(line)

    def _down(self, line: Line) -> None:
        text = (
            f"{line.name}: no request is answered ({line.held}); mend that and run again to go on"
        )
        self.stop(text, UserError(text))
