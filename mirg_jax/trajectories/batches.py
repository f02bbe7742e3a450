"""Requests as files for providers' batch interfaces, instead of one by one.

`FOLDER/STAGE-0001.jsonl` holds requests; what the provider gives back for it is put beside it as
`STAGE-0001.answers.jsonl`. A stage's requests are made of the stage's before it, so there are at
least three rounds, and another for every refused try.
"""

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from mirg_jax.chat.client import read_completion
from mirg_jax.data.examples import Example
from mirg_jax.errors import DataError
from mirg_jax.trajectories.journal import Journal
from mirg_jax.trajectories.limits import Costs
from mirg_jax.trajectories.pipeline import Plan, record, replay
from mirg_jax.trajectories.teachers import OpenAITeacher, Request

# Of a file, as the best known interface has them.
MOST_REQUESTS = 50_000
MOST_BYTES = 190_000_000


class Batches:
    """The files of a folder."""

    def __init__(
        self,
        folder: pathlib.Path,
        journal: Journal,
        teachers: Mapping[str, OpenAITeacher],
        costs: Mapping[str, Costs],
        *,
        retries: int,
        max_dollars: float,
    ):
        """
        Args:
          retries: how often a request that came back without an answer is written again.
          max_dollars: what may be spent, with what is under way; 0: no cap.

        Raises:
          DataError: a file is not as it should be.
        """
        self._folder, self._journal, self._teachers, self._costs = folder, journal, teachers, costs
        self._retries, self._max_dollars = retries, max_dollars
        folder.mkdir(parents=True, exist_ok=True)
        # What is known of a request by the last file that holds it: an answer, or None yet.
        self._known: dict[str, dict[str, Any] | None] = {}
        self._times: dict[str, int] = {}
        self._last: dict[str, int] = {}
        self._files: dict[
            str, tuple[pathlib.Path, int, int]
        ] = {}  # now open: file, requests, bytes
        for path in sorted(folder.glob("*-[0-9][0-9][0-9][0-9].jsonl")):
            stage, number = path.stem.rsplit("-", 1)
            self._last[stage] = max(self._last.get(stage, 0), int(number))
            for row in _read(path):
                self._known[row] = None
                self._times[row] = self._times.get(row, 0) + 1
            answers = path.with_suffix(".answers.jsonl")
            if answers.exists():
                found = _read(answers)
                for key in _read(path):
                    # What the provider left out has no answer either.
                    self._known[key] = found.get(key, {"error": {"message": "not in the answers"}})
        for path in folder.glob("*.part"):  # of a run that was killed
            path.unlink()
        self._written: list[tuple[pathlib.Path, str, float]] = []
        self._promised = 0.0
        self.waiting = 0  # requests in files without answers
        self.capped = 0  # requests that might cost more than is left

    def lacking(self, request: Request) -> None:
        """Takes the answer from a file, or writes the request into one, unless it waits there."""
        key = request.key
        if key in self._known:
            if (row := self._known[key]) is None:
                self.waiting += 1
                return
            try:
                if (row.get("response") or {}).get("status_code") != 200:
                    raise ValueError(json.dumps(row.get("error") or row.get("response"))[:300])
                reply = read_completion(row["response"]["body"])
            except (AttributeError, TypeError, KeyError, ValueError) as error:
                reason = f"batch: {' '.join(str(error).split()) or 'no answer'}"
                self._journal.lost(key, reason, 0.0)
                if self._times[key] > self._retries:
                    self._journal.failed(key, reason)
                    return
            else:
                record(self._journal, request, reply, self._costs[request.stage], 0.0)
                return
        self._write(request)

    def _write(self, request: Request) -> None:
        key, most = request.key, self._costs[request.stage].most(request)
        spent = self._journal.dollars + self._promised
        if self._max_dollars and spent + most > self._max_dollars:
            self.capped += 1
            return
        try:
            body = self._teachers[request.stage].body(request)
        except DataError as error:
            self._journal.failed(key, str(error))
            return
        row = {
            "custom_id": key,
            "method": "POST",
            "url": "/v1/chat/completions",
            "body": body,
        }
        line = json.dumps(row) + "\n"
        path, requests, size = self._files.get(request.stage, (None, MOST_REQUESTS, 0))
        if requests == MOST_REQUESTS or size + len(line) > MOST_BYTES:
            self._last[request.stage] = self._last.get(request.stage, 0) + 1
            path = self._folder / f"{request.stage}-{self._last[request.stage]:04d}.jsonl"
            requests = size = 0
        with open(path.with_suffix(".part"), "a", encoding="utf-8") as file:
            file.write(line)
        self._files[request.stage] = path, requests + 1, size + len(line)
        self._written.append((path, key, most))
        self._promised += most
        self._known[key] = None

    def close(self) -> list[pathlib.Path]:
        """Gives the new files their names; which they are. Before this, nothing is asked."""
        for path in sorted({path for path, _, _ in self._written}):
            path.with_suffix(".part").rename(path)
        for _, key, most in self._written:
            self._journal.asked(key, most)
        return sorted({path for path, _, _ in self._written})


def run(
    questions: Sequence[Example], plan: Plan, journal: Journal, batches: Batches
) -> list[pathlib.Path]:
    """Takes in all answers that are there, and writes what can be asked now; the new files."""
    for _ in replay(questions, plan, journal, batches.lacking):
        pass
    return batches.close()


def _read(path: pathlib.Path) -> dict[str, dict[str, Any]]:
    """A file's lines by their custom_id; of requests, without their bodies."""
    found = {}
    with open(path, encoding="utf-8") as file:
        for n, line in enumerate(file, start=1):
            try:
                row = json.loads(line)
                key = row.pop("custom_id")
                row.pop("body", None)
                found[str(key)] = row
            except (ValueError, KeyError, AttributeError, TypeError):
                raise DataError(
                    f"{path} line {n}: not a line of a batch file; get the file again"
                ) from None
    return found
