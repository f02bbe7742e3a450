"""MIG-Bench scores of a system's responses, by the benchmark authors' rule or by the answer.

Two protocols, named in every result:

* `authors`: the published evaluation to the letter. The first box found anywhere in the response
  by a fixed list of patterns counts. The image is not looked at.
* `answer`: for models that think first. The box of `<answer>` counts, never one of the thoughts,
  and the image index and the format are scored beside it. Without an answer block the first box
  after the thoughts counts, so that plain grounding models are not scored at zero.

In both, a box with an intersection over union of 0.5 or more is a hit, or, `strict`, of more than
0.5: the authors' code has the first, the paper's words the second. The benchmark's boxes are
fractions of the image, 0 to 1, origin top left; images count from 1.
"""

import dataclasses
import json
import math
import operator
import pathlib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from mirg_jax.errors import DataError
from mirg_jax.grounding import boxes, grammar, tasks
from mirg_jax.mig_bench.intervals import Interval, bootstrap, bootstrap_average

Fractions = tuple[float, float, float, float]
Protocol = Literal["answer", "authors"]
Row = dict[str, Any]  # one row of a MIG-Bench file, as it is in the file

HIT = 0.5
THRESHOLDS = (0.3, 0.5, 0.7, 0.75)


# Reading ------------------------------------------------------------------------------------------


def load_benchmark(path: str | pathlib.Path) -> list[Row]:
    """Reads the rows of a MIG-Bench file as they are, impossible answers included.

    Raises:
      DataError: the file is missing, cut or empty, or a row lacks what scoring needs.
    """
    text = _read(path)
    try:
        rows = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not valid JSON ({error}); is the file cut?") from error
    if not isinstance(rows, list) or not rows:
        raise DataError(f"{path}: expected a non-empty list of MIG-Bench rows")
    for index, row in enumerate(rows):
        if problem := _row_problem(row):
            raise DataError(f"{path} row {index}: {problem}")
    return rows


def spread(count: int, limit: int) -> list[int]:
    """At most `limit` of so many rows, evenly over the file; 0 for all."""
    if 0 < limit < count:
        return [i * count // limit for i in range(limit)]
    return list(range(count))


def load_predictions(path: str | pathlib.Path, count: int) -> list[str | None]:
    """Reads responses, one line of JSON each: `{"index": i, "response": "…"}`, in any order.

    Args:
      path: the JSONL file. Other keys on a line are ignored, and so are blank lines.
      count: rows in the benchmark; an index runs from 0 to `count - 1`.

    Returns:
      A response for every row of the benchmark, None where the file has none.

    Raises:
      DataError: the file is missing or holds no prediction, or a line is malformed, repeats an
        index, or has one out of range.
    """
    responses: list[str | None] = [None] * count
    for number, line in enumerate(_read(path).split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{path} line {number}"
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{where}: not valid JSON ({error})") from error
        match entry:
            case {"index": int(index), "response": str(response)} if not isinstance(index, bool):
                pass
            case _:
                raise DataError(f'{where}: expected {{"index": integer, "response": "text"}}')
        if not 0 <= index < count:
            raise DataError(f"{where}: index {index} is not a row of the benchmark, 0..{count - 1}")
        if responses[index] is not None:
            raise DataError(f"{where}: a second response for index {index}; keep one a row")
        responses[index] = response
    if count and all(response is None for response in responses):
        raise DataError(f"{path}: holds no predictions")
    return responses


def _read(path: str | pathlib.Path) -> str:
    try:
        return pathlib.Path(path).read_text(encoding="utf-8-sig")
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text (byte {error.start})") from error


def _row_problem(row: Any) -> str | None:
    if not isinstance(row, dict):
        return "not an object"
    for key in ("task", "question"):
        if not isinstance(row.get(key), str) or not row[key]:
            return f"'{key}' is missing or not a text"
    images = row.get("images")
    if not isinstance(images, list) or not images or not all(isinstance(i, str) for i in images):
        return "'images' is missing or not a list of paths"
    answer = row.get("answer")
    if not isinstance(answer, list) or len(answer) != 4 or not all(map(_is_fraction, answer)):
        return "'answer' is not a list of four fractions x1, y1, x2, y2 of the image, 0 to 1"
    return None


def _is_fraction(value: Any) -> bool:
    # The published file has answers up to 1.048; a value on the 0..1000 grid is a mistake.
    return type(value) in (int, float) and 0 <= value < 2


# Parsing ------------------------------------------------------------------------------------------

_INT, _FLOAT = r"(\d+)", r"(\d+\.\d+)"
# The authors' patterns in the authors' order. That only some allow blanks is theirs too.
_AUTHORS_PATTERNS = tuple(
    re.compile(pattern)
    for pattern in (
        rf"\({_INT},\s*{_INT}\),\s*\({_INT},\s*{_INT}\)",
        rf"\[{_FLOAT},\s*{_FLOAT},\s*{_FLOAT},\s*{_FLOAT}\]",
        rf"\({_FLOAT},{_FLOAT}\),\({_FLOAT},{_FLOAT}\)",
        rf"\({_FLOAT},\s*{_FLOAT},\s*{_FLOAT},\s*{_FLOAT}\)",
        rf"\[{_INT},\s*{_INT},\s*{_INT},\s*{_INT}\]",
        rf"<box>{_INT}\s+{_INT}\s+{_INT}\s+{_INT}</box>",
    )
)


def parse_authors(text: str, scale_y: bool = False) -> Fractions | None:
    """The box that the benchmark's authors read from a response, None without one.

    The first pattern that occurs anywhere decides. If it occurs once, values from 1 up are grid
    coordinates and divided by 1000; if it occurs several times, values above 1 are, and the first
    box counts. The result may be inverted or lie outside the image.

    Args:
      text: the response.
      scale_y: also stretch y as they do for their own model, Migician, which they do only when
        the pattern occurs once.
    """
    for pattern in _AUTHORS_PATTERNS:
        matches = pattern.findall(text)
        if not matches:
            continue
        values = [float(digits) for digits in matches[0]]
        if not all(map(math.isfinite, values)):
            return None  # hundreds of digits; the authors' IoU is 0 or undefined
        if len(matches) > 1:
            return tuple(value / 1000 if value > 1 else value for value in values)
        box = tuple(value / 1000 if value >= 1 else value for value in values)
        return stretch_y(box) if scale_y else box
    return None


def parse_answer(
    text: str, num_images: int | None = None
) -> tuple[Fractions | None, int | None, bool]:
    """The first object of `<answer>`: its box, its image, and whether the format is right.

    Without an answer block, the first box of the text after the thoughts. The box is None where
    there is no valid one; the image, from 1, is None where the response names none.
    """
    response = grammar.parse_response(text, num_images)
    if not response.objects:
        return None, None, response.format_ok
    first = response.objects[0]
    return boxes.grid_to_fraction(first.box), first.image, response.format_ok


def stretch_y(box: Fractions) -> Fractions:
    """The authors' correction for Migician: y1 by 1.05 and y2 by 1.10, at most 0.999."""
    x1, y1, x2, y2 = box
    return x1, round(min(y1 * 1.05, 0.999), 3), x2, round(min(y2 * 1.10, 0.999), 3)


def target_image(row: Row) -> int | None:
    """The image, from 1, that a benchmark row's answer lies in, None where the row doesn't say."""
    text = row["question"]
    if row["task"] == "group_grounding":  # the question doesn't tell: finding it is the task
        text = str(row.get("additional_info") or "")
    return grammar.find_image_index(text, len(row["images"]))


# Scoring ------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class RowScore:
    """One scored row of the benchmark."""

    index: int
    task: str
    box: Fractions | None  # predicted
    iou: float
    hit: bool
    image: int | None  # predicted, from 1
    target_image: int | None
    format_ok: bool | None  # None: not looked at by the protocol


@dataclasses.dataclass(frozen=True)
class Summary:
    """Figures of a set of rows; shares are 0 to 1."""

    n: int
    accuracy: dict[float, float]  # IoU threshold -> share of rows at or (strict) above it
    interval: Interval  # 95 % of the hit rate
    mean_iou: float
    image_n: int  # rows whose target image is known
    image_accuracy: float | None  # of those; naming no image counts as wrong
    format_rate: float | None

    @property
    def hit_rate(self) -> float:
        return self.accuracy[HIT]


@dataclasses.dataclass(frozen=True)
class Scores:
    """A run's scores; `average`, `spontaneous` and `referential` are means of task hit rates."""

    protocol: Protocol
    skip_impossible: bool
    scale_y: bool
    strict: bool
    missing: int  # scored rows without a response, counted as misses
    overall: Summary  # all rows as one set
    average: float  # the paper's AVE
    average_interval: Interval  # its 95 %
    spontaneous: float | None  # None: no task of the group present
    referential: float | None
    tasks: dict[str, Summary]
    rows: tuple[RowScore, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain dicts, lists and numbers, for `json.dump`."""
        return dataclasses.asdict(self)


def score(
    rows: Sequence[Row],
    responses: Sequence[str | None],
    protocol: Protocol = "answer",
    skip_impossible: bool = False,
    scale_y: bool = False,
    strict: bool = False,
) -> Scores:
    """Scores one response a row.

    Args:
      rows: rows as `load_benchmark` gives them.
      responses: as many; None, a missing one, is a miss.
      protocol: see the module.
      skip_impossible: leave out rows whose own answer is inverted, which nothing can hit.
      scale_y: stretch y as the authors do for their own model, Migician.
      strict: a hit is an IoU above 0.5, not from 0.5 up; so for the other thresholds.

    Raises:
      DataError: every row was left out.
      ValueError: as many responses as rows are needed, and one of the two protocols.
    """
    if protocol not in ("answer", "authors"):
        raise ValueError(f"unknown protocol {protocol!r}: 'answer' or 'authors'")
    parsed = []
    for index, (row, response) in enumerate(zip(rows, responses, strict=True)):
        x1, y1, x2, y2 = row["answer"]
        if skip_impossible and not (x1 < x2 and y1 < y2):
            continue
        box, image, format_ok = None, None, None
        if protocol == "authors":
            box = parse_authors(response or "", scale_y)
        else:
            box, image, format_ok = parse_answer(response or "", len(row["images"]))
            box = stretch_y(box) if box and scale_y else box
        parsed.append((index, row, box, image, format_ok))
    if not parsed:
        raise DataError("no row is left to score")

    predicted = np.array([box or (0, 0, 0, 0) for _, _, box, _, _ in parsed], np.float64)
    truth = np.array([row["answer"] for _, row, _, _, _ in parsed], np.float64)
    with np.errstate(over="ignore"):  # an area of hundreds of digits: the IoU is 0 all the same
        ious = boxes.iou(predicted, truth).tolist()
    above = operator.gt if strict else operator.ge
    scored = tuple(
        RowScore(index, row["task"], box, iou, above(iou, HIT), image, target_image(row), format_ok)
        for (index, row, box, image, format_ok), iou in zip(parsed, ious, strict=True)
    )

    by_task: dict[str, list[RowScore]] = {name: [] for name in tasks.MIG_BENCH_TASKS}
    for row in scored:
        by_task.setdefault(row.task, []).append(row)
    by_task = {name: group for name, group in by_task.items() if group}
    summaries = {name: _summarise(group, above) for name, group in by_task.items()}
    return Scores(
        protocol=protocol,
        skip_impossible=skip_impossible,
        scale_y=scale_y,
        strict=strict,
        missing=sum(responses[row.index] is None for row in scored),
        overall=_summarise(scored, above),
        average=_mean([summary.hit_rate for summary in summaries.values()]),
        average_interval=bootstrap_average(
            [np.array([row.hit for row in group]) for group in by_task.values()]
        ),
        spontaneous=_group_mean(summaries, tasks.SPONTANEOUS),
        referential=_group_mean(summaries, tasks.REFERENTIAL),
        tasks=summaries,
        rows=scored,
    )


def _summarise(rows: Sequence[RowScore], above: Callable[[float, float], bool]) -> Summary:
    located = [row for row in rows if row.target_image is not None]
    judged = rows[0].format_ok is not None  # the protocol looks at image and format
    return Summary(
        n=len(rows),
        accuracy={level: _mean([above(row.iou, level) for row in rows]) for level in THRESHOLDS},
        interval=bootstrap(np.array([row.hit for row in rows])),
        mean_iou=_mean([row.iou for row in rows]),
        image_n=len(located),
        image_accuracy=_mean([row.image == row.target_image for row in located])
        if judged and located
        else None,
        format_rate=_mean([row.format_ok for row in rows]) if judged else None,
    )


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def _group_mean(summaries: Mapping[str, Summary], group: str) -> float | None:
    rates = [
        summary.hit_rate
        for name, summary in summaries.items()
        if name in tasks.MIG_BENCH_TASKS and tasks.MIG_BENCH_TASKS[name].group == group
    ]
    return _mean(rates) if rates else None


# Tables -------------------------------------------------------------------------------------------


def table_cells(named_scores: Mapping[str, Scores]) -> list[list[str]]:
    """A header and one line a run: hit rates in per cent, by task under the paper's short names.

    "95%" is the interval of AVE.
    """
    columns = {name: task.short for name, task in tasks.MIG_BENCH_TASKS.items()}
    for scores in named_scores.values():
        columns |= {name: name for name in scores.tasks if name not in columns}
    header = ["Model", "protocol", *columns.values(), "AVE", "95%", "Spont.", "Refer.", "all"]
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
    """`table_cells` as plain text."""
    return aligned(table_cells(named_scores), left=2)


def aligned(lines: Sequence[Sequence[str]], left: int) -> str:
    """Cells as plain text in columns, the first `left` of them aligned to the left."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column < left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )
