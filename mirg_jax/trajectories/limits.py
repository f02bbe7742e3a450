"""For how much a teacher may be asked."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Mapping

from mirg_jax.trajectories.teachers import Request


class CapReached(Exception):
    """The next request might cost more than is left."""


class Purse:
    """Keeps what was spent, and what requests under way may cost at most, under a cap."""

    def __init__(self, cap: float, spent: Callable[[], float]):
        """
        Args:
          cap: dollars; 0 for none.
          spent: what was spent so far.
        """
        self._cap, self._spent = cap, spent
        self._reserved = 0.0
        self._under_way = 0
        self._changed = asyncio.Condition()

    @contextlib.asynccontextmanager
    async def reserve(self, dollars: float) -> AsyncIterator[None]:
        """Holds back what a request may cost while it is under way.

        Waits for others to end where they hold back what it needs.

        Raises:
          CapReached: it isn't there.
        """
        async with self._changed:
            while self._cap and self._spent() + self._reserved + dollars > self._cap:
                if not self._under_way:
                    raise CapReached
                await self._changed.wait()
            self._reserved += dollars
            self._under_way += 1
        try:
            yield
        finally:
            async with self._changed:
                self._reserved -= dollars
                self._under_way -= 1
                self._changed.notify_all()


class Costs:
    """What a stage's requests take, in tokens and dollars."""

    def __init__(self, how: Mapping):
        self._how = how

    def prompt_tokens(self, request: Request) -> float:
        """An upper estimate; English has about four letters a token."""
        images = len(request.question.images) * self._how["tokens_per_image"]
        return len(request.prompt) / 3 + images

    def expected_tokens(self, request: Request) -> float:
        """With the answer's."""
        return self.prompt_tokens(request) + self._how["expected_tokens"]

    def most(self, request: Request) -> float:
        """Dollars, if the answer is as long as it may be."""
        longest = self._how["max_tokens"] or 4 * self._how["expected_tokens"]
        return self.dollars(self.prompt_tokens(request), longest)

    def dollars(self, prompt: float, completion: float) -> float:
        how = self._how
        return (prompt * how["prompt_price"] + completion * how["completion_price"]) / 1e6
