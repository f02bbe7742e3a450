"""The folder of an evaluation: its predictions, and what they depend on."""

import collections
import dataclasses
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from mirg_jax.chat.completions import is_empty
from mirg_jax.data.examples import Rejected
from mirg_jax.data.image_hashes import ImageHashes
from mirg_jax.errors import ConfigError
from mirg_jax.files import lines, outputs, places
from mirg_jax.files.locks import lock_of
from mirg_jax.files.places import Place
from mirg_jax.files.streams import Spare, say
from mirg_jax.mig_bench.benchmark import Row
from mirg_jax.mig_bench.responses import changed_images, load_predictions
from mirg_jax.runs import facts as recorded_facts

_PAUSE = 1.0  # seconds between two writes to a store; a batch's answers come at once
# Where a model and a benchmark lie counts only where their content was not recorded.
_CONTENT_OF = {"model": "weights", "step": "weights", "benchmark": "benchmark_sha256"}
# What was so before it was recorded.
_BEFORE = {"apply_exif": False, "direct": False, "prompt.thinking": False}
_CHANGED = {
    "weights": "the model's weights have changed",
    "benchmark_sha256": "the benchmark's content has changed",
}
# Told before a model is asked, not when they are to be written.
_FILES = ("run.json", "predictions.jsonl", "rejected.jsonl", "errors.jsonl", "scores.json")
_FILES += ("report.html",)


class Predictions:
    """A folder's predictions.jsonl, locked by this process.

    Attributes:
      responses: the response to every row of the benchmark, None where there is none yet.
      unrecorded: names of the facts that the folder, made by an earlier version, doesn't record.
    """

    def __init__(self, folder: Place, facts: Mapping[str, Any], count: int):
        """Opens the file, and creates the folder if necessary.

        Args:
          folder: the folder of the evaluation.
          facts: what the predictions depend on, as recorded in run.json.
          count: number of rows of the benchmark.

        Raises:
          ConfigError: if the folder has predictions of something else, another process writes to
            it, or a file can't be written.
          DataError: if a line of the file is malformed.
        """
        self._folder, self._facts = folder, facts
        self._path = folder / "predictions.jsonl"
        outputs.check_kind(folder, "run.json", "--output_dir")
        self._lock = lock_of(folder / "predictions.lock")
        self._lock.acquire()
        self._spare = Spare(str(folder / "rejected.jsonl"))
        try:
            if isinstance(folder, pathlib.Path):  # in a store, files are replaced whole
                for name in _FILES:
                    outputs.check_file(folder / name, "--output_dir")
            lines.mend(self._path)
            has_some = lines.exists(self._path) and any(lines.read(self._path))
            self.unrecorded = _claim(folder, facts, has_some)
            self._file = lines.LineWriter(self._path, sync=True, pause=_PAUSE)
            self.responses: list[str | None] = [None] * count
            if has_some:
                self.responses = load_predictions(self._path, count)
        except BaseException:
            self._lock.release()
            raise

    def missing(self, rows: Sequence[Row]) -> list[Row]:
        """Returns the rows that are still to be answered.

        A folder of an earlier version can be scored if it is complete; rows that were rejected then
        are not missing. A line says what it doesn't record.

        Raises:
          ConfigError: if rows are missing in a folder that doesn't record what its predictions
            depend on.
        """
        found = [row for row in rows if self.responses[row.index] is None]
        if not self.unrecorded:
            return found
        rejected = _read_rejected(self._folder / "rejected.jsonl")
        if left := [row for row in found if str(row.index) not in rejected]:
            now = self._folder / "run.now.json"
            outputs.write_text(now, json.dumps(self._facts, indent=1) + "\n", "--output_dir")
            raise ConfigError(
                f"{self._folder}: an earlier version made it without recording "
                f"{', '.join(self.unrecorded)}, so {len(left)} rows that have no prediction may "
                f"not fit; give another --output_dir, or, if nothing of that has changed, rename "
                f"{now.name} to run.json and run again"
            )
        say(
            f"{self._folder}: an earlier version made it without recording "
            f"{', '.join(self.unrecorded)}; its answers are scored, unchecked in that"
        )
        return []

    def check_images(self, rows: Sequence[Row], images: ImageHashes) -> None:
        """Checks that the responses to some rows are about the images that these have now.

        An image that has gone since is not compared, nor is one of a line of an earlier version,
        which recorded none.

        Args:
          rows: the rows.
          images: hashes of their images.

        Raises:
          ConfigError: if an image has changed.
        """
        answered = [row for row in rows if self.responses[row.index] is not None]
        if not answered:
            return
        changed, unrecorded = changed_images(self._path, answered, images)
        if changed:
            raise ConfigError(
                f"{self._folder}: holds predictions of another run (the images of {len(changed)} "
                f"answered rows have changed, the first: row {changed[0].index}, "
                f"{', '.join(changed[0].images)}); give another --output_dir, or delete it"
            )
        if unrecorded:
            say(
                f"{self._folder}: {unrecorded} answers don't record the images that they are "
                "about, as an earlier version made them; if images have changed since, give "
                "another --output_dir"
            )

    def add(self, index: int, response: str, **more: Any) -> None:
        """Writes a row's response.

        Args:
          index: the row's number in the benchmark.
          response: the response.
          more: other fields of its line, such as the hash of its images; None leaves one out.

        Raises:
          DataError: if the file can't be written.
        """
        known = {name: value for name, value in more.items() if value is not None}
        self._file.write({"index": index, "response": response, **known})
        self.responses[index] = response

    def add_server(self, address: str) -> None:
        """Records in run.json that further rows are asked of a server.

        The same model may be served elsewhere, so another server than before is only told, in a
        line. Which ones an earlier version asked is not known, and isn't compared.

        Args:
          address: the server's address, without secrets.

        Raises:
          ConfigError: if the record can't be written.
        """
        before = self._record().get("servers", [])
        if not isinstance(before, list):  # edited by hand
            before = [str(before)]
        has_some = any(response is not None for response in self.responses)
        if address in before or (has_some and not before):
            return
        if before:
            say(
                f"{self._folder}: its answers so far are of {', '.join(before)}, further ones of "
                f"{address}; if another model is served there, give another --output_dir"
            )
        self._amend_record(servers=[*before, address])

    def count_other_models(self) -> None:
        """Counts in run.json the answers of other models than was asked for, by their names.

        Raises:
          ConfigError: if the record can't be written.
        """
        named = (row.get("model") for row in lines.rows(self._path))
        found = dict(collections.Counter(name for name in named if isinstance(name, str)))
        if found != self._record().get("other_models", {}):
            self._amend_record(other_models=found)

    def _record(self) -> dict[str, Any]:
        """Returns what run.json holds."""
        return json.loads(places.read_bytes(self._folder / "run.json"))

    def _amend_record(self, **fields: Any) -> None:
        text = json.dumps(self._record() | fields, indent=1) + "\n"
        outputs.write_text(self._folder / "run.json", text, "--output_dir")

    def drop_empty(self) -> None:
        """Removes empty responses, which earlier versions kept, so that they are sent again."""
        said = enumerate(self.responses)
        empty = {n for n, text in said if text is not None and is_empty(text)}
        if not empty:
            return
        kept = [json.dumps(row) for row in lines.rows(self._path) if row["index"] not in empty]
        self._file.close()
        outputs.replace_text(self._path, "".join(line + "\n" for line in kept))
        self._file = lines.LineWriter(self._path, sync=True)
        for index in empty:
            self.responses[index] = None

    def write_rejected(self, rows: Sequence[Rejected]) -> None:
        """Writes rejected.jsonl: the rows that got no response in this run, and no others.

        If it can't be written, a line says so.
        """
        if self.unrecorded and not rows:
            return  # a finished folder of an earlier version keeps its list
        text = "".join(json.dumps(dataclasses.asdict(row)) + "\n" for row in rows)
        self._spare(outputs.replace_text, self._folder / "rejected.jsonl", text)

    def __enter__(self) -> "Predictions":
        return self

    def __exit__(self, *_) -> None:
        try:
            self._file.close()
        finally:
            self._lock.release()


def rejected_rows(benchmark: str, reasons: Mapping[int, str]) -> list[Rejected]:
    """Returns the rows of a benchmark that got no response.

    Args:
      benchmark: path of its file.
      reasons: why each row got none, by its index.
    """
    return [
        Rejected(f"{benchmark} row {index}", str(index), reason)
        for index, reason in sorted(reasons.items())
    ]


def _claim(folder: Place, facts: Mapping[str, Any], has_some: bool) -> tuple[str, ...]:
    """Records in the folder what its predictions depend on, or compares it with the record.

    Args:
      folder: the folder of the evaluation.
      facts: what the predictions depend on.
      has_some: whether the folder has predictions.

    Returns:
      The names of facts that the folder's record lacks.

    Raises:
      ConfigError: if the folder has predictions of something else.
    """
    path = folder / "run.json"
    facts = json.loads(json.dumps(facts))  # with JSON's types
    if not has_some:
        outputs.write_text(path, json.dumps(facts, indent=1) + "\n", "--output_dir")
        return ()
    try:
        found = _BEFORE | json.loads(places.read_bytes(path))
        changes = _changes(found, facts)
    except (OSError, ValueError, AttributeError, TypeError):
        raise ConfigError(
            f"{path}: doesn't tell what the predictions beside it depend on; give another "
            "--output_dir, or delete it"
        ) from None
    if changes:
        raise ConfigError(
            f"{folder}: holds predictions of another run ({'; '.join(changes)}); give another "
            "--output_dir, or delete it"
        )
    return tuple(name for name in facts if name not in found)


def _changes(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """Describes how recorded facts differ from the wanted ones.

    Where a model or a benchmark lies is compared only if its content can't be.
    """
    names = []
    for name in wanted:
        content = _CONTENT_OF.get(name, name)
        is_known = bool(found.get(content) and wanted.get(content))
        if name in _CHANGED:
            names += [name] * is_known
        elif name not in _CONTENT_OF or not is_known:
            names.append(name)
    agrees = recorded_facts.agrees
    changed = [n for n in names if n in _CHANGED and not agrees(found[n], wanted[n])]
    others = {name: wanted[name] for name in names if name not in _CHANGED}
    return [_CHANGED[name] for name in changed] + recorded_facts.describe_changes(found, others)


def _read_rejected(path: Place) -> set[str]:
    """Reads the ids of a folder's rejected rows."""
    return {str(row.get("id")) for row in lines.rows(path)} if path.exists() else set()
