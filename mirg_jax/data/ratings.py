"""How well a model answers training rows, and the choice of rows by it.

`scripts/rate_rows.py` writes a file of ratings, a line for each row.
"""

import collections
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from mirg_jax.data.answers import overlaps
from mirg_jax.data.examples import Example, key_of
from mirg_jax.errors import DataError
from mirg_jax.files import lines
from mirg_jax.files.places import Place

HIT = 0.5  # IoU, as in evaluations
UNRATED = "without a rating"


class Rating(NamedTuple):
    """How well a row was answered.

    Attributes:
      mean_iou: mean over the answers of `answers.overlaps`.
      spread: its standard deviation.
      hit_rate: the share of answers with an overlap of 0.5 or more.
      direct: whether answers without thoughts were asked for.
    """

    mean_iou: float
    spread: float
    hit_rate: float
    direct: bool


def rate(
    examples: Sequence[Example], responses: Sequence[Sequence[str]], *, direct: bool
) -> list[dict[str, Any]]:
    """Returns rows' ratings as JSON values.

    Args:
      examples: the rows.
      responses: the answers to each, at least one.
      direct: whether answers without thoughts were asked for.
    """
    counts = [len(said) for said in responses]
    asked = [example for example, count in zip(examples, counts, strict=True) for _ in range(count)]
    found = overlaps([text for said in responses for text in said], asked)
    each = np.split(found, np.cumsum(counts)[:-1])
    return [
        {
            "key": key_of(example),
            "id": example.id,
            "source": example.source,
            "answers": len(own),
            "mean_iou": round(float(own.mean()), 6),
            "spread": round(float(own.std()), 6),
            "hit_rate": round(float((own >= HIT).mean()), 6),
            "direct": direct,
        }
        for example, own in zip(examples, each, strict=True)
    ]


def read(path: str | Place) -> dict[str, Rating]:
    """Reads a file of ratings.

    Returns:
      The rating of each row by `key_of`.

    Raises:
      DataError: if the file is missing or holds something else.
    """
    found = {}
    try:
        for number, row in enumerate(lines.rows(path), start=1):
            match row:
                case {
                    "key": str(key),
                    "mean_iou": int() | float() as mean,
                    "spread": int() | float() as spread,
                    "hit_rate": int() | float() as hits,
                    "direct": bool(direct),
                } if all(0 <= value <= 1 for value in (mean, spread, hits)):
                    # Of rows that are alike the first counts.
                    found.setdefault(key, Rating(float(mean), float(spread), float(hits), direct))
                case _:
                    raise DataError(
                        f"{path} line {number}: is no rating (fractions from 0 to 1); "
                        "give a ratings.jsonl that scripts/rate_rows.py wrote"
                    )
    except FileNotFoundError:
        raise DataError(
            f"data.ratings={str(path)!r}: is not there; scripts/rate_rows.py writes it"
        ) from None
    if not found:  # nothing, or what has no line break, as an unfinished line
        raise DataError(
            f"{path}: holds no ratings: it is empty, or not JSON lines; give a ratings.jsonl that "
            "scripts/rate_rows.py wrote"
        )
    return found


def _split(
    examples: Sequence[Example], reasons: Iterable[str]
) -> tuple[list[Example], collections.Counter[str]]:
    """Keeps the rows without a reason to leave them out, and counts the others by reason."""
    kept, dropped = [], collections.Counter[str]()
    for example, reason in zip(examples, reasons, strict=True):
        if reason:
            dropped[reason] += 1
        else:
            kept.append(example)
    return kept, dropped


def by_difficulty(
    examples: Sequence[Example], ratings: Mapping[str, Rating], bounds: tuple[float, float]
) -> tuple[list[Example], collections.Counter[str]]:
    """Keeps the rows whose mean IoU lies within bounds.

    Args:
      examples: the rows.
      ratings: their ratings.
      bounds: the lowest and the highest mean IoU.

    Returns:
      The rows kept, and how many were left out, by reason.
    """
    low, high = bounds

    def why_not(rating: Rating | None) -> str:
        if rating is None:
            return UNRATED
        if rating.mean_iou < low:
            return "too hard"
        return "too easy" if rating.mean_iou > high else ""

    return _split(examples, (why_not(ratings.get(key_of(example))) for example in examples))


def by_gain(
    examples: Sequence[Example], ratings: Mapping[str, Rating], gains: tuple[float, float]
) -> tuple[list[Example], collections.Counter[str]]:
    """Keeps the trajectories in which thinking gains over a direct answer.

    This is MG-Thinker's rule (arXiv 2609.37374), with gains of 0.1 and 0.2. Where the direct
    answers hit (mean IoU of 0.5 or more), the trajectory's own IoU must be larger by the first
    fraction of theirs; elsewhere by the second, or a hit. Rows without a trajectory are kept.

    Args:
      examples: the rows.
      ratings: ratings of direct answers to them.
      gains: the two fractions.

    Returns:
      The rows kept, and how many were left out, by reason.

    Raises:
      DataError: if a row's rating is of answers with thoughts.
    """
    if_hit, if_missed = gains
    told = [example for example in examples if example.response is not None]
    thoughts = iter(overlaps([example.response or "" for example in told], told))

    def why_not(example: Example) -> str:
        if example.response is None:
            return ""
        thought, rating = float(next(thoughts)), ratings.get(key_of(example))
        if rating is None:
            return UNRATED
        if not rating.direct:
            raise DataError(
                f"data.gain: {example.source or example.id} is rated by answers with thoughts; "
                "give ratings made with --config.evaluation.direct=True"
            )
        direct = rating.mean_iou
        if direct >= HIT:
            wanted, why = direct * (1 + if_hit), "answered as well without thoughts"
        else:
            wanted = min(HIT, max(direct * (1 + if_missed), 1e-6))
            why = "missed with thoughts too"
        return "" if thought >= wanted else why

    return _split(examples, map(why_not, examples))


def choose(
    examples: Sequence[Example],
    path: str,
    difficulty: tuple[float, ...],
    gain: tuple[float, ...],
) -> tuple[list[Example], str]:
    """Keeps rows by their ratings, as `data.difficulty` and `data.gain` ask for.

    Args:
      examples: the rows.
      path: the file of ratings.
      difficulty: bounds of `by_difficulty`; () keeps all.
      gain: gains of `by_gain`; () keeps all.

    Returns:
      The rows kept, and a line that says how many were left out.

    Raises:
      DataError: if the ratings can't be read, are of other answers, or no row is left.
    """
    ratings, kept, told = read(path), list(examples), []
    choices = ("difficulty", difficulty, by_difficulty), ("gain", gain, by_gain)
    for name, bounds, choice in choices:
        if bounds:
            low, high = bounds
            kept, dropped = choice(kept, ratings, (low, high))
            reasons = ", ".join(f"{count} {reason}" for reason, count in dropped.most_common())
            told.append(f"data.{name}={low:g},{high:g} leaves out {reasons or 'none'}")
    line = f"{path}: of {len(examples)} rows {len(kept)} are kept; {'; '.join(told)}"
    if not kept:
        raise DataError(f"{line}; widen the bounds, or rate these rows")
    return kept, line
