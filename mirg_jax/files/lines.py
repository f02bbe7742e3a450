"""Files of JSON objects, a line each, that are appended to while a process runs.

A process that is killed, or that fills the disk, can leave the beginning of a line at the end of
such a file. Every reader passes over it, and whoever goes on writing to the file cuts it first.

In a store such a file is written in pieces (`pieces.py`), which are there whole or not at all.
"""

import contextlib
import io
import json
import os
import pathlib
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import IO, Any, NamedTuple

from etils import epath

from mirg_jax.errors import DataError
from mirg_jax.files import outputs, pieces, places
from mirg_jax.files.pieces import PieceWriter
from mirg_jax.files.places import Place


class Line(NamedTuple):
    """A line of a file.

    Attributes:
      number: from 1.
      start: offset of its first byte.
      text: its bytes, with the line break.
    """

    number: int
    start: int
    text: bytes


def read(path: str | Place) -> Iterator[Line]:
    """Yields the lines of a file, without one at its end that was not finished.

    Raises:
      DataError: if there is something else than a file that can be read.
      FileNotFoundError: if there is nothing.
    """
    start = 0
    with _opened(path) as file:
        for number, text in enumerate(file, start=1):
            if text.endswith(b"\n") or _is_whole(text):
                yield Line(number, start, text)
            start += len(text)


def _opened(path: str | Place) -> IO[bytes]:
    try:
        if places.is_url(path):
            return io.BytesIO(pieces.read(epath.Path(path)))
        return places.open_file(path)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise _unusable(path, error, "read") from None


def _unusable(path: str | Place, error: OSError, what: str) -> DataError:
    """Returns the error for a path where there is no file that this user can use."""
    remedy = places.remedy(path, "let this user read and write it")
    if isinstance(error, IsADirectoryError):
        remedy = "a file is needed there, move the folder away"
    return DataError(f"{path}: cannot be {what} ({error.strerror}); {remedy}")


def exists(path: Place) -> bool:
    """Returns whether there is such a file.

    Raises:
      DataError: if that can't be found out.
    """
    try:
        return path.exists() if isinstance(path, pathlib.Path) else pieces.exists(path)
    except OSError as error:
        raise _unusable(path, error, "read") from None


def replace(path: Place, found: Iterable[Mapping[str, Any]]) -> None:
    """Writes a file anew with these objects.

    Raises:
      OSError: if it can't be written.
    """
    text = "".join(json.dumps(row) + "\n" for row in found)
    if isinstance(path, pathlib.Path):
        outputs.replace_text(path, text)
    else:
        pieces.replace(path, text.encode())


def remove(path: Place) -> None:
    """Removes a file, if it is there.

    Raises:
      DataError: if it can't be removed.
    """
    try:
        if isinstance(path, pathlib.Path):
            path.unlink(missing_ok=True)
        elif pieces.exists(path):
            pieces.replace(path, b"")
            places.remove(path)
    except OSError as error:
        raise _unusable(path, error, "removed") from None


def rows(path: str | Place) -> Iterator[dict[str, Any]]:
    """Yields the objects of a file's lines, without one at its end that was not finished.

    Raises:
      DataError: if another line is not a JSON object, or as in `read`.
    """
    for line in read(path):
        if not line.text.strip():
            continue
        try:
            row = json.loads(line.text)
        except (ValueError, RecursionError):
            row = None
        if not isinstance(row, dict):
            if line.number == 1 and not _is_text(line.text):
                raise DataError(f"{path}: is a binary file, not JSON lines; give another file")
            raise DataError(f"{path} line {line.number}: not a JSON object; remove the line")
        yield row


def _is_text(line: bytes) -> bool:
    try:
        return "\0" not in line.decode()
    except UnicodeDecodeError:
        return False


def is_torn(path: str | Place) -> bool:
    """Returns whether the line at the end of a file was not finished."""
    with _opened(path) as file:
        rest = _last_part(file, file.seek(0, os.SEEK_END))
    return bool(rest.strip()) and not _is_whole(rest)


def mend(path: str | Place) -> None:
    """Cuts a line at the end of a file that was not finished; without the file, does nothing."""
    if places.is_url(path):
        return  # where lines are whole
    try:
        with open(path, "r+b") as file:
            before = file.seek(0, os.SEEK_END)
            rest = _last_part(file, before)
            if not rest:
                return
            if _is_whole(rest):
                file.write(b"\n")
            else:
                file.truncate(before - len(rest))
    except FileNotFoundError:
        return


def _last_part(file: Any, size: int) -> bytes:
    """Returns what follows the last line break of a file of `size` bytes."""
    rest, block = b"", 2**16
    while size and b"\n" not in rest:
        start = max(0, size - block)
        file.seek(start)
        rest = file.read(size - start) + rest
        size = start
    file.seek(0, os.SEEK_END)
    return rest[rest.rfind(b"\n") + 1 :]


def _is_whole(text: str | bytes) -> bool:
    """Returns whether text is a JSON object or list: the beginning of one is none."""
    try:
        return isinstance(json.loads(text), (dict, list))
    except (ValueError, RecursionError):
        return False


class LineWriter:
    """A file of JSON lines, open for appending.

    A line is written whole or not at all: where the disk is full, what was written of it is cut
    again, so that it can be written once there is room.
    """

    def __init__(self, path: str | Place, *, sync: bool = False, pause: float = 0.0):
        """Opens the file and cuts a line that an earlier process left unfinished.

        Args:
          path: the file, which need not exist.
          sync: whether a line is on the disk, not only with the system, when `write` returns.
          pause: seconds between two pieces in a store, where each takes a request; lines that come
            sooner wait for the next piece. With 0, a line is in the store when `write` returns.

        Raises:
          DataError: if the file can't be opened for writing.
        """
        self.path, self._sync, self._end = places.of(path), sync, 0
        self._pieces: PieceWriter | None = None
        self._pause, self._waiting, self._written = pause, b"", 0.0
        try:
            if not isinstance(self.path, pathlib.Path):
                self._pieces = PieceWriter(self.path)
                return
            mend(path)
            self._file = open(path, "a+b", buffering=0)
        except OSError as error:
            raise self._failed(error) from None
        self._end = os.fstat(self._file.fileno()).st_size

    def fileno(self) -> int:
        """Returns the file's descriptor, for reading."""
        return self._file.fileno()

    def write(self, row: Mapping[str, Any]) -> Line:
        """Appends an object, and returns its line; the number is 0.

        Raises:
          DataError: if it can't be written.
        """
        text, done = json.dumps(row).encode() + b"\n", 0
        if self._pieces:
            self._waiting += text
            if time.monotonic() - self._written >= self._pause:
                self._write_waiting(self._pieces)
            return Line(0, 0, text)
        try:
            while done < len(text):
                done += self._file.write(text[done:])
            if self._sync:
                os.fsync(self._file.fileno())
        except OSError as error:
            with contextlib.suppress(OSError):  # or else the next process cuts it
                self._file.truncate(self._end)
            raise self._failed(error) from None
        line = Line(0, self._end, text)
        self._end += len(text)
        return line

    def _write_waiting(self, to: PieceWriter) -> None:
        text, self._waiting = self._waiting, b""
        try:
            to.write(text)
        except OSError as error:
            raise self._failed(error) from None
        self._written = time.monotonic()

    def _failed(self, error: OSError) -> DataError:
        if isinstance(error, IsADirectoryError | PermissionError):
            return _unusable(self.path, error, "written")
        return DataError(
            f"{self.path}: cannot be written ({error.strerror}); {places.remedy(self.path)} and "
            "run again to go on"
        )

    def close(self) -> None:
        """Closes the file.

        Raises:
          DataError: if lines wait that can't be written.
        """
        if self._pieces:
            if self._waiting:
                self._write_waiting(self._pieces)
            with contextlib.suppress(OSError):  # every line is there already, in its piece
                self._pieces.close()
        else:
            self._file.close()
