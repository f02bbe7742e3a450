"""Pictures of results: one HTML file a report, and boxes drawn into an image.

The HTML file stands alone: pictures are inside it, nothing is loaded from elsewhere. All that it
shows comes from models and data files, so all of it is escaped.
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
from PIL import Image, ImageDraw, ImageFont

from mirg_jax.data.images import load_image
from mirg_jax.errors import DataError
from mirg_jax.evaluation import scoring
from mirg_jax.grounding import boxes, tasks

_THUMBNAIL = 224  # pixels, longest side
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


class Drawing(NamedTuple):
    """A box on the 0..1000 grid to draw into an image, with a colour that PIL knows."""

    box: boxes.Box
    colour: str
    caption: str = ""


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

    charts = "".join(_chart(name, points) for name, points in (curves or {}).items())
    present = {rows[index]["task"] for index in shown[:max_examples]}
    template = importlib.resources.files(__package__).joinpath("report.html").read_text("utf-8")
    page = string.Template(template).substitute(
        title=html.escape(title),
        table=_table(scoring.table_cells({name: run.scores for name, run in runs.items()})),
        curves=f'<h2>Curves</h2><div class="charts">{charts}</div>' if charts else "",
        task_options="".join(_option(task, _task_title(task)) for task in sorted(present)),
        result_options="".join(
            _option(f"{number}-{result}", f"{name}: {result}")
            for number, name in enumerate(runs)
            for result in ("hit", "miss")
        ),
        examples="\n".join(cards),
    )
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page, encoding="utf-8", errors="replace")  # a response may hold half a pair


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
    overlays[(target or 1) - 1].append(_overlay(row["answer"], "truth", ""))
    for name, (_, result) in results.items():
        if result.box:
            named = result.image if result.image and 1 <= result.image <= count else None
            place = named or target or 1
            label = name if len(results) > 1 else ""
            overlays[place - 1].append(_overlay(result.box, "predicted", label))

    figures = []
    for number, (path, marks) in enumerate(zip(row["images"], overlays, strict=True), start=1):
        if path not in pictures:
            pictures[path] = _picture(image_root, path)
        picture = pictures[path].replace("</svg>", "".join(marks) + "</svg>")
        figures.append(f"<figure>{picture}<figcaption>Image-{number}</figcaption></figure>")

    blocks, outcomes = [], []
    for number, (name, (response, result)) in enumerate(results.items()):
        outcome = "hit" if result.hit else "miss"
        outcomes.append(f"{number}-{outcome}")
        images = f", image {result.image}" if result.image else ""
        images += f" (target {target})" if target and result.image else ""
        shown = "<i>no response</i>" if response is None else _colour(response)
        blocks.append(
            f'<div class="run {outcome}"><b>{html.escape(name)}</b>: {outcome}, '
            f'IoU {result.iou:.2f}{images}<div class="response">{shown}</div></div>'
        )
    return (
        f'<article data-task="{html.escape(row["task"])}" data-results="{" ".join(outcomes)}">'
        f"<h3>{html.escape(_task_title(row['task']))}, row {index}</h3>"
        f"<p>{_colour(row['question'])}</p>"
        f'<div class="strip">{"".join(figures)}</div>{"".join(blocks)}</article>'
    )


def _picture(image_root: str | pathlib.Path, path: str) -> str:
    """A thumbnail as an SVG element, or a placeholder that says why there is none."""
    try:
        image = load_image(image_root, path)
    except DataError as error:
        return f'<div class="missing">{html.escape(str(error))}</div>'
    image.thumbnail((_THUMBNAIL, _THUMBNAIL))
    if (factor := _THUMBNAIL // max(image.size)) > 1:  # else boxes would hide the small picture
        image = image.resize(
            (factor * image.width, factor * image.height), Image.Resampling.NEAREST
        )
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=80)
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    size = f'width="{image.width}" height="{image.height}"'
    return f'<svg {size}><image href="data:image/jpeg;base64,{data}" {size}/></svg>'


def _overlay(fractions: Sequence[float], kind: str, label: str) -> str:
    x1, y1, x2, y2 = (100 * min(max(value, 0.0), 1.0) for value in fractions)
    left, top = min(x1, x2), min(y1, y2)  # a ground truth may be inverted
    text = f'<text class="{kind}" x="{left:.1f}%" y="{top:.1f}%" dx="3" dy="12">' if label else ""
    return (
        f'<rect class="{kind}" x="{left:.1f}%" y="{top:.1f}%" '
        f'width="{abs(x2 - x1):.1f}%" height="{abs(y2 - y1):.1f}%"/>'
        + (f"{text}{html.escape(label)}</text>" if label else "")
    )


def _colour(text: str) -> str:
    """Escaped text with the parts of the grounding grammar in spans."""
    pieces, end = [], 0
    for match in _MARKUP.finditer(text):
        pieces.append(html.escape(text[end : match.start()]))
        pieces.append(f'<span class="{match.lastgroup}">{html.escape(match[0])}</span>')
        end = match.end()
    return "".join(pieces) + html.escape(text[end:])


def _table(lines: Sequence[Sequence[str]]) -> str:
    def line(cells: Sequence[str], tag: str) -> str:
        return f"<tr>{''.join(f'<{tag}>{html.escape(cell)}</{tag}>' for cell in cells)}</tr>"

    return (
        f"<table>{line(lines[0], 'th')}{''.join(line(cells, 'td') for cells in lines[1:])}</table>"
    )


def _option(value: str, text: str) -> str:
    return f'<option value="{html.escape(value)}">{html.escape(text)}</option>'


def _task_title(name: str) -> str:
    return tasks.MIG_BENCH_TASKS[name].short if name in tasks.MIG_BENCH_TASKS else name


def _chart(name: str, points: Sequence[tuple[float, float]]) -> str:
    """A line chart as inline SVG, with the ends of both axes and the last value as text."""
    finite = [(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y)]
    caption = html.escape(name)
    if finite:
        caption += f": {finite[-1][1]:.4g} at {finite[-1][0]:g}"
    if len(finite) < len(points):
        caption += f" ({len(points) - len(finite)} values not finite)"
    width, height, left, bottom, top = 340, 180, 52, 160, 10
    shapes = [
        f'<line x1="{left}" y1="{top}" x2="{left}" y2="{bottom}"/>',
        f'<line x1="{left}" y1="{bottom}" x2="{width - 8}" y2="{bottom}"/>',
    ]
    if finite:
        xs, ys = np.array(finite[:: math.ceil(len(finite) / _CHART_POINTS)], np.float64).T
        x_span, y_span = np.ptp(xs) or 1.0, np.ptp(ys) or 1.0
        across = left + (xs - xs.min()) / x_span * (width - 8 - left)
        down = bottom - (ys - ys.min()) / y_span * (bottom - top)
        line = " ".join(f"{x:.1f},{y:.1f}" for x, y in zip(across, down, strict=True))
        shapes += [
            f'<polyline points="{line}"/>',
            f'<text x="{left - 4}" y="{top + 8}" text-anchor="end">{ys.max():.3g}</text>',
            f'<text x="{left - 4}" y="{bottom}" text-anchor="end">{ys.min():.3g}</text>',
            f'<text x="{left}" y="{height - 6}">{xs.min():g}</text>',
            f'<text x="{width - 8}" y="{height - 6}" text-anchor="end">{xs.max():g}</text>',
        ]
    return (
        f'<figure><svg class="chart" viewBox="0 0 {width} {height}" width="{width}" '
        f'height="{height}">{"".join(shapes)}</svg><figcaption>{caption}</figcaption></figure>'
    )


# Images -------------------------------------------------------------------------------------------


def draw_boxes(image: Image.Image, drawings: Sequence[Drawing]) -> Image.Image:
    """A copy of an image with boxes drawn in, each with its caption on a plate of its colour.

    The font is the one inside Pillow, which has the letters of English.
    """
    canvas = image.convert("RGB")  # always a copy
    draw = ImageDraw.Draw(canvas)
    scale = min(max(max(canvas.size) / 1000, 0.5), 4)
    line, margin = max(2, round(3 * scale)), max(2, round(4 * scale))
    font = ImageFont.load_default(size=max(12, round(20 * scale)))
    for drawing in drawings:
        x1, y1, x2, y2 = boxes.grid_to_pixels(drawing.box, canvas.width, canvas.height)
        left, right = sorted((x1, x2))
        upper, lower = sorted((y1, y2))
        draw.rectangle((left, upper, right, lower), outline=drawing.colour, width=line)
        if drawing.caption:
            _draw_caption(draw, drawing, (left, upper), font, margin)
    return canvas


def _draw_caption(
    draw: ImageDraw.ImageDraw,
    drawing: Drawing,
    corner: tuple[float, float],
    font: ImageFont.FreeTypeFont,
    margin: int,
) -> None:
    """Puts the caption above the box's upper left corner, or where the image has room for it."""
    width, height = draw.im.size
    text = " ".join(drawing.caption.split())
    while len(text) > 3 and draw.textlength(text, font) + 2 * margin > width:
        text = text.removesuffix("...")[:-1] + "..."
    ascent, descent = font.getmetrics()
    plate_width = draw.textlength(text, font) + 2 * margin
    plate_height = ascent + descent + margin
    left = max(0, min(corner[0], width - plate_width))
    upper = corner[1] - plate_height
    if upper < 0:
        upper = max(0, min(corner[1], height - plate_height))
    draw.rectangle((left, upper, left + plate_width, upper + plate_height), fill=drawing.colour)
    red, green, blue = Image.new("RGB", (1, 1), drawing.colour).getpixel((0, 0))
    ink = "black" if 0.299 * red + 0.587 * green + 0.114 * blue > 140 else "white"
    draw.text((left + margin, upper + margin / 2), text, fill=ink, font=font)
