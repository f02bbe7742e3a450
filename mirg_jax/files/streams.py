"""Messages and progress on stderr and stdout, which must never end a run."""

import contextlib
import os
import sys
import time
import weakref
from collections.abc import Callable, Iterable
from typing import Any, TextIO, TypeVar

from tqdm import tqdm

T = TypeVar("T")

_bars: weakref.WeakSet[tqdm] = weakref.WeakSet()


class Steady:
    """A text stream whose failures are passed over, as when the reader of a pipe has left.

    Characters that the stream's encoding lacks are written as escapes.

    Args:
      stream: the stream that is written to; None, as Python has it for one that is closed from the
        start: nowhere.

    Attributes:
      failed: why something was lost that has a reader, such as a full disk; "" if nothing was.
    """

    def __init__(self, stream: TextIO | None):
        self._stream, self.failed = open(os.devnull, "w") if stream is None else stream, ""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def __eq__(self, other: object) -> bool:
        """Whether both write to one stream, by which tqdm knows the bars that a line would hit."""
        return _raw(self) is _raw(other)

    def __hash__(self) -> int:
        return hash(_raw(self))

    def write(self, text: str) -> int:
        """Writes text if it can be written."""
        with self._passed_over():
            try:
                self._stream.write(text)
            except UnicodeEncodeError as error:
                encoding = error.encoding
                self._stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
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


def _raw(stream: Any) -> Any:
    """Returns the stream that a `Steady`, or one around another, writes to."""
    return _raw(stream._stream) if isinstance(stream, Steady) else stream


def say(text: str, stream: TextIO | None = None) -> None:
    """Prints a line above the progress bars, on stderr by default, if it can be printed."""
    steady = Steady(stream or sys.stderr)
    with tqdm.external_write_mode(file=steady):
        print(text, file=steady, flush=True)


def progress_bar(iterable: Iterable | None = None, **options: Any) -> tqdm:
    """Creates a progress bar on stderr.

    Args:
      iterable: what is counted; None: the bar is moved by its `update`.
      options: those of `tqdm`.
    """
    bar = tqdm(iterable, file=Steady(sys.stderr), **options)
    _bars.add(bar)
    return bar


def restart_clock(bar: tqdm) -> None:
    """Moves a bar on by one whose time doesn't count in the time that remains.

    Args:
      bar: a bar that was not moved yet.
    """
    bar.n += 1
    bar.initial = bar.last_print_n = bar.n
    bar.start_t = bar.last_print_t = time.time()
    bar.refresh()


def end_progress_bars() -> None:
    """Ends the lines of all progress bars, before a program's last line."""
    for bar in list(_bars):
        bar.close()


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
