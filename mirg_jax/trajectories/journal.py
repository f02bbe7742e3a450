"""What was asked and answered, a line each, written once it is there.

The journal is all that a run keeps: which answers were refused, which questions are done and what
was spent follow from it. Files of several machines that lie in one folder are one journal.

A request is named by its key. Its lines:

    {"asked": KEY, "dollars": at most}      before it is sent
    {"lost": KEY, "reason": …, "dollars"}   no answer; it will be asked again
    {"failed": KEY, "reason": …}            no answer, for good
    {"reply": KEY, "text": …, …}            the answer, in full
"""

import collections
import fcntl
import json
import os
import pathlib
from typing import Any

from mirg_jax.errors import ConfigError, DataError


class Journal:
    """The journal of a folder; this process alone writes to the file that it names.

    Memory holds a place in a file for each answer, not the answers.
    """

    def __init__(self, folder: pathlib.Path, name: str, *, write: bool, retry_failed: bool = False):
        """
        Args:
          name: of the file to write, such as "replies.jsonl"; others begin with "replies" too.
          write: False only reads.
          retry_failed: forget which requests failed for good.

        Raises:
          ConfigError: another process writes to this file.
          DataError: a line is not one of a journal's.
        """
        self.dollars = 0.0
        self._places: dict[str, tuple[int, int, int]] = {}  # key: file, start, length
        self._files: list[int] = []
        self._out, self._end = -1, 0
        own = self._name = folder / name
        if write:
            folder.mkdir(parents=True, exist_ok=True)
            self._out = os.open(own, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
            try:
                fcntl.flock(self._out, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                os.close(self._out)
                raise ConfigError(f"{own}: another process writes to it; wait for it") from None
        # Asked and not answered, by the time of opening; what was asked since then.
        self._open: collections.Counter[str] = collections.Counter()
        self._costs: dict[str, float] = {}
        self._mine: collections.Counter[str] = collections.Counter()
        for path in sorted(folder.glob("replies*.jsonl")):
            end = self._read(path, retry_failed)
            if write and path == own:
                os.ftruncate(self._out, end)  # what a killed run had begun to write
                self._end = end
        # Asked, and killed before the answer: it may have been paid.
        self.dollars += sum(self._costs[key] * count for key, count in self._open.items())

    def _read(self, path: pathlib.Path, retry_failed: bool) -> int:
        """Takes a file's lines in; the end of its last whole line."""
        number, start = len(self._files), 0
        self._files.append(os.open(path, os.O_RDONLY))
        with open(path, "rb") as file:
            for n, line in enumerate(file, start=1):
                if not line.endswith(b"\n"):
                    break
                try:
                    row = json.loads(line)
                    (kind,) = {"asked", "lost", "failed", "reply"} & row.keys()
                    key = row[kind]
                    dollars = float(row.get("dollars", 0))
                    if not isinstance(key, str):
                        raise TypeError
                except (ValueError, TypeError, AttributeError):
                    raise DataError(
                        f"{path} line {n}: not a line of a journal; remove it"
                    ) from None
                if kind == "asked":
                    self._open[key] += 1
                    self._costs[key] = dollars
                elif kind in ("lost", "reply"):
                    self._open[key] -= self._open[key] > 0
                    self.dollars += dollars
                if kind == "reply" or (kind == "failed" and not retry_failed):
                    self._places[key] = number, start, len(line)
                start += len(line)
        return start

    def __contains__(self, key: str) -> bool:
        return key in self._places

    def get(self, key: str) -> dict[str, Any] | None:
        """The line of a request's answer, or of its failure for good."""
        if key not in self._places:
            return None
        number, start, length = self._places[key]
        return json.loads(os.pread(self._files[number], length, start))

    def asked(self, key: str, dollars: float) -> None:
        """Counts in `dollars` once it is answered, or from the next opening on."""
        self._mine[key] += 1
        self._write({"asked": key, "dollars": dollars})

    def lost(self, key: str, reason: str, dollars: float) -> None:
        self._settle(key, dollars)
        self._write({"lost": key, "reason": reason, "dollars": dollars})

    def failed(self, key: str, reason: str) -> None:
        self._write({"failed": key, "reason": reason}, key)

    def reply(self, key: str, dollars: float, **fields: Any) -> None:
        self._settle(key, dollars)
        self._write({"reply": key, "dollars": dollars, **fields}, key)

    def _settle(self, key: str, dollars: float) -> None:
        if key in self._mine:
            self._mine[key] -= 1
            if not self._mine[key]:
                del self._mine[key]
        elif self._open.get(key):
            self._open[key] -= 1
            self.dollars -= self._costs[key]
        self.dollars += dollars

    def _write(self, row: dict[str, Any], key: str | None = None) -> None:
        line = json.dumps(row).encode() + b"\n"
        start, done = self._end, 0
        try:
            while done < len(line):
                done += os.write(self._out, line[done:])
        except OSError as error:
            raise DataError(
                f"{self._name}: cannot be written ({error.strerror}); run again to go on"
            ) from None
        self._end += len(line)
        if key is not None:
            if self._out not in self._files:
                self._files.append(self._out)
            self._places[key] = self._files.index(self._out), start, len(line)

    def close(self) -> None:
        for number in {*self._files, self._out} - {-1}:
            os.close(number)
        self._files, self._out = [], -1
