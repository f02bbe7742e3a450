"""The journal: a file with a line for every request that was sent and every answer.

It is the only state of a run: which answers were refused, which questions are done and what was
spent are computed from it. Files of several machines that lie in one folder form one journal.

Lines name a request by its key:

    {"asked": KEY, "dollars": …}            before it is sent, with the most that it can cost
    {"lost": KEY, "reason": …, "dollars"}   it got no answer, and may be sent again
    {"failed": KEY, "reason": …}            it got no answer, and will not be sent again
    {"reply": KEY, "text": …, …}            its answer, in full

A key depends on the content of the images. Replies also have "by_name", the key that doesn't, which
finds an answer whose images have gone since. Where a server told it, they have its address and the
name of the model that answered.
"""

import collections
import dataclasses
import json
import os
import pathlib
from typing import Any, NamedTuple

from mirg_jax.chat.asking import GivenUp
from mirg_jax.chat.completions import Reply, is_empty
from mirg_jax.errors import DataError
from mirg_jax.files import lines
from mirg_jax.files.locks import Lock
from mirg_jax.files.streams import say
from mirg_jax.trajectories.limits import Costs
from mirg_jax.trajectories.request import Request


class _Place(NamedTuple):
    """Where a line is: the descriptor of its file, its first byte, and its length in bytes."""

    file: int
    start: int
    length: int


class Journal:
    """The journal of a folder.

    Only this process writes to its own file. Memory holds where each answer is in the files, not
    the answers themselves.

    Attributes:
      folder: the folder.
      dollars: spent so far; requests that an earlier process sent without getting an answer count
        with the most that they can have cost.
    """

    def __init__(self, folder: pathlib.Path, name: str, *, write: bool, retry_failed: bool = False):
        """
        Args:
          name: of the file to write, such as "replies.jsonl"; all files named replies*.jsonl are
            read.
          write: False opens the journal for reading only.
          retry_failed: ignores "failed" lines and empty answers, so that those requests are sent
            again.

        Raises:
          ConfigError: another process writes to this file.
          DataError: a line does not belong to a journal, or a file can't be read or written.
        """
        self.dollars = 0.0
        self.folder, self._told = folder, False
        self._by_name: dict[str, str] = {}
        self._places: dict[str, _Place] = {}
        self._files: list[int] = []
        self._out: lines.LineWriter | None = None
        self._lock = Lock((folder / name).with_suffix(".lock"))
        if write:
            self._lock.acquire()
        # How often each request was sent without an answer, by earlier processes and by this one.
        self._unanswered: collections.Counter[str] = collections.Counter()
        self._own_unanswered: collections.Counter[str] = collections.Counter()
        self._costs: dict[str, float] = {}
        try:
            if write:
                self._out = lines.LineWriter(folder / name)
            for path in sorted(folder.glob("replies*.jsonl")):
                self._read(path, retry_failed)
        except BaseException:
            self.close()
            raise
        # These requests may have been paid although no answer arrived.
        self.dollars += sum(
            self._costs[key] * count for key, count in self._unanswered.items() if count
        )

    def _read(self, path: pathlib.Path, retry_failed: bool) -> None:
        """Reads a file's lines."""
        try:
            descriptor = os.open(path, os.O_RDONLY)
        except OSError as error:
            raise DataError(
                f"{path}: cannot be read ({error.strerror}); let this user read it"
            ) from None
        self._files.append(descriptor)
        for line in lines.read(path):
            try:
                row = json.loads(line.text)
                (kind,) = {"asked", "lost", "failed", "reply"} & row.keys()
                key = row[kind]
                dollars = float(row.get("dollars", 0))
                if not isinstance(key, str):
                    raise TypeError
            except (ValueError, TypeError, AttributeError):
                raise DataError(
                    f"{path} line {line.number}: not a line of a journal; remove it"
                ) from None
            if kind == "asked":
                self._unanswered[key] += 1
                self._costs[key] = dollars
            elif kind in ("lost", "reply"):
                self._unanswered[key] -= self._unanswered[key] > 0
                self.dollars += dollars
            # An empty answer is a failure too: it may be the server's setting, changed since.
            failed = kind == "failed" or (kind == "reply" and is_empty(str(row.get("text"))))
            if kind in ("reply", "failed") and not (failed and retry_failed):
                self._places[key] = _Place(descriptor, line.start, len(line.text))
                if name := row.get("by_name"):
                    self._by_name[name] = key

    def __contains__(self, key: str) -> bool:
        return key in self._places

    def get(self, key: str) -> dict[str, Any] | None:
        """Returns the "reply" or "failed" line of a key; None if there is neither."""
        if key not in self._places:
            return None
        place = self._places[key]
        return json.loads(os.pread(place.file, place.length, place.start))

    def find(self, request: Request) -> str | None:
        """Returns the key that a "reply" or "failed" line has for a request; None if there is none.

        An answer that an earlier version filed without its images counts, and a line says so. If
        the images can't be read any more, the latest answer about images of these names does.
        """
        if request.key in self:
            return request.key
        if request.pictures and request.key_by_samples in self:
            return request.key_by_samples
        if request.key_by_name in self:
            if not self._told:
                self._told = True
                say(
                    f"{self.folder}: has answers of an earlier version, which don't record the "
                    "images that they are about; if images have changed since, give another "
                    "--output_dir"
                )
            return request.key_by_name
        return self._by_name.get(request.key_by_name) if request.pictures is None else None

    def is_under_way(self, key: str) -> bool:
        """Returns whether a request was sent without an answer so far."""
        return bool(self._unanswered.get(key) or self._own_unanswered.get(key))

    def asked(self, key: str, dollars: float) -> None:
        """Writes that a request is being sent.

        Its cost counts once it is answered, or when the journal is opened again.
        """
        self._own_unanswered[key] += 1
        self._write({"asked": key, "dollars": dollars})

    def lost(self, key: str, reason: str, dollars: float) -> None:
        """Writes that a request got no answer and may be sent again."""
        self._count_cost(key, dollars)
        self._write({"lost": key, "reason": reason, "dollars": dollars})

    def failed(self, key: str, reason: str) -> None:
        """Writes that a request got no answer and will not be sent again."""
        self._write({"failed": key, "reason": reason}, key)

    def reply(self, key: str, dollars: float, **fields: Any) -> None:
        """Writes a request's answer."""
        self._count_cost(key, dollars)
        self._write({"reply": key, "dollars": dollars, **fields}, key)

    def _count_cost(self, key: str, dollars: float) -> None:
        """Adds a request's actual cost, in place of the assumed one if that was counted."""
        if key in self._own_unanswered:
            self._own_unanswered[key] -= 1
            if not self._own_unanswered[key]:
                del self._own_unanswered[key]
        elif self._unanswered.get(key):
            self._unanswered[key] -= 1
            self.dollars -= self._costs[key]
        self.dollars += dollars

    def _write(self, row: dict[str, Any], key: str | None = None) -> None:
        """Appends a line; with a key, it is the one that `get` returns from then on."""
        line = self._out.write(row)
        if key is not None:
            self._places[key] = _Place(self._out.fileno(), line.start, len(line.text))

    def close(self) -> None:
        for descriptor in self._files:
            os.close(descriptor)
        self._files = []
        if self._out is not None:
            self._out.close()
            self._out = None
        self._lock.release()


class PricedReply(NamedTuple):
    """A reply, and what it cost."""

    reply: Reply
    dollars: float


def record_reply(
    journal: Journal,
    request: Request,
    reply: Reply,
    costs: Costs,
    seconds: float,
    *,
    key: str | None = None,
) -> PricedReply:
    """Writes a reply to the journal.

    Args:
      seconds: that the answer took.
      key: the key that the request was sent under; None for its own.
    """
    dollars = costs.dollars(reply.prompt_tokens, reply.completion_tokens)
    by_name = {} if request.pictures == "" else {"by_name": request.key_by_name}
    fields = dataclasses.asdict(reply)
    for name in ("model", "server"):
        if not fields[name]:
            del fields[name]
    journal.reply(
        key or request.key,
        dollars,
        **by_name,
        id=request.question.id,
        stage=request.stage,
        **{"try": request.attempt},
        **fields,
        seconds=round(seconds, 3),
    )
    return PricedReply(reply, dollars)


def recorded_reply(journal: Journal, request: Request) -> PricedReply | None:
    """Returns the reply that the journal has for a request, if any.

    Raises:
      GivenUp: the journal says that the request will not be sent again.
      DataError: a field of the reply is missing.
    """
    key = journal.find(request)
    if key is None:
        return None
    row = journal.get(key)
    if "failed" in row:
        raise GivenUp(row["reason"])
    try:
        tokens = row["prompt_tokens"], row["completion_tokens"]
        origin = str(row.get("model", "")), str(row.get("server", ""))
        return PricedReply(Reply(row["text"], row["problem"], *tokens, *origin), row["dollars"])
    except KeyError as missing:
        raise DataError(
            f"{journal.folder}: the answer {key} in its replies has no {missing}; remove its line "
            "to have it asked again"
        ) from None
