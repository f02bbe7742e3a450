"""Tables of the scores of several runs."""

from collections.abc import Mapping, Sequence

from mirg_jax.data.json_rows import quote
from mirg_jax.grounding import tasks
from mirg_jax.mig_bench.scoring import Scores


def table_cells(named_scores: Mapping[str, Scores]) -> list[list[str]]:
    """Returns a header and one line per run, with hit rates in per cent.

    Columns of tasks have the paper's short names; "AVE 95%" is the interval of AVE.
    """
    columns = {name: task.short for name, task in tasks.MIG_BENCH_TASKS.items()}
    for scores in named_scores.values():
        columns |= {name: name for name in scores.tasks if name not in columns}
    header = ["Model", "protocol", *columns.values(), "AVE", "AVE 95%", "Spont.", "Refer.", "all"]
    header += ["mIoU", "image", "format", "missing"]
    lines = [header]
    for name, scores in named_scores.items():
        overall = scores.overall
        figures = [
            *(scores.tasks[task].hit_rate if task in scores.tasks else None for task in columns),
            scores.average,
            scores.spontaneous,
            scores.referential,
            overall.hit_rate,
            overall.mean_iou,
            overall.image_accuracy,
            overall.format_rate,
        ]
        variant = " +y" * scores.scale_y + " -impossible" * scores.skip_impossible
        variant += " >0.5" * scores.strict
        cells = ["-" if figure is None else f"{100 * figure:.2f}" for figure in figures]
        _, low, high = scores.average_interval
        cells.insert(len(columns) + 1, f"{100 * low:.1f}-{100 * high:.1f}")
        lines.append([name, scores.protocol + variant, *cells, str(scores.missing)])
    return lines


def format_table(named_scores: Mapping[str, Scores]) -> str:
    """Returns `table_cells` as plain text."""
    return aligned(table_cells(named_scores), left=2)


def notes(scores: Scores) -> list[str]:
    """Returns lines to print below the table, about what makes the scores lower."""
    lines = []
    if scores.unreadable:
        first = next(iter(scores.unreadable.values()))
        lines.append(
            f"{len(scores.unreadable)} responses in pixels can't be scored and count as misses "
            f'("unreadable" in scores.json); the first: {first}'
        )
    answered = scores.overall.n - scores.missing
    if 2 * scores.other_form > answered > 0:
        lines.append(
            f"{scores.other_form} of {answered} responses have a box in another form than "
            "that of models trained here, or in pixels of an image that isn't there or isn't "
            "understood, which was not read: name the model's --family "
            "(scripts/score.py, scripts/evaluate_server.py), or set "
            "config.evaluation.coordinates=pixels for a published Qwen2.5-VL; a model trained here "
            "for a few steps may not have learned the form yet"
        )
    if scores.without_box is not None:
        lines.append(
            f"none of {answered} responses has a box, so all count as misses; the first: "
            f"{quote(scores.without_box)}; see whether the model, its prompt and the limit of "
            "tokens are right"
        )
    return lines


def aligned(lines: Sequence[Sequence[str]], left: int) -> str:
    """Returns cells as plain text in columns, the first `left` of them aligned to the left."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column < left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )
