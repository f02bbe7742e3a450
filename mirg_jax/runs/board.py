"""A run's scalars for TensorBoard."""

import importlib
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

from mirg_jax.files import outputs, places
from mirg_jax.files.places import Place

if TYPE_CHECKING:
    from tensorboardX.proto.event_pb2 import Event

_FLUSH_SECONDS = 120


class Board:
    """Writes scalars to TensorBoard's event files.

    tensorboardX's SummaryWriter hands them to a thread; when a write fails, the thread ends, and
    whoever adds more waits for it for ever. Here a failed write is an `OSError`.

    Args:
      folder: where the files are written.
      first_step: the first step to come; what an earlier run wrote of it and later ones is hidden.
    """

    def __init__(self, folder: Place, *, first_step: int):
        # With the first board, and not with every start: where PyTorch is installed, tensorboardX
        # imports it.
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog

        self._folder = folder
        outputs.make_folder(folder)
        with places.reached(folder):
            if places.is_url(folder):  # or else a writer without the client fails twice
                importlib.import_module("google.cloud.storage")
            self._writer = EventsWriter(str(folder / "events"))
            start = SessionLog(status=SessionLog.START)
            self._write(Event(step=first_step, file_version="brain.Event:2"))
            self._write(Event(step=first_step, session_log=start))
            self._writer.flush()
        self._flushed = time.monotonic()

    def add(self, step: int, scalars: Mapping[str, float]) -> None:
        """Adds a step's scalars.

        Raises:
          OSError: if they can't be written.
        """
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.summary import scalar

        with places.reached(self._folder):
            for name, value in scalars.items():
                self._write(Event(step=step, summary=scalar(name, value)))
            if time.monotonic() - self._flushed > _FLUSH_SECONDS:
                self._writer.flush()
                self._flushed = time.monotonic()

    def _write(self, event: "Event") -> None:
        event.wall_time = time.time()
        self._writer.write_event(event)

    def close(self) -> None:
        """Writes what is left and closes the file.

        Raises:
          OSError: if it can't be written.
        """
        with places.reached(self._folder):
            self._writer.close()
