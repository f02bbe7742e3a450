"""Sends many requests at a time, and repeats each until it is answered or given up."""

import asyncio
import contextlib
import random
import signal
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from typing import NamedTuple, TypeVar

from mirg_jax.chat.client import Retry, Unanswerable
from mirg_jax.errors import ConfigError, UserError
from mirg_jax.files.streams import say

_LONGEST_WAIT = 60.0
# With this many requests out of retries and no answer to any other between them, the server counts
# as down: at the start, and after answers. Of a server that never answers 5 % of the requests,
# three in a row are met once in 8000, ten not in any run.
_FIRST_OUTAGE = 3
_OUTAGE = 10

T = TypeVar("T")


class Pace:
    """Spaces requests evenly, so that they exceed no limit per minute; 0 means no limit."""

    def __init__(self, requests: float, tokens: float = 0.0):
        self._per_request = 60 / requests if requests else 0.0
        self._per_token = 60 / tokens if tokens else 0.0
        # Times of the event loop: when the next request may be sent, and when a pause ends.
        self._free = self._paused = 0.0

    async def wait(self, tokens: float = 0.0) -> None:
        """Waits until a request may be sent.

        Args:
          tokens: expected for its prompt and answer together.
        """
        loop = asyncio.get_running_loop()
        start = max(loop.time(), self._free)
        self._free = start + max(self._per_request, tokens * self._per_token)
        while (left := max(start, self._paused) - loop.time()) > 0:
            await asyncio.sleep(left)

    def correct(self, tokens: float) -> None:
        """Adds the tokens that a request took beyond those expected; below 0 if it took fewer."""
        self._free += tokens * self._per_token

    def pause(self, seconds: float) -> None:
        """Holds all requests back for some time, because the server asked for it."""
        self._paused = max(self._paused, asyncio.get_running_loop().time() + seconds)


class Stopped(Exception):
    """No more requests are sent."""


class GivenUp(Exception):
    """A request got no answer."""


class _Held(NamedTuple):
    """A request that is out of retries: its callback for giving up, and the reason."""

    give_up: Callable[[str], None]
    reason: str


class Line:
    """The requests of one kind to one server.

    A request that is out of retries is held until it is known whether the server answers others. If
    it does, the held requests are given up; if not, the server is down, and they remain to be sent
    by the next run.

    Attributes:
      name: used in error messages.
      pace: of the requests; several lines may share one.
      answered: number of requests answered.
    """

    def __init__(self, name: str, pace: Pace):
        self.name, self.pace, self.answered = name, pace, 0
        self._held: list[_Held] = []

    def was_answered(self) -> None:
        """Counts an answer, and gives up the held requests: the server answers, but not them."""
        self.answered += 1
        self.give_up_held()

    def hold(self, give_up: Callable[[str], None], reason: str) -> bool:
        """Holds a request; returns False if the server counts as down from now on."""
        self._held.append(_Held(give_up, reason))
        return len(self._held) < (_OUTAGE if self.answered else _FIRST_OUTAGE)

    def give_up_held(self) -> None:
        for held in self._held:
            held.give_up(held.reason)
        self._held.clear()

    @property
    def held(self) -> str:
        """Why the latest held request got no answer; "" if none is held."""
        return self._held[-1].reason if self._held else ""


class Asking:
    """Sends the requests of several lines, which share a limit on their number and stop together.

    Attributes:
      workers: number of tasks that should prepare and send requests.
      stopped: why no more requests are sent; "" while they are.
      error: the error that stopped them, if it was one.
    """

    def __init__(self, *, concurrency: int, retries: int, backoff: float):
        """
        Args:
          concurrency: requests at a time.
          retries: of a request that got no answer, before it is given up.
          backoff: seconds before the first retry; doubles each time, up to a minute.
        """
        if concurrency < 1:
            raise ConfigError("concurrency: at least one request must be under way")
        self._slots = asyncio.Semaphore(concurrency)
        self._retries, self._backoff = retries, backoff
        # More than requests at a time, so that some are prepared while others are sent.
        self.workers = concurrency + -(-concurrency // 2)
        self._waits: set[asyncio.Task] = set()
        self.stopped = ""
        self.error: UserError | None = None

    def stop(self, why: str, error: UserError | None = None) -> None:
        """Sends no more requests; those already sent may still be answered."""
        if not self.stopped:
            self.stopped, self.error = why, error
            for task in self._waits:
                task.cancel()

    async def wait(self, wait: Coroutine) -> None:
        """Awaits a coroutine, but no longer than requests are sent.

        Raises:
          Stopped: no more requests are sent.
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
        """Lets SIGINT or SIGTERM stop the requests; a second signal ends the process at once."""
        loop = asyncio.get_running_loop()
        signals = (signal.SIGINT, signal.SIGTERM)

        def handle(number: signal.Signals) -> None:
            loop.remove_signal_handler(number)
            say(f"{number.name}: waiting for the requests under way; a second one ends at once")
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
        """Returns the answer to a request, which is sent as often as needed.

        Args:
          once: sends the request once. It raises what `Client.complete` raises, and waits by `wait`
            only.
          give_up: is called with the reason if the request is given up. A held request is given up
            after this method has ended.

        Raises:
          GivenUp: the request is given up or held.
          Stopped: no more requests are sent.
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
            self._stop_as_down(line)
            raise Stopped
        raise GivenUp(reason)

    def settle(self, line: Line) -> None:
        """Decides at the end about held requests: they are given up, or the server is down."""
        if line.held and not self.stopped:
            if line.answered:
                line.give_up_held()
            else:
                self._stop_as_down(line)

    def _stop_as_down(self, line: Line) -> None:
        what = "no request got an answer"
        if line.answered:
            what = f"the last {_OUTAGE} requests got no answer, {line.answered} before them did"
        text = (
            f"{line.name}: {what} (the reason: {line.held}); correct that and run the same command "
            "again, which goes on from here"
        )
        self.stop(text, UserError(text))
