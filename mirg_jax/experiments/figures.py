"""What a table of experiments shows: figures of every row, gains between rows, a page of text."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from mirg_jax.experiments.rows import TableRow
from mirg_jax.grounding import tasks
from mirg_jax.mig_bench import intervals, scoring

Results = dict[str, dict[int, scoring.Scores]]  # by row and seed
Training = dict[tuple[str, int], dict[str, float]]  # `of_training`, by row and seed

# Of which groups and tokens a row of RL could learn.
_TRAINING = (
    "zero_spread_fraction",
    "below_gate_fraction",
    "used_fraction",
    "clip_fraction",
    "truncated_fraction",
    "cut_fraction",
    "logprob_diff",
)


def to_json(
    title: str, rows: Sequence[TableRow], results: Results, training: Training | None = None
) -> dict[str, Any]:
    """Collects each row's figures by seed, and its gain over another row (`base_of`)."""
    found = {}
    for row in rows:
        by_seed = results[row.name]
        found[row.name] = {
            "title": row.title,
            "paper": list(row.paper),
            "seeds": {str(seed): figures(scores) for seed, scores in by_seed.items()},
        }
        for seed in by_seed:
            if learned := (training or {}).get((row.name, seed)):
                found[row.name]["seeds"][str(seed)]["training"] = learned
        before = base_of(row, rows)
        if before and (paired := by_seed.keys() & results.get(before, {}).keys()):
            gain = gained([(by_seed[seed], results[before][seed]) for seed in sorted(paired)])
            found[row.name]["gain"] = {"over": before, **gain}
    return {"title": title, "rows": found}


def base_of(row: TableRow, rows: Sequence[TableRow]) -> str:
    """Returns the name of the row that a row's gain is over, or "".

    That is `against`, or the row that it is trained from. For one that starts from a base model it
    is the untrained row of the same model, if any.
    """
    if row.against or row.start:
        return row.against or row.start
    model = row.recipe.model.path
    for other in rows:
        if not other.data and other.recipe.model.path == model:
            return other.name if other.name != row.name else ""
    return ""


def figures(scores: scoring.Scores) -> dict[str, Any]:
    """What is kept of an evaluation; accuracies are fractions of 1.

    `hits` says of each question, in their order, whether it was hit, and `right_images` whether the
    right image was named: with them, rows of any two tables over the same questions can be compared
    in pairs. They are `np.packbits` in hexadecimal.
    """
    return {
        "hits": _bits(row.hit for row in scores.rows),
        "right_images": _bits(row.image and row.image == row.target_image for row in scores.rows),
        "n": scores.overall.n,
        "spontaneous": scores.spontaneous,
        "referential": scores.referential,
        "average": scores.average,
        **summarise(scores),
    }


def _bits(values: Iterable[bool | int | None]) -> str:
    return np.packbits([bool(value) for value in values]).tobytes().hex()


def of_training(steps: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Means over a run's steps of the metrics that explain what a row of RL gained."""
    found = {}
    for name in _TRAINING:
        if values := [step[name] for step in steps if step.get(name) is not None]:
            found[name] = float(np.mean(values))
    return found


def summarise(scores: scoring.Scores) -> dict[str, Any]:
    """The main figures of an evaluation; accuracies are fractions of 1."""
    overall = scores.overall
    return {
        "acc": overall.accuracy[0.5],
        "acc_75": overall.accuracy[0.75],
        "mean_iou": overall.mean_iou,
        # Whether boxes are tight, apart from whether the right object is found.
        "hit_iou": float(np.mean([row.iou for row in scores.rows if row.hit] or [0.0])),
        "image_acc": overall.image_accuracy,
        "format_rate": overall.format_rate,
        "by_task": {name: each.hit_rate for name, each in scores.tasks.items()},
    }


def gained(pairs: Iterable[tuple[scoring.Scores, scoring.Scores]]) -> dict[str, float]:
    """Hit rate of the first less that of the second, over all rows of all pairs."""
    after, before = (
        np.array([row.hit for scores in side for row in scores.rows])
        for side in zip(*pairs, strict=True)
    )
    found = intervals.paired_bootstrap(after, before)
    return {"mean": found.mean, "low_95": found.low, "high_95": found.high}


def to_markdown(table: Mapping[str, Any]) -> str:
    """Per cent: means over the seeds with their range, beside the paper's; then by task."""
    columns = ("spontaneous", "referential", "average")
    lines = [
        "| | Spontaneous | Referential | AVE | mean IoU | image | format | paper: S, R, AVE |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in table["rows"].values():
        seeds = list(row["seeds"].values())
        if not seeds:
            continue
        cells = [row["title"]]
        for name in (*columns, "mean_iou", "image_acc", "format_rate"):
            values = [100 * seed[name] for seed in seeds if seed[name] is not None]
            cells.append(_mean_and_range(values))
        cells.append(", ".join(f"{value:.2f}" for value in row["paper"]) or "-")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, "", *_by_task(table)])


def _by_task(table: Mapping[str, Any]) -> list[str]:
    """Lines of a table in the benchmark's own columns, AVE, and the mean IoU of hits: means over
    the seeds."""
    rows = [row for row in table["rows"].values() if row["seeds"]]
    seen = {task for row in rows for seed in row["seeds"].values() for task in seed["by_task"]}
    names = [name for name in tasks.MIG_BENCH_TASKS if name in seen]
    header = ["", *(tasks.MIG_BENCH_TASKS[name].short for name in names), "AVE", "IoU of hits"]
    lines = [f"| {' | '.join(header).strip()} |", f"|{' --- |' * len(header)}"]
    for row in rows:
        seeds = list(row["seeds"].values())
        means = [np.mean([seed["by_task"][name] for seed in seeds]) for name in names]
        means += [np.mean([seed[name] for seed in seeds]) for name in ("average", "hit_iou")]
        cells = [row["title"], *(f"{100 * mean:.1f}" for mean in means)]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _mean_and_range(values: list[float]) -> str:
    if not values:
        return "-"
    mean = f"{sum(values) / len(values):.1f}"
    return mean if len(values) == 1 else f"{mean} ({min(values):.1f} to {max(values):.1f})"
