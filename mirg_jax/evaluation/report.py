"""Results as one HTML file.

It stands alone: pictures are inside it, nothing is loaded from elsewhere. All that it shows comes
from models and data files, so all of it is escaped.
"""

import base64
import html
import importlib.resources
import io
import math
import pathlib
import re
import string
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from mirg_jax.data.images import load_image
from mirg_jax.errors import DataError
from mirg_jax.evaluation import scoring
from mirg_jax.evaluation.pictures import SMALL, enlarge
from mirg_jax.grounding import tasks
from mirg_jax.training import metrics

_CHART_POINTS = 500

# One alternative for each part of an object, and the section tags. No quantifier crosses a "<",
# which keeps the search linear in the text whatever a model wrote.
_MARKUP = re.compile(
    r"(?P<id><bbox_id>[^<]*</bbox_id>)"
    r"|(?P<ref><\|object_ref_start\|>[^<]*<\|object_ref_end\|>)"
    r"|(?P<box><\|box_start\|>[^<]*<\|box_end\|>)"
    r"|(?P<tag></?(?:think|answer)>)"
)


class Run(NamedTuple):
    """One system's responses, None where missing, and their scores on the same rows."""

    responses: Sequence[str | None]
    scores: scoring.Scores


# HTML ---------------------------------------------------------------------------------------------


def write_report(
    path: str | pathlib.Path,
    title: str,
    rows: Sequence[scoring.Row],
    runs: Mapping[str, Run],
    image_root: str | pathlib.Path,
    curves: Mapping[str, Sequence[tuple[float, float]]] | None = None,
    max_examples: int = 60,
) -> None:
    """Writes scores, curves and examples as one self-contained HTML file.

    Args:
      path: the file to write; its folder is made.
      title: heading of the report.
      rows: the benchmark's rows.
      runs: by name, all of the same rows.
      image_root: folder that the rows' image paths are relative to. A picture that cannot be read
        is replaced by the reason.
      curves: by name, points (step, value). Values that are not finite are counted, not drawn.
      max_examples: rows shown, spread evenly over the tasks.
    """
    by_row = {name: {row.index: row for row in run.scores.rows} for name, run in runs.items()}
    shown = _spread(rows, set.intersection(*map(set, by_row.values())) if runs else set())
    pictures: dict[str, str] = {}  # path -> SVG image element or placeholder, shared by examples
    cards = []
    for index in shown[:max_examples]:
        results = {name: (runs[name].responses[index], by_row[name][index]) for name in runs}
        cards.append(_example(index, rows[index], results, image_root, pictures))

    charts = "".join(chart(name, points) for name, points in (curves or {}).items())
    present = {rows[index]["task"] for index in shown[:max_examples]}
    template = importlib.resources.files(__package__).joinpath("report.html").read_text("utf-8")
    page = string.Template(template).substitute(
        title=html.escape(title),
        style=style(),
        script=script(),
        table=score_table({name: run.scores for name, run in runs.items()}),
        curves=f'<h2>Curves</h2><div class="charts">{charts}</div>' if charts else "",
        task_options="".join(option(task, task_title(task)) for task in sorted(present)),
        result_options="".join(
            option(f"{number}-{result}", f"{name}: {result}")
            for number, name in enumerate(runs)
            for result in ("hit", "miss")
        ),
        examples="\n".join(cards),
    )
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page, encoding="utf-8", errors="replace")  # a response may hold half a pair


def style() -> str:
    """The style sheet of our pages."""
    return importlib.resources.files(__package__).joinpath("report.css").read_text("utf-8")


def script() -> str:
    """The script of our pages: choosing examples by task and result."""
    return importlib.resources.files(__package__).joinpath("report.js").read_text("utf-8")


def _spread(rows: Sequence[scoring.Row], indices: set[int]) -> list[int]:
    """All of `indices`, ordered so that any head of the list is spread over tasks and rows."""
    by_task: dict[str, list[int]] = {}
    for index in sorted(indices):
        by_task.setdefault(rows[index]["task"], []).append(index)
    ranked = []
    for group in by_task.values():
        order = np.random.default_rng(0).permutation(len(group))
        ranked += [(rank, group[place]) for rank, place in enumerate(order)]
    return [index for _, index in sorted(ranked)]


def _example(
    index: int,
    row: scoring.Row,
    results: Mapping[str, tuple[str | None, scoring.RowScore]],
    image_root: str | pathlib.Path,
    pictures: dict[str, str],
) -> str:
    count = len(row["images"])
    target = next(result.target_image for _, result in results.values())
    overlays: list[list[str]] = [[] for _ in range(count)]
    overlays[(target or 1) - 1].append(overlay(row["answer"], "truth", ""))
    for name, (_, result) in results.items():
        if result.box:
            named = result.image if result.image and 1 <= result.image <= count else None
            place = named or target or 1
            label = name if len(results) > 1 else ""
            overlays[place - 1].append(overlay(result.box, "predicted", label))

    figures = []
    for number, (path, marks) in enumerate(zip(row["images"], overlays, strict=True), start=1):
        if path not in pictures:
            pictures[path] = picture(image_root, path)
        marked = pictures[path].replace("</svg>", "".join(marks) + "</svg>")
        figures.append(f"<figure>{marked}<figcaption>Image-{number}</figcaption></figure>")

    blocks, outcomes = [], []
    for number, (name, (response, result)) in enumerate(results.items()):
        outcome = "hit" if result.hit else "miss"
        outcomes.append(f"{number}-{outcome}")
        images = f", image {result.image}" if result.image else ""
        images += f" (target {target})" if target and result.image else ""
        shown = "<i>no response</i>" if response is None else coloured(response)
        blocks.append(
            f'<div class="run {outcome}"><b>{html.escape(name)}</b>: {outcome}, '
            f'IoU {result.iou:.2f}{images}<div class="response">{shown}</div></div>'
        )
    return (
        f'<article data-task="{html.escape(row["task"])}" data-results="{" ".join(outcomes)}">'
        f"<h3>{html.escape(task_title(row['task']))}, row {index}</h3>"
        f"<p>{coloured(row['question'])}</p>"
        f'<div class="strip">{"".join(figures)}</div>{"".join(blocks)}</article>'
    )


def picture(image_root: str | pathlib.Path, path: str) -> str:
    """A thumbnail as an SVG element, or a placeholder that says why there is none."""
    try:
        image = load_image(image_root, path)
    except DataError as error:
        return f'<div class="missing">{html.escape(str(error))}</div>'
    image.thumbnail((SMALL, SMALL))
    image = enlarge(image)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=80)
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    size = f'width="{image.width}" height="{image.height}"'
    return f'<svg {size}><image href="data:image/jpeg;base64,{data}" {size}/></svg>'


def overlay(fractions: Sequence[float], kind: str, label: str) -> str:
    x1, y1, x2, y2 = (100 * min(max(value, 0.0), 1.0) for value in fractions)
    left, top = min(x1, x2), min(y1, y2)  # a ground truth may be inverted
    text = f'<text class="{kind}" x="{left:.1f}%" y="{top:.1f}%" dx="3" dy="12">' if label else ""
    return (
        f'<rect class="{kind}" x="{left:.1f}%" y="{top:.1f}%" '
        f'width="{abs(x2 - x1):.1f}%" height="{abs(y2 - y1):.1f}%"/>'
        + (f"{text}{html.escape(label)}</text>" if label else "")
    )


def coloured(text: str) -> str:
    """Escaped text with the parts of the grounding grammar in spans."""
    pieces, end = [], 0
    for match in _MARKUP.finditer(text):
        pieces.append(html.escape(text[end : match.start()]))
        pieces.append(f'<span class="{match.lastgroup}">{html.escape(match[0])}</span>')
        end = match.end()
    return "".join(pieces) + html.escape(text[end:])


def score_table(named_scores: Mapping[str, scoring.Scores]) -> str:
    """`scoring.table_cells` as an HTML table."""

    def line(cells: Sequence[str], tag: str) -> str:
        return f"<tr>{''.join(f'<{tag}>{html.escape(cell)}</{tag}>' for cell in cells)}</tr>"

    header, *lines = scoring.table_cells(named_scores)
    return f"<table>{line(header, 'th')}{''.join(line(cells, 'td') for cells in lines)}</table>"


def option(value: str, text: str) -> str:
    return f'<option value="{html.escape(value)}">{html.escape(text)}</option>'


def task_title(name: str) -> str:
    return tasks.MIG_BENCH_TASKS[name].short if name in tasks.MIG_BENCH_TASKS else name


def training_curves(
    workdir: str | pathlib.Path, names: Sequence[str]
) -> dict[str, list[tuple[float, float]]]:
    """Points (step, value) from a run's metrics.jsonl, of those names that it has."""
    steps = metrics.read(workdir)
    return {
        name: [(step["step"], np.nan if step[name] is None else step[name]) for step in steps]
        for name in names
        if name in steps[0]
    }


def chart(name: str, points: Sequence[tuple[float, float]]) -> str:
    """A line chart as inline SVG, with the ends of both axes and the last value as text."""
    finite = [(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y)]
    caption = html.escape(name)
    if finite:
        caption += f": {finite[-1][1]:.4g} at {finite[-1][0]:g}"
    if len(finite) < len(points):
        caption += f" ({len(points) - len(finite)} values not finite)"
    width, height, left, bottom, top = 340, 180, 52, 160, 10
    # Styled by attributes, not by the page, so that a notebook can show it too.
    shapes = [
        f'<path d="M{left} {top}V{bottom}H{width - 8}" fill="none" stroke="#999"/>',
    ]
    if finite:
        xs, ys = np.array(finite[:: math.ceil(len(finite) / _CHART_POINTS)], np.float64).T
        x_span, y_span = np.ptp(xs) or 1.0, np.ptp(ys) or 1.0
        across = left + (xs - xs.min()) / x_span * (width - 8 - left)
        down = bottom - (ys - ys.min()) / y_span * (bottom - top)
        line = " ".join(f"{x:.1f},{y:.1f}" for x, y in zip(across, down, strict=True))
        shapes += [
            f'<polyline points="{line}" fill="none" stroke="#1f5fa8" stroke-width="1.5"/>',
            f'<text x="{left - 4}" y="{top + 8}" text-anchor="end">{ys.max():.3g}</text>',
            f'<text x="{left - 4}" y="{bottom}" text-anchor="end">{ys.min():.3g}</text>',
            f'<text x="{left}" y="{height - 6}">{xs.min():g}</text>',
            f'<text x="{width - 8}" y="{height - 6}" text-anchor="end">{xs.max():g}</text>',
        ]
    return (
        f'<figure><svg viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'font-size="11" fill="#777">{"".join(shapes)}</svg>'
        f"<figcaption>{caption}</figcaption></figure>"
    )
