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
import math
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from mirg_jax.data.mig_bench_rows import Fractions
from mirg_jax.errors import DataError
from mirg_jax.grounding import boxes, tasks
from mirg_jax.mig_bench.benchmark import Row
from mirg_jax.mig_bench.intervals import Interval, bootstrap, bootstrap_average
from mirg_jax.mig_bench.parsing import parse_answer, parse_authors, stretch_y

Protocol = Literal["answer", "authors"]

HIT = 0.5
THRESHOLDS = (0.3, 0.5, 0.7, 0.75)


@dataclasses.dataclass(frozen=True)
class RowScore:
    """One scored row of the benchmark."""

    index: int  # the row's, in its file
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
      rows: of a benchmark, all or some.
      responses: one for each of these rows; None, a missing one, is a miss.
      protocol: see the module.
      skip_impossible: leave out rows whose own answer is inverted, which nothing can hit.
      scale_y: stretch y as the authors do for their own model, Migician.
      strict: a hit is an IoU above 0.5, not from 0.5 up; so for the other thresholds.

    Raises:
      DataError: every row was left out.
      ValueError: there are more or fewer responses than rows, or no such protocol.
    """
    if protocol not in ("answer", "authors"):
        raise ValueError(f"unknown protocol {protocol!r}: 'answer' or 'authors'")
    scored = [
        (row, response)
        for row, response in zip(rows, responses, strict=True)
        if _is_possible(row) or not skip_impossible
    ]
    if not scored:
        raise DataError("no row is left to score")

    parsed = [
        _parse(response or "", len(row.images), protocol, scale_y) for row, response in scored
    ]
    predicted = np.array([box or (0, 0, 0, 0) for box, _, _ in parsed], np.float64)
    truth = np.array([row.answer for row, _ in scored], np.float64)
    with np.errstate(over="ignore"):  # an area of hundreds of digits: the IoU is 0 all the same
        ious = boxes.iou(predicted, truth).tolist()
    above = operator.gt if strict else operator.ge
    row_scores = tuple(
        RowScore(row.index, row.task, box, iou, above(iou, HIT), image, row.target_image, format_ok)
        for (row, _), (box, image, format_ok), iou in zip(scored, parsed, ious, strict=True)
    )

    by_task: dict[str, list[RowScore]] = {name: [] for name in tasks.MIG_BENCH_TASKS}
    for row in row_scores:
        by_task.setdefault(row.task, []).append(row)
    by_task = {name: group for name, group in by_task.items() if group}
    summaries = {name: _summarise(group, above) for name, group in by_task.items()}
    return Scores(
        protocol=protocol,
        skip_impossible=skip_impossible,
        scale_y=scale_y,
        strict=strict,
        missing=sum(response is None for _, response in scored),
        overall=_summarise(row_scores, above),
        average=_mean([summary.hit_rate for summary in summaries.values()]),
        average_interval=bootstrap_average(
            [np.array([row.hit for row in group]) for group in by_task.values()]
        ),
        spontaneous=_group_mean(summaries, tasks.SPONTANEOUS),
        referential=_group_mean(summaries, tasks.REFERENTIAL),
        tasks=summaries,
        rows=row_scores,
    )


def _is_possible(row: Row) -> bool:
    x1, y1, x2, y2 = row.answer
    return x1 < x2 and y1 < y2


def _parse(
    response: str, num_images: int, protocol: Protocol, scale_y: bool
) -> tuple[Fractions | None, int | None, bool | None]:
    """The box, its image and whether the format is right, as far as the protocol looks at them."""
    if protocol == "authors":
        return parse_authors(response, scale_y), None, None
    box, image, format_ok = parse_answer(response, num_images)
    return stretch_y(box) if box and scale_y else box, image, format_ok


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
