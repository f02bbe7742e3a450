"""The folder of an evaluation: its predictions, what they depend on, scores and report."""

import dataclasses
import json
import pathlib
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

from mirg_jax.chat.completions import is_empty
from mirg_jax.data.examples import Rejected
from mirg_jax.data.images import Root
from mirg_jax.errors import ConfigError, DataError
from mirg_jax.files import lines, outputs, places
from mirg_jax.files.locks import lock_of
from mirg_jax.files.places import Place
from mirg_jax.files.streams import Spare, say
from mirg_jax.mig_bench.benchmark import Row
from mirg_jax.mig_bench.responses import load_predictions
from mirg_jax.report import report
from mirg_jax.runs import facts as recorded_facts

_PAUSE = 1.0  # seconds between two writes to a store; a batch's answers come at once
# Where a model and a benchmark lie counts only where their content was not recorded.
_CONTENT_OF = {"model": "weights", "step": "weights", "benchmark": "benchmark_sha256"}
# What was so before it was recorded.
_BEFORE = {"apply_exif": False}
_CHANGED = {
    "weights": "the model's weights have changed",
    "benchmark_sha256": "the benchmark's content has changed",
}
# Told before a model is asked, not when they are to be written.
_FILES = ("run.json", "predictions.jsonl", "rejected.jsonl", "errors.jsonl", "scores.json")
_FILES += ("report.html",)


def write_results(
    folder: Place,
    system: str,
    benchmark: str,
    run: report.Responses,
    rows: Sequence[Row],
    image_root: Root,
    **more: Any,
) -> None:
    """Writes scores.json and report.html.

    Args:
      folder: the folder of the evaluation.
      system: name or path of the model.
      benchmark: path of the benchmark file.
      run: the model's responses and scores.
      rows: the rows that it answered.
      image_root: folder that the benchmark's image paths are relative to.
      more: additional fields of scores.json.

    Raises:
      DataError: if they can't be written.
    """
    told = more | run.scores.to_json()
    name = pathlib.Path(system).name
    title = f"{name} on {pathlib.Path(benchmark).name}"
    try:
        outputs.replace_text(folder / "scores.json", json.dumps(told, indent=1) + "\n")
        if isinstance(folder, pathlib.Path):
            report.write_report(folder / "report.html", title, rows, {name: run}, image_root)
            return
        with tempfile.TemporaryDirectory() as scratch:
            page = pathlib.Path(scratch) / "report.html"
            report.write_report(page, title, rows, {name: run}, image_root)
            places.write_bytes(folder / page.name, page.read_bytes())
    except OSError as error:
        raise DataError(
            f"{folder}: scores or report cannot be written ({error.strerror}); the predictions are "
            "there, fix that and run again"
        ) from None


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
        self._lock = lock_of(folder / "predictions.lock")
        self._lock.acquire()
        self._spare = Spare(str(folder / "rejected.jsonl"))
        try:
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

    def check_images(self, rows: Sequence[Row], images: recorded_facts.ImageHashes) -> None:
        """Checks that the responses to some rows are about the images that these have now.

        An image that has gone since is not compared, nor is one of a line of an earlier version,
        which recorded none.

        Args:
          rows: the rows.
          images: hashes of their images.

        Raises:
          ConfigError: if an image has changed.
        """
        if all(self.responses[row.index] is None for row in rows):
            return
        recorded = {line["index"]: line.get("images") for line in lines.rows(self._path)}
        changed, unrecorded = [], 0
        for row in rows:
            if self.responses[row.index] is None:
                continue
            if (before := recorded[row.index]) is None:
                unrecorded += 1
            elif (now := images.of(row.images)) and now != before:
                changed.append(row)
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

    def write_rejected(self, reasons: Mapping[int, str], benchmark: str) -> None:
        """Writes rejected.jsonl: the rows that got no response in this run, and no others.

        If it can't be written, a line says so.

        Args:
          reasons: why each row got none, by its index.
          benchmark: path of the benchmark file.
        """
        if self.unrecorded and not reasons:
            return  # a finished folder of an earlier version keeps its list
        rejected = [
            dataclasses.asdict(Rejected(f"{benchmark} row {index}", str(index), reason))
            for index, reason in sorted(reasons.items())
        ]
        text = "".join(json.dumps(row) + "\n" for row in rejected)
        self._spare(outputs.replace_text, self._folder / "rejected.jsonl", text)

    def __enter__(self) -> "Predictions":
        return self

    def __exit__(self, *_) -> None:
        try:
            self._file.close()
        finally:
            self._lock.release()


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
    return {row["id"] for row in lines.rows(path)} if path.exists() else set()
