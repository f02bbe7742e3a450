"""What changed between two runs on the same rows."""

import dataclasses
import json
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from mirg_jax.errors import DataError
from mirg_jax.grounding import tasks
from mirg_jax.mig_bench.intervals import Interval, mcnemar, paired_bootstrap


@dataclasses.dataclass(frozen=True)
class Change:
    """Of a set of rows; rates are fractions of 1."""

    n: int
    before: float
    after: float
    difference: Interval  # of the hit rates, paired
    gained: tuple[int, ...]  # rows missed before and hit after
    lost: tuple[int, ...]
    p: float  # exact McNemar test
    mean_iou: float  # difference of the means


def read_scores(path: str | pathlib.Path) -> dict[str, Any]:
    """Reads a scores.json, as `scoring.Scores.to_json` gives it.

    Raises:
      DataError: it is missing or something else.
    """
    try:
        scores = json.loads(pathlib.Path(path).read_text(encoding="utf-8"))
        for row in scores["rows"]:
            row["index"], row["task"], row["iou"] + 0, row["hit"]
        scores["protocol"], scores["strict"], scores["rows"][0]
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    except (ValueError, TypeError, KeyError, IndexError, RecursionError):
        raise DataError(
            f"{path}: not the scores of a run; make them with scripts/score.py"
        ) from None
    return scores


def compare(before: dict[str, Any], after: dict[str, Any]) -> dict[str, Change]:
    """By task, and "all": what `after` hits that `before` missed, and the other way.

    Args:
      before: scores as `read_scores` gives them.
      after: the same of another run.

    Raises:
      DataError: they weren't scored alike, or not on the same rows.
    """
    for what in ("protocol", "strict"):
        if before[what] != after[what]:
            raise DataError(
                f"the two were scored by another {what} ({before[what]} and {after[what]}); "
                "score both alike with scripts/score.py"
            )
    rows = [{row["index"]: row for row in run["rows"]} for run in (before, after)]
    names = [{index: row["task"] for index, row in run.items()} for run in rows]
    if names[0] != names[1]:
        raise DataError(
            f"the two were not scored on the same rows ({len(rows[0])} and {len(rows[1])}, of "
            "which some differ in task or index)"
        )
    indices = sorted(rows[0])
    known = [name for name in tasks.MIG_BENCH_TASKS if name in names[0].values()]
    others = sorted(set(names[0].values()) - set(known))
    groups = {name: [i for i in indices if names[0][i] == name] for name in (*known, *others)}
    return {name: _change(*rows, group) for name, group in (groups | {"all": indices}).items()}


def _change(before: dict[int, Any], after: dict[int, Any], indices: Sequence[int]) -> Change:
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
    """A header and a line a task; rates in per cent."""
    lines = [["task", *_COLUMNS]]
    for name, change in changes.items():
        title = tasks.MIG_BENCH_TASKS[name].short if name in tasks.MIG_BENCH_TASKS else name
        lines.append([title, *(cell(change) for cell in _COLUMNS.values())])
    return lines
