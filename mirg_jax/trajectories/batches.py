"""Requests as files for providers' batch interfaces, instead of single requests to a server.

`FOLDER/STAGE-0001.jsonl` holds requests. The provider's answers are put beside it, as
`STAGE-0001.answers.jsonl`. A stage's requests are made from the answers of the stage before it, so
there are at least three rounds, and one more for each further try.

A shard writes files of its own, `FOLDER/STAGE-i-of-n-0001.jsonl`. It reads all that may hold its
requests: also those of a run without shards, and of earlier versions, which named all files so.
"""

import collections
import dataclasses
import json
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from mirg_jax.chat.completions import read_completion
from mirg_jax.chat.served import Served
from mirg_jax.data.examples import Example
from mirg_jax.errors import DataError
from mirg_jax.files.streams import say
from mirg_jax.trajectories.journal import Journal, record_reply
from mirg_jax.trajectories.plan import Plan, replay
from mirg_jax.trajectories.prompts import STAGES
from mirg_jax.trajectories.request import Request
from mirg_jax.trajectories.settings import RequestSettings, StageSettings
from mirg_jax.trajectories.shards import Shard, is_disjoint
from mirg_jax.trajectories.teachers import EncodedImages, request_body

# Limits of a file, as in OpenAI's batch interface.
MAX_REQUESTS = 50_000
MAX_BYTES = 190_000_000

_NAME = re.compile(r"(?P<series>[a-z]+(?:-(?P<index>\d+)-of-(?P<count>\d+))?)-(?P<number>\d{4})")


@dataclasses.dataclass
class _NewFile:
    """A stage's file that requests are being written to."""

    path: pathlib.Path
    requests: int = 0
    size: int = 0

    def has_room(self, line: str) -> bool:
        return self.requests < MAX_REQUESTS and self.size + len(line) <= MAX_BYTES

    def write(self, line: str) -> None:
        with open(self.path.with_suffix(".part"), "a", encoding="utf-8") as file:
            file.write(line)
        self.requests += 1
        self.size += len(line)


class _NewRequest(NamedTuple):
    """A request that the journal doesn't know to be under way, and the most that it can cost."""

    key: str
    dollars: float


class BatchFiles:
    """The files of requests and answers in a folder.

    Attributes:
      unanswered: the files of earlier rounds that have no answers yet.
      waiting: number of requests in such files.
      capped: number of requests that were not written because they might exceed `max_dollars`.
    """

    def __init__(
        self,
        folder: pathlib.Path,
        journal: Journal,
        stages: Mapping[str, StageSettings],
        images: EncodedImages,
        requests: RequestSettings,
        shard: Shard | None = None,
    ):
        """
        Args:
          stages: all with a teacher of the kind "openai".
          requests: `retries` is how often a request that came back without an answer is written
            again; `max_dollars` limits what was spent plus what is under way.
          shard: whose requests these are; its journal is locked by this process.

        Raises:
          DataError: a file is not as it should be.
          OSError: the folder or a file can't be read or written.
        """
        self._suffix = f"-{shard.name}" if shard else ""
        self._folder, self._journal, self._stages, self._images = folder, journal, stages, images
        self._served = {
            stage: Served(f"{stage}, by the files in {folder}", settings.teacher.model)
            for stage, settings in stages.items()
        }
        self._retries, self._max_dollars = requests.retries, requests.max_dollars
        # The answer to each request by the latest file that holds it; None where there is none yet.
        self._answers: dict[str, dict[str, Any] | None] = {}
        self._times_written: collections.Counter[str] = collections.Counter()
        # Of files, by the part of their names before the number.
        self._last_number: collections.Counter[str] = collections.Counter()
        self._new_files: dict[str, _NewFile] = {}  # the latest of each stage
        self._new_paths: set[pathlib.Path] = set()
        self._new_requests: list[_NewRequest] = []
        self._promised = 0.0  # dollars that the new requests can cost
        self.unanswered: list[pathlib.Path] = []
        self.waiting = 0
        self.capped = 0
        folder.mkdir(parents=True, exist_ok=True)
        for path in sorted(folder.glob("*.jsonl")):
            name = _NAME.fullmatch(path.stem)
            if name and not is_disjoint(shard, name["index"], name["count"]):
                self._read_file(path, name["series"], int(name["number"]))
        for stage in STAGES:  # of a process that was killed
            for path in folder.glob(f"{stage}{self._suffix}-[0-9][0-9][0-9][0-9].part"):
                path.unlink()

    def _read_file(self, path: pathlib.Path, series: str, number: int) -> None:
        self._last_number[series] = max(self._last_number[series], number)
        keys = _read_lines(path).keys()
        self._times_written.update(keys)
        # A request that was written again may have an answer all the same, put there late.
        keys = [key for key in keys if not _is_answered(self._answers.get(key))]
        answers = path.with_suffix(".answers.jsonl")
        if not answers.exists():
            self._answers.update(dict.fromkeys(keys))
            self.unanswered.append(path)
            return
        found = _read_lines(answers)
        missing = {"error": {"message": "not in the answers"}}
        self._answers.update({key: found.get(key, missing) for key in keys})
        lacking = sum(key not in found for key in keys)
        if keys and lacking == len(keys):
            raise DataError(
                f"{answers}: holds none of the {len(keys)} requests of {path.name}; put the "
                "provider's answers to that file there, or remove it to go on waiting"
            )
        if lacking:
            say(f"{answers}: lacks {lacking} of {len(keys)} requests, which are written again")

    def on_missing(self, request: Request) -> None:
        """Journals a request's answer if a file has it; else writes the request to a new file."""
        # Earlier versions wrote files with the other keys.
        keys = request.key, request.key_by_samples, request.key_by_name
        key = next((key for key in keys if key in self._answers), request.key)
        if key in self._answers:
            row = self._answers[key]
            if row is None:
                self.waiting += 1
                if not self._journal.is_under_way(key):  # killed before that was written
                    self._promise(key, self._stages[request.stage].costs.most_dollars(request))
                return
            if self._take_answer(request, key, row):
                return
        self._write(request)

    def _take_answer(self, request: Request, key: str, row: dict[str, Any]) -> bool:
        """Journals what came back for a request; returns False if it is to be written again.

        Args:
          key: the key that it was written under.
          row: what came back.
        """
        try:
            if not _is_answered(row):
                raise ValueError(json.dumps(row.get("error") or row.get("response"))[:300])
            reply = read_completion(row["response"]["body"])
        except (AttributeError, TypeError, KeyError, ValueError) as error:
            reason = f"batch: {' '.join(str(error).split()) or 'no answer'}"
            self._journal.lost(key, reason, 0.0)
            if self._times_written[key] <= self._retries:
                return False
            self._journal.failed(key, reason)
        else:
            self._served[request.stage].other(reply)
            costs = self._stages[request.stage].costs
            record_reply(self._journal, request, reply, costs, 0.0, key=key)
        return True

    def _write(self, request: Request) -> None:
        key, settings = request.key, self._stages[request.stage]
        most = settings.costs.most_dollars(request)
        spent = self._journal.dollars + self._promised
        if self._max_dollars and spent + most > self._max_dollars:
            self.capped += 1
            return
        try:
            body = request_body(settings.teacher, self._images, request)
        except DataError as error:
            self._journal.failed(key, str(error))
            return
        row = {"custom_id": key, "method": "POST", "url": "/v1/chat/completions", "body": body}
        line = json.dumps(row) + "\n"
        file = self._file_for(request.stage, line)
        file.write(line)
        self._new_paths.add(file.path)
        self._promise(key, most)
        self._answers[key] = None

    def _promise(self, key: str, most: float) -> None:
        """Counts what a request can cost until it is answered."""
        self._new_requests.append(_NewRequest(key, most))
        self._promised += most

    def _file_for(self, stage: str, line: str) -> _NewFile:
        """Returns the stage's file if the line fits into it, else the next."""
        file, series = self._new_files.get(stage), f"{stage}{self._suffix}"
        if file is None or not file.has_room(line):
            self._last_number[series] += 1
            file = _NewFile(self._folder / f"{series}-{self._last_number[series]:04d}.jsonl")
            self._new_files[stage] = file
        return file

    def close(self) -> list[pathlib.Path]:
        """Gives the new files their names, journals their requests, and returns the files.

        Raises:
          OSError: a file can't be renamed.
        """
        paths = sorted(self._new_paths)
        for path in paths:
            path.with_suffix(".part").rename(path)
        for request in self._new_requests:
            self._journal.asked(request.key, request.dollars)
        return paths


def exchange_files(
    questions: Sequence[Example], plan: Plan, journal: Journal, files: BatchFiles
) -> list[pathlib.Path]:
    """Takes in all answers that are there, writes all requests that can be made now, and returns
    the new files.

    Raises:
      OSError: a file can't be written.
    """
    for _ in replay(questions, plan, journal, files.on_missing):
        pass
    return files.close()


def _is_answered(row: dict[str, Any] | None) -> bool:
    """Returns whether a line of answers holds one, and no error."""
    response = row and row.get("response")
    return isinstance(response, dict) and str(response.get("status_code")) == "200"


def _read_lines(path: pathlib.Path) -> dict[str, dict[str, Any]]:
    """Reads a file's lines by their custom_id, without the requests' bodies."""
    found = {}
    with open(path, "rb") as file:
        for n, line in enumerate(file, start=1):
            try:
                row = json.loads(line)
                key = row.pop("custom_id")
                row.pop("body", None)
                found[str(key)] = row
            except (ValueError, KeyError, AttributeError, TypeError, RecursionError):
                raise DataError(
                    f"{path} line {n}: not a line of a batch file; get the file again"
                ) from None
    return found
