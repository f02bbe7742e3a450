"""The folder of an evaluation: its predictions, what they depend on, scores and report."""

import fcntl
import json
import os
import pathlib
from collections.abc import Sequence
from typing import Any

from mirg_jax.errors import ConfigError, DataError
from mirg_jax.mig_bench.benchmark import Row
from mirg_jax.mig_bench.responses import load_predictions
from mirg_jax.report import report


def write_results(
    folder: pathlib.Path,
    system: str,
    benchmark: str,
    run: report.Responses,
    rows: Sequence[Row],
    image_root: str,
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
    """
    told = more | run.scores.to_json()
    (folder / "scores.json").write_text(json.dumps(told, indent=1) + "\n")
    name = pathlib.Path(system).name
    title = f"{name} on {pathlib.Path(benchmark).name}"
    report.write_report(folder / "report.html", title, rows, {name: run}, image_root)


class Predictions:
    """A folder's predictions.jsonl, locked by this process.

    Attributes:
      responses: the response to every row of the benchmark, None where there is none yet.
    """

    def __init__(self, folder: pathlib.Path, what: dict, count: int):
        """Opens the file, and creates the folder if necessary.

        Args:
          folder: the folder of the evaluation.
          what: what the predictions depend on: the model, the benchmark, the settings.
          count: number of rows of the benchmark.

        Raises:
          ConfigError: if the folder has predictions of something else, or another process writes
            to it.
          DataError: if a line of the file is malformed.
        """
        _claim(folder, what)
        self._path = folder / "predictions.jsonl"
        self._file = open(self._path, "a", encoding="utf-8", buffering=1)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._file.close()
            raise ConfigError(f"{self._path}: another process writes to it; wait for it") from None
        _drop_torn_line(self._path)
        self.responses: list[str | None] = [None] * count
        if self._path.stat().st_size:
            self.responses = load_predictions(self._path, count)

    def add(self, index: int, response: str, **more: Any) -> None:
        """Writes a row's response.

        Args:
          index: the row's number in the benchmark.
          response: the response.
          more: other fields of its line.

        Raises:
          DataError: if the file can't be written.
        """
        line = json.dumps({"index": index, "response": response, **more}) + "\n"
        try:
            self._file.write(line)
            os.fsync(self._file.fileno())
        except OSError as error:
            raise DataError(
                f"{self._path}: cannot be written ({error.strerror}); run again to go on"
            ) from None
        self.responses[index] = response

    def drop_empty(self) -> None:
        """Removes empty responses, which earlier versions kept, so that they are sent again."""
        said = enumerate(self.responses)
        empty = {n for n, text in said if text is not None and not text.strip()}
        if not empty:
            return
        lines = self._path.read_text(encoding="utf-8").split("\n")
        kept = [line for line in lines if line and json.loads(line)["index"] not in empty]
        # In place: a renamed file would not be the one that is locked.
        os.truncate(self._path, 0)
        self._file.write("".join(line + "\n" for line in kept))
        os.fsync(self._file.fileno())
        for index in empty:
            self.responses[index] = None

    def __enter__(self) -> "Predictions":
        return self

    def __exit__(self, *_) -> None:
        self._file.close()


def _claim(folder: pathlib.Path, what: dict) -> None:
    """Records in the folder what its predictions depend on.

    Raises:
      ConfigError: if the folder has predictions of something else.
    """
    path, text = folder / "run.json", json.dumps(what, indent=1) + "\n"
    if path.exists() and path.read_text() != text:
        raise ConfigError(
            f"{folder}: holds predictions of another run ({path}); give another --output_dir, "
            "or delete it"
        )
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def _drop_torn_line(path: pathlib.Path) -> None:
    """Removes the partial last line that a killed run may leave."""
    os.truncate(path, path.read_bytes().rfind(b"\n") + 1)
