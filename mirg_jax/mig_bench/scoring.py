"""Scoring of a system's responses on MIG-Bench, by one of two protocols.

* `authors`: exactly the published evaluation. The first box found anywhere in the response by a
  fixed list of patterns is scored. The image is not checked.
* `answer`: for models that think first. The box of `<answer>` is scored, never one of the thoughts;
  the image index and the format are scored too. Without an answer block the first box after the
  thoughts is scored, so that plain grounding models don't get zero.

In both, an intersection over union of 0.5 or more is a hit, as in the authors' code; with `strict`
only more than 0.5, as in the paper's text. The benchmark's boxes are fractions of the image from 0
to 1, with the origin at the top left; images count from 1.
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
from mirg_jax.mig_bench import box_forms
from mirg_jax.mig_bench.benchmark import Row
from mirg_jax.mig_bench.intervals import Interval, bootstrap, bootstrap_average
from mirg_jax.mig_bench.parsing import ParsedAnswer, parse_answer, parse_authors, stretch_y

Protocol = Literal["answer", "authors"]

HIT = 0.5
THRESHOLDS = (0.3, 0.5, 0.7, 0.75)


@dataclasses.dataclass(frozen=True)
class RowScore:
    """The score of one row.

    Attributes:
      index: the row's number in its file.
      task: the row's task.
      box: the predicted box; None if there is none.
      iou: intersection over union with the row's answer.
      hit: whether the IoU is high enough.
      image: number of the predicted image, from 1; None if there is none.
      target_image: number of the image that contains the answer; None if it is unknown.
      format_ok: whether the format is right; None if the protocol doesn't check it.
    """

    index: int
    task: str
    box: Fractions | None
    iou: float
    hit: bool
    image: int | None
    target_image: int | None
    format_ok: bool | None


@dataclasses.dataclass(frozen=True)
class Summary:
    """The scores of a set of rows, as fractions of 1.

    Attributes:
      n: number of rows.
      accuracy: fraction of rows at or (strict) above each IoU threshold.
      interval: the hit rate with its 95 % interval.
      mean_iou: mean of the rows' IoUs.
      image_n: number of rows whose target image is known.
      image_accuracy: fraction of those where the right image is named; None if there are none or
        the protocol doesn't check it.
      format_rate: fraction of rows with the right format; None if the protocol doesn't check it.
    """

    n: int
    accuracy: dict[float, float]
    interval: Interval
    mean_iou: float
    image_n: int
    image_accuracy: float | None
    format_rate: float | None

    @property
    def hit_rate(self) -> float:
        """The fraction of rows that are hit."""
        return self.accuracy[HIT]


@dataclasses.dataclass(frozen=True)
class Scores:
    """The scores of a run.

    Attributes:
      protocol: as given to `score`, like the next three.
      skip_impossible: whether rows with an inverted answer were left out.
      scale_y: whether the authors' correction for Migician was applied.
      strict: whether an IoU of exactly a threshold is below it.
      missing: number of scored rows without a response, which count as misses.
      unreadable: by row index, why a response, or the box that counts, can't be read.
      other_form: number of responses without a box in our format that have one in another format.
      without_box: the first response, if no response has a box in any format; None otherwise.
      overall: the scores over all rows.
      average: mean of the tasks' hit rates, the paper's AVE.
      average_interval: the same with its 95 % interval.
      spontaneous: mean hit rate of the tasks of this group; None if there are none.
      referential: mean hit rate of the tasks of this group; None if there are none.
      tasks: the scores by task.
      rows: the scores by row.
    """

    protocol: Protocol
    skip_impossible: bool
    scale_y: bool
    strict: bool
    missing: int
    unreadable: dict[int, str]
    other_form: int
    without_box: str | None
    overall: Summary
    average: float
    average_interval: Interval
    spontaneous: float | None
    referential: float | None
    tasks: dict[str, Summary]
    rows: tuple[RowScore, ...]

    def to_json(self) -> dict[str, Any]:
        """Returns the scores as dictionaries, lists and numbers, for `json.dump`."""
        return dataclasses.asdict(self)


def score(
    rows: Sequence[Row],
    responses: Sequence[str | None],
    protocol: Protocol = "answer",
    skip_impossible: bool = False,
    scale_y: bool = False,
    strict: bool = False,
    unreadable: Mapping[int, str] | None = None,
    direct: bool = False,
) -> Scores:
    """Scores one response per row.

    Args:
      rows: all or some rows of a benchmark.
      responses: the responses to these rows, in the same order; None counts as a miss.
      protocol: what is scored; see the module.
      skip_impossible: whether to leave out rows whose answer is inverted, which can't be hit.
      scale_y: whether to apply the authors' correction for their own model, Migician.
      strict: whether an IoU must exceed a threshold; by default it may be equal.
      unreadable: by row index, why a response, or the box that counts, can't be read.
      direct: whether answers without thoughts were asked for, which is then the right format.

    Raises:
      DataError: if no row is left to score.
      ValueError: if the numbers of rows and responses differ, or the protocol is unknown.
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
        _parse(response or "", len(row.images), protocol, scale_y, direct)
        for row, response in scored
    ]
    above = operator.gt if strict else operator.ge
    row_scores = _score_rows([row for row, _ in scored], parsed, above)
    by_task = _by_task(row_scores)
    summaries = {name: _summarise(group, above) for name, group in by_task.items()}
    return Scores(
        protocol=protocol,
        skip_impossible=skip_impossible,
        scale_y=scale_y,
        strict=strict,
        missing=sum(response is None for _, response in scored),
        unreadable=dict(unreadable or {}),
        other_form=sum(
            box_forms.has_box(response or "")
            for (_, response), answer in zip(scored, parsed, strict=True)
            if protocol == "answer" and answer.box is None
        ),
        without_box=_first_without_box([response for _, response in scored], parsed),
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


def _score_rows(
    rows: Sequence[Row], parsed: Sequence[ParsedAnswer], above: Callable[[float, float], bool]
) -> tuple[RowScore, ...]:
    """Compares each row's answer with its true box."""
    predicted = np.array([answer.box or (0, 0, 0, 0) for answer in parsed], np.float64)
    truth = np.array([row.answer for row in rows], np.float64)
    with np.errstate(over="ignore"):  # an area of hundreds of digits: the IoU is 0 all the same
        ious = boxes.iou(predicted, truth).tolist()
    return tuple(
        RowScore(
            index=row.index,
            task=row.task,
            box=answer.box,
            iou=iou,
            hit=above(iou, HIT),
            image=answer.image,
            target_image=row.target_image,
            format_ok=answer.format_ok,
        )
        for row, answer, iou in zip(rows, parsed, ious, strict=True)
    )


def _by_task(scores: Sequence[RowScore]) -> dict[str, list[RowScore]]:
    """Groups rows by task, in the benchmark's order, without tasks that have none."""
    found: dict[str, list[RowScore]] = {name: [] for name in tasks.MIG_BENCH_TASKS}
    for row in scores:
        found.setdefault(row.task, []).append(row)
    return {name: group for name, group in found.items() if group}


def _first_without_box(
    responses: Sequence[str | None], parsed: Sequence[ParsedAnswer]
) -> str | None:
    """Returns the first response if none has a box."""
    said = [response for response in responses if response is not None]
    if any(answer.box for answer in parsed) or any(map(box_forms.has_box, said)):
        return None
    return next(iter(said), None)


def _is_possible(row: Row) -> bool:
    x1, y1, x2, y2 = row.answer
    return x1 < x2 and y1 < y2


def _parse(
    response: str, num_images: int, protocol: Protocol, scale_y: bool, direct: bool
) -> ParsedAnswer:
    """Reads a response by a protocol."""
    if protocol == "authors":
        return ParsedAnswer(parse_authors(response, scale_y), None, None)
    answer = parse_answer(response, num_images, direct=direct)
    if answer.box and scale_y:
        answer = answer._replace(box=stretch_y(answer.box))
    return answer


def _summarise(rows: Sequence[RowScore], above: Callable[[float, float], bool]) -> Summary:
    located = [row for row in rows if row.target_image is not None]
    judged = rows[0].format_ok is not None  # whether the protocol checks image and format
    return Summary(
        n=len(rows),
        accuracy={level: _mean([above(row.iou, level) for row in rows]) for level in THRESHOLDS},
        interval=bootstrap(np.array([row.hit for row in rows])),
        mean_iou=_mean([row.iou for row in rows]),
        image_n=len(located),
        image_accuracy=_mean([row.image == row.target_image for row in located])
        if judged and located
        else None,
        format_rate=_mean([bool(row.format_ok) for row in rows]) if judged else None,
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
