"""Messages and progress on stderr and stdout, which must never end a run."""

import contextlib
import os
import sys
from collections.abc import Callable
from typing import Any, TextIO, TypeVar

T = TypeVar("T")


class Steady:
    """A text stream whose failures are passed over, as when the reader of a pipe has left.

    Args:
      stream: the stream that is written to.

    Attributes:
      failed: why something was lost that has a reader, such as a full disk; "" if nothing was.
    """

    def __init__(self, stream: TextIO):
        self._stream, self.failed = stream, ""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Writes text if it can be written."""
        with self._passed_over():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Passes on what was written if it can be passed on."""
        with self._passed_over():
            self._stream.flush()

    def abandon(self) -> None:
        """Drops what is buffered: it would fail once more when Python ends."""
        with contextlib.suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)

    @contextlib.contextmanager
    def _passed_over(self):
        try:
            yield
        except BrokenPipeError:  # nobody reads it any more
            self.abandon()
        except OSError as error:
            self.failed = error.strerror or str(error)
        except ValueError:
            if not self._stream.closed:
                raise


def say(text: str, stream: TextIO | None = None) -> None:
    """Prints a line, on stderr by default, if it can be printed."""
    print(text, file=Steady(stream or sys.stderr), flush=True)


class Spare:
    """Writes that a run can do without: after the first failure it says so and goes on.

    Args:
      what: what is written, for the message.
    """

    def __init__(self, what: str):
        self.what, self.failed = what, False

    def __call__(self, function: Callable[..., T], *args: Any, **kwargs: Any) -> T | None:
        """Calls a function that writes, unless an earlier call has failed.

        Returns:
          Its result; None if it failed or was not called.
        """
        if self.failed:
            return None
        try:
            return function(*args, **kwargs)
        except OSError as error:
            self.failed = True
            reason = error.strerror or error
            say(f"{self.what}: cannot be written ({reason}); the run goes on without it")
            return None
