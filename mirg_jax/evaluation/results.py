"""What an evaluation comes to: scores.json, report.html, and the lines that are printed."""

import json
import pathlib
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mirg_jax.data.images import Root
from mirg_jax.errors import DataError, UserError
from mirg_jax.files import outputs, places
from mirg_jax.files.places import Place
from mirg_jax.mig_bench.benchmark import Row
from mirg_jax.mig_bench.scoring import Scores
from mirg_jax.mig_bench.tables import format_table, notes
from mirg_jax.report import report


def check_some_answered(
    folder: Place, responses: Iterable[str | None], rejected: Mapping[int, str]
) -> None:
    """Checks that a model has answered a row at all.

    Args:
      folder: the folder of the evaluation.
      responses: the response to each row; None where there is none.
      rejected: why rows got none in this run, by their index.

    Raises:
      UserError: if no row has an answer; the message has the first reason.
    """
    if all(response is None for response in responses):
        reason = next(iter(rejected.values()), f"see {folder / 'rejected.jsonl'}")
        raise UserError(f"no row has an answer; the first: {reason}")


def write_results(
    folder: Place,
    system: str,
    benchmark: str,
    run: report.Responses,
    rows: Sequence[Row],
    image_root: Root,
    **more: Any,
) -> None:
    """Writes scores.json and report.html, and prints which benchmark they are of.

    Args:
      folder: the folder of the evaluation.
      system: name or path of the model.
      benchmark: path of the benchmark file.
      run: the model's responses and scores.
      rows: the rows that it answered.
      image_root: folder that the benchmark's image paths are relative to.
      more: additional fields of scores.json; its `benchmark_name` is shown in the report too.

    Raises:
      DataError: if they can't be written.
    """
    told = more | run.scores.to_json()
    name = pathlib.Path(system).name
    title = f"{name} on {pathlib.Path(benchmark).name}"
    shown = {"benchmark": more.get("benchmark_name", "")}
    print(f"benchmark: {shown['benchmark']}", flush=True)
    try:
        outputs.replace_text(folder / "scores.json", json.dumps(told, indent=1) + "\n")
        if isinstance(folder, pathlib.Path):
            page = folder / "report.html"
            report.write_report(page, title, rows, {name: run}, image_root, **shown)
            return
        with tempfile.TemporaryDirectory() as scratch:
            page = pathlib.Path(scratch) / "report.html"
            report.write_report(page, title, rows, {name: run}, image_root, **shown)
            places.write_bytes(folder / page.name, page.read_bytes())
    except OSError as error:
        raise DataError(
            f"{folder}: scores or report cannot be written ({error.strerror}); the predictions are "
            "there, fix that and run again"
        ) from None


def show(system: str, scores: Scores) -> None:
    """Prints the table of an evaluation, what makes its scores lower, and a line of JSON.

    Args:
      system: name or path of the model.
      scores: its scores.
    """
    print(format_table({system: scores}))
    for note in notes(scores):
        print(note, file=sys.stderr)
    print(json.dumps({"acc": scores.overall.accuracy[0.5], "n": scores.overall.n}))
