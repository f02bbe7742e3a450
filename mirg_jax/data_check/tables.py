"""The figures of a survey as tables, for the terminal and the page."""

from collections.abc import Sequence
from typing import Any

from mirg_jax.data_check.survey import Counts, Survey
from mirg_jax.grounding import tasks
from mirg_jax.report.browser import task_title
from mirg_jax.runs.settings import DataSettings

Table = list[Sequence[Any]]  # the first row is the header

_QUANTILES = {"median": 0.5, "90 %": 0.9, "99 %": 0.99, "largest": 1.0}


def tables(survey: Survey, data: DataSettings) -> dict[str, Table]:
    """Returns a survey's tables by heading.

    Args:
      survey: the survey.
      data: the recipe's settings.
    """
    return {
        "Questions": _questions(survey),
        "Why questions are left out": [
            ("questions", "reason", "the first"),
            *((each["count"], each["reason"], each["first"]) for each in survey.reasons.to_json()),
        ],
        "Sizes beside the recipe's": _sizes(survey, data),
        "Images": _images(survey, data),
    }


def text(survey: Survey, data: DataSettings) -> str:
    """Returns a survey as lines of text; arguments as in `tables`."""
    used, left_out = survey.used.total(), survey.left_out.total()
    lines = [f"{survey.file}: {used} questions would be used, {left_out} left out"]
    if survey.not_read:
        lines[0] += f", {survey.not_read} not read"
    if survey.chosen:
        lines.append(survey.chosen)
    for heading, table in tables(survey, data).items():
        if len(table) == 1:
            continue
        lines += ["", heading]
        if heading.startswith("Why"):
            lines += [f"  {count} like {first}" for count, _, first in table[1:]]
        else:
            lines += _aligned(table)
    return "\n".join(lines)


def figures(survey: Survey, data: DataSettings) -> dict[str, Any]:
    """Returns a survey as JSON values; arguments as in `tables`."""
    sizes, images = (table[1:] for table in (_sizes(survey, data), _images(survey, data)))
    names = (*_QUANTILES, "by_size")
    return {
        "used": dict(survey.used),
        "left_out": dict(survey.left_out),
        "not_read": survey.not_read,
        "reasons": survey.reasons.to_json(),
        "sizes": {name: dict(zip(names, found, strict=True)) for name, *found in sizes},
        "images": {name: found for name, found in images},
    }


def _aligned(table: Table) -> list[str]:
    """Returns a table as lines, numbers to the right."""
    widths = [max(len(str(row[n])) for row in table) for n in range(len(table[0]))]
    lines = []
    for row in table:
        cells = [
            f"{cell:>{width}}" if isinstance(table[-1][n], int) else f"{cell!s:{width}}"
            for n, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  " + "  ".join(cells).rstrip())
    return lines


def _questions(survey: Survey) -> Table:
    found = {**survey.used, **survey.left_out}
    order = [name for name in tasks.MIG_BENCH_TASKS if name in found]
    order += sorted(found.keys() - {*order, ""}) + [""] * ("" in found)
    rows = [
        (task_title(name) if name else "not readable", survey.used[name], survey.left_out[name])
        for name in order
    ]
    total = ("all", survey.used.total(), survey.left_out.total())
    return [("task", "used", "left out"), *rows, total]


def _sizes(survey: Survey, data: DataSettings) -> Table:
    shapes = data.shapes
    rows: list[tuple[str, Counts, Sequence[int]]] = [
        ("tokens of a prompt", survey.prompts, shapes.lengths),
        ("images of a question", survey.images, shapes.slots),
        ("patches of an image", survey.patches, shapes.patches),
    ]
    if survey.tokens.quantile(1.0) > survey.prompts.quantile(1.0):  # answers are learned
        rows.insert(1, ("tokens with the answer", survey.tokens, shapes.lengths))
    return [
        ("", *_QUANTILES, "how many, by the recipe's sizes"),
        *((name, *_quantiles(counts), _by_limit(counts, limits)) for name, counts, limits in rows),
    ]


def _quantiles(counts: Counts) -> list[int]:
    return [counts.quantile(share) for share in _QUANTILES.values()]


def _by_limit(counts: Counts, limits: Sequence[int]) -> str:
    *found, over = counts.up_to(limits)
    parts = [f"{count} up to {limit}" for limit, count in zip(limits, found, strict=True)]
    return ", ".join([*parts, f"{over} over"])


def _images(survey: Survey, data: DataSettings) -> Table:
    if survey.smallest is None or survey.largest is None:
        return [("images", "")]
    between = survey.pixels.up_to([data.min_pixels - 1, data.max_pixels])
    how = "turned upright" if data.apply_exif else "read as stored (data.apply_exif)"
    named = {"smallest": survey.smallest, "largest": survey.largest}
    return [
        ("images", ""),
        ("read", len(survey.pixels)),
        (f"enlarged to data.min_pixels={data.min_pixels}", between[0]),
        (f"shrunk to data.max_pixels={data.max_pixels}", between[2]),
        (f"with an EXIF orientation, {how}", survey.rotated),
        ("median pixels", survey.pixels.quantile(0.5)),
        *((what, f"{size[0]}x{size[1]}, {path}") for what, (size, path) in named.items()),
    ]
