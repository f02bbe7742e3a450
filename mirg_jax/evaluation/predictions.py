"""The folder of one system's responses: what they are of, a line each as they come, the scores."""

import json
import pathlib
from collections.abc import Sequence
from typing import Any

from mirg_jax.errors import ConfigError
from mirg_jax.files import lines
from mirg_jax.files.locks import Lock
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
        self._lock = Lock(folder / "predictions.lock")
        self._lock.acquire()
        try:
            path = folder / "predictions.jsonl"
            _claim(folder, what)
            self._file = lines.LineWriter(path, sync=True)
            self.responses: list[str | None] = [None] * count
            if path.stat().st_size:
                self.responses = load_predictions(path, count)
        except BaseException:
            self._lock.release()
            raise

    def add(self, index: int, response: str, **more: Any) -> None:
        """Keeps a row's response, with other keys of its line.

        Raises:
          DataError: it can't be written.
        """
        self._file.write({"index": index, "response": response, **more})
        self.responses[index] = response

    def __enter__(self) -> "Predictions":
        return self

    def __exit__(self, *_) -> None:
        self._file.close()
        self._lock.release()


def _claim(folder: pathlib.Path, what: dict) -> None:
    """Refuses to mix predictions of two models or benchmarks in one folder.

    Raises:
      ConfigError: it holds those of something else.
    """
    path, text = folder / "run.json", json.dumps(what, indent=1) + "\n"
    predictions = folder / "predictions.jsonl"
    begun = predictions.exists() and predictions.stat().st_size > 0
    if begun and path.exists() and path.read_text() != text:
        raise ConfigError(
            f"{folder}: holds predictions of another run ({path}); give another --output_dir, "
            "or delete it"
        )
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
