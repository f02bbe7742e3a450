"""Comparison of two runs on the same rows."""

import dataclasses
import json
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from mirg_jax.data.json_rows import kind_of, quote
from mirg_jax.errors import DataError
from mirg_jax.grounding import tasks
from mirg_jax.mig_bench.intervals import Interval, mcnemar, paired_bootstrap
from mirg_jax.mig_bench.responses import recorded_benchmark


@dataclasses.dataclass(frozen=True)
class Change:
    """The change of the scores on a set of rows; rates are fractions of 1.

    Attributes:
      n: number of rows.
      before: hit rate of the first run.
      after: hit rate of the second run.
      difference: of the hit rates, with its interval over redrawn pairs of rows.
      gained: indices of rows that were missed before and are hit after.
      lost: indices of rows that were hit before and are missed after.
      p: p-value of the exact McNemar test.
      mean_iou: difference of the mean IoUs.
    """

    n: int
    before: float
    after: float
    difference: Interval
    gained: tuple[int, ...]
    lost: tuple[int, ...]
    p: float
    mean_iou: float


def read_scores(path: str | pathlib.Path) -> dict[str, Any]:
    """Reads a scores.json, the result of `scoring.Scores.to_json`.

    Where an earlier version didn't write the benchmark's hash to an evaluation's scores.json, it is
    taken from the run.json beside that.

    Raises:
      DataError: if the file is missing or contains something else; the message names the row.
    """
    remedy = "make them with scripts/score.py"
    scores: Any = None
    try:
        scores = json.loads(pathlib.Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check the path") from None
    except (ValueError, RecursionError):
        pass
    fields = scores if isinstance(scores, dict) else {}
    rows = fields.get("rows")
    if not rows or not isinstance(rows, list) or not {"protocol", "strict"} <= fields.keys():
        raise DataError(f"{path}: not the scores of a run; {remedy}")
    for number, row in enumerate(rows):
        if wrong := _odd_field(row):
            raise DataError(f"{path}: rows[{number}] {wrong}; not the scores of a run, {remedy}")
    if len({row["index"] for row in rows}) < len(rows):
        raise DataError(f"{path}: has rows of the same index; {remedy}")
    if not fields.get("benchmark_sha256") and pathlib.Path(path).name == "scores.json":
        fields["benchmark_sha256"] = recorded_benchmark(path)
    return fields


_TYPES = {"index": (int,), "task": (str,), "iou": (int, float), "hit": (bool,)}


def _odd_field(row: Any) -> str:
    """Returns what is wrong with the fields of a row that are compared; "" if nothing is."""
    if not isinstance(row, dict):
        return f"is {kind_of(row)} where an object is needed"
    wrong = [name for name, types in _TYPES.items() if type(row.get(name)) not in types]
    if not wrong and not 0 <= row["iou"] < 1.001:
        wrong = ["iou"]
    return f"has {wrong[0]}={quote(row.get(wrong[0]))}" if wrong else ""


def have_other_images(before: dict[str, Any], after: dict[str, Any]) -> bool:
    """Returns whether two runs were asked about images of other content, as far as both record it.

    Args:
      before: the first run's scores, from `read_scores`.
      after: the second run's scores.
    """
    images = [run.get("images") for run in (before, after)]
    return all(images) and images[0] != images[1]


def compare(before: dict[str, Any], after: dict[str, Any]) -> dict[str, Change]:
    """Compares two runs.

    Args:
      before: the first run's scores, from `read_scores`.
      after: the second run's scores.

    Returns:
      The change by task, and under "all" the change over all rows.

    Raises:
      DataError: if the two were scored by different rules, or on different rows or benchmarks.
    """
    for what in ("protocol", "strict"):
        if before[what] != after[what]:
            raise DataError(
                f"the two were scored by another {what} ({before[what]} and {after[what]}); "
                "score both alike with scripts/score.py"
            )
    benchmarks = [run.get("benchmark_sha256") for run in (before, after)]
    if all(benchmarks) and benchmarks[0] != benchmarks[1]:
        raise DataError(
            "the two were scored on benchmarks of different content (benchmark_sha256); score both "
            "on one with scripts/score.py"
        )
    rows_before, rows_after = (
        {row["index"]: row for row in run["rows"]} for run in (before, after)
    )
    task_of, other_task_of = (
        {index: row["task"] for index, row in rows.items()} for rows in (rows_before, rows_after)
    )
    if task_of != other_task_of:
        raise DataError(
            f"the two were not scored on the same rows ({len(rows_before)} and {len(rows_after)}, "
            "of which some differ in task or index)"
        )
    indices = sorted(rows_before)
    known = [name for name in tasks.MIG_BENCH_TASKS if name in task_of.values()]
    others = sorted(set(task_of.values()) - set(known))
    groups = {name: [i for i in indices if task_of[i] == name] for name in (*known, *others)}
    return {
        name: _change(rows_before, rows_after, group)
        for name, group in (groups | {"all": indices}).items()
    }


def _change(before: dict[int, Any], after: dict[int, Any], indices: Sequence[int]) -> Change:
    """Compares the rows at some indices."""

    def of(run, field: str) -> np.ndarray:
        return np.array([run[index][field] for index in indices])

    hit_before, hit_after = of(before, "hit"), of(after, "hit")
    gained, lost = (
        tuple(int(i) for i in np.array(indices)[changed])
        for changed in (hit_after & ~hit_before, hit_before & ~hit_after)
    )
    return Change(
        n=len(indices),
        before=float(hit_before.mean()),
        after=float(hit_after.mean()),
        difference=paired_bootstrap(hit_after, hit_before),
        gained=gained,
        lost=lost,
        p=mcnemar(len(gained), len(lost)),
        mean_iou=float(of(after, "iou").mean() - of(before, "iou").mean()),
    )


_COLUMNS: dict[str, Callable[[Change], str]] = {
    "rows": lambda c: str(c.n),
    "before": lambda c: f"{100 * c.before:.2f}",
    "after": lambda c: f"{100 * c.after:.2f}",
    "difference": lambda c: f"{100 * c.difference.mean:+.2f}",
    "95 %": lambda c: f"{100 * c.difference.low:+.1f} to {100 * c.difference.high:+.1f}",
    "gained": lambda c: str(len(c.gained)),
    "lost": lambda c: str(len(c.lost)),
    "p": lambda c: f"{c.p:.2g}",
    "mIoU": lambda c: f"{100 * c.mean_iou:+.2f}",
}


def table_cells(changes: dict[str, Change]) -> list[list[str]]:
    """Returns the comparison as a header and one line per task, with rates in per cent."""
    lines = [["task", *_COLUMNS]]
    for name, change in changes.items():
        title = tasks.MIG_BENCH_TASKS[name].short if name in tasks.MIG_BENCH_TASKS else name
        lines.append([title, *(cell(change) for cell in _COLUMNS.values())])
    return lines
