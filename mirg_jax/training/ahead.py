"""Work that is done beside a step, so that it is ready when the next step begins."""

import threading
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import Generic, TypeVar

Result = TypeVar("Result")
_PAUSE = 0.2  # seconds


class Ahead(Generic[Result]):
    """Calls a function in a thread, one call at a time, before its result is asked for.

    Args:
      make: the function; whatever it raises is raised where its result is taken.
    """

    def __init__(self, make: Callable[[], Result]):
        self._make = make
        self._pending: Future[Result] | None = None

    def begin(self) -> None:
        """Begins the next call, unless one is under way or waits to be taken."""
        if self._pending is None:
            self._pending = future = Future()
            # A process that ends doesn't wait for what nobody will take.
            threading.Thread(target=self._run, args=(future,), daemon=True).start()

    def take(self, unless: Callable[[], bool] = lambda: False) -> Result | None:
        """Returns the result of the next call; waits until it is there.

        Args:
          unless: whether to wait no longer; asked several times a second.

        Returns:
          The result; None if it wasn't waited for.
        """
        self.begin()
        pending = self._pending
        assert pending is not None
        while not pending.done():
            if unless():
                return None
            wait([pending], timeout=_PAUSE)
        self._pending = None
        return pending.result()

    def _run(self, future: "Future[Result]") -> None:
        try:
            future.set_result(self._make())
        except BaseException as error:  # for who takes it
            future.set_exception(error)
