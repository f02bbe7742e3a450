"""The folder of one system's responses: what they are of, a line each as they come, the scores."""

import fcntl
import json
import os
import pathlib
from collections.abc import Sequence
from typing import Any

from mirg_jax.data.images import Root
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
    image_root: Root,
    **more: Any,
) -> None:
    """Writes scores.json and report.html.

    Args:
      system: its name or path.
      run: its responses and scores.
      rows: the rows that it answered.
      more: for scores.json.
    """
    told = more | run.scores.to_json()
    (folder / "scores.json").write_text(json.dumps(told, indent=1) + "\n")
    name = pathlib.Path(system).name
    title = f"{name} on {pathlib.Path(benchmark).name}"
    report.write_report(folder / "report.html", title, rows, {name: run}, image_root)


class Predictions:
    """A folder's predictions.jsonl, open to this process alone.

    Attributes:
      responses: of every row of the benchmark, None where there is none yet.
    """

    def __init__(self, folder: pathlib.Path, what: dict, count: int):
        """
        Args:
          what: the predictions are of: the model, the benchmark, how it was asked.
          count: rows of the benchmark.

        Raises:
          ConfigError: the folder holds those of something else, or another process writes to it.
          DataError: a line of the file is malformed.
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
        """Keeps a row's response, with other keys of its line.

        Raises:
          DataError: it can't be written.
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

    def __enter__(self) -> "Predictions":
        return self

    def __exit__(self, *_) -> None:
        self._file.close()


def _claim(folder: pathlib.Path, what: dict) -> None:
    """Refuses to mix predictions of two models or benchmarks in one folder.

    Raises:
      ConfigError: it holds those of something else.
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
    """Cuts what a killed run had begun to write behind the last whole line."""
    os.truncate(path, path.read_bytes().rfind(b"\n") + 1)
