"""What requests cost, and how much may be spent."""

import asyncio
import contextlib
import dataclasses
from collections.abc import AsyncIterator, Callable

from mirg_jax.trajectories.request import Request


class CapReached(Exception):
    """The next request might cost more than is left of the budget."""


class Budget:
    """A limit on what was spent plus what requests in progress may cost at most."""

    def __init__(self, cap: float, spent: Callable[[], float]):
        """
        Args:
          cap: dollars; 0 for no limit.
          spent: returns the dollars spent so far.
        """
        self._cap, self._spent = cap, spent
        self._reserved = 0.0
        self._in_progress = 0
        self._changed = asyncio.Condition()

    @contextlib.asynccontextmanager
    async def reserve(self, dollars: float) -> AsyncIterator[None]:
        """Reserves what a request may cost while it is in progress.

        Waits for other requests to end if their reservations leave too little.

        Raises:
          CapReached: too little is left even with no other request in progress.
        """
        async with self._changed:
            while self._cap and self._spent() + self._reserved + dollars > self._cap:
                if not self._in_progress:
                    raise CapReached
                await self._changed.wait()
            self._reserved += dollars
            self._in_progress += 1
        try:
            yield
        finally:
            async with self._changed:
                self._reserved -= dollars
                self._in_progress -= 1
                self._changed.notify_all()


@dataclasses.dataclass(frozen=True)
class Costs:
    """How many tokens and dollars a stage's requests take.

    Attributes:
      prompt_price, completion_price: dollars per million tokens.
      expected_tokens: assumed length of an answer.
      tokens_per_image: assumed size of an image.
      max_tokens: limit on an answer's length; 0 for none.
    """

    prompt_price: float
    completion_price: float
    expected_tokens: int
    tokens_per_image: int
    max_tokens: int

    def prompt_tokens(self, request: Request) -> float:
        """An upper estimate of the prompt's tokens; English has about four letters a token."""
        images = len(request.question.images) * self.tokens_per_image
        return len(request.prompt) / 3 + images

    def expected_total(self, request: Request) -> float:
        """The expected tokens of prompt and answer together."""
        return self.prompt_tokens(request) + self.expected_tokens

    def most_dollars(self, request: Request) -> float:
        """The price of a request with the longest possible answer."""
        longest = self.max_tokens or 4 * self.expected_tokens
        return self.dollars(self.prompt_tokens(request), longest)

    def dollars(self, prompt: float, completion: float) -> float:
        """The price of so many prompt and completion tokens."""
        return (prompt * self.prompt_price + completion * self.completion_price) / 1e6
