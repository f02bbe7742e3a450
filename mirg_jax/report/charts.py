"""Training curves as charts that a page or a notebook can hold."""

import html
import math
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np

from mirg_jax.errors import DataError
from mirg_jax.runs import metrics

Points = Sequence[tuple[float, float]]  # (step, value)

_MOST_POINTS = 500
_COLOURS = ("#1f77b4", "#e0700a", "#1a9a6c", "#8a5cc4", "#c83c78", "#8c6d31")
_SHOWN = (
    "loss",
    "reward",
    "kl",
    "completion_length",
    "zero_spread_fraction",
    "logprob_diff",
    "cut_fraction",
    "grad_norm",
)


def training_curves(
    workdirs: Mapping[str, str | pathlib.Path],
) -> dict[str, dict[str, Points]]:
    """The curves of training runs, by chart and in it by run; runs of one kind share charts.

    Raises:
      DataError: a folder has no metrics.jsonl that can be read.
    """
    charts: dict[str, dict[str, Points]] = {}
    for run, workdir in workdirs.items():
        try:
            steps = metrics.read(workdir)
        except (OSError, ValueError) as error:
            raise DataError(
                f"{workdir}: no metrics.jsonl that can be read ({error}); is it a run's folder?"
            ) from error
        kind = "GRPO" if any("reward" in step for step in steps) else "SFT"
        names = dict.fromkeys(name for step in steps for name in step)
        shown = [name for name in _SHOWN if name in names]
        shown[2:2] = [name for name in names if name.startswith("reward_")]
        shown += [name for name in names if name.startswith("eval") and name not in shown]
        for name in shown:
            charts.setdefault(f"{kind} {name}", {})[run] = [
                (step["step"], math.nan if step[name] is None else step[name])
                for step in steps
                if name in step
            ]
    return charts


def chart(title: str, lines: Mapping[str, Points]) -> str:
    """A line chart as HTML, with the ends of both axes, and each line's last value as text.

    Styled by attributes, not by a page. Values that are not finite are counted, not drawn.
    """
    width, height, left, bottom, top, right = 340, 180, 52, 160, 10, 332
    finite = {
        name: np.array(
            [(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y)], np.float64
        ).reshape(-1, 2)
        for name, points in lines.items()
    }
    shapes = [f'<path d="M{left} {top}V{bottom}H{right}" fill="none" stroke="#888"/>']
    if any(map(len, finite.values())):
        every = np.concatenate(list(finite.values()))
        # Halved, since the span of two large numbers may be none.
        low, high = every.min(axis=0), every.max(axis=0)
        span = np.where(high > low, high / 2 - low / 2, 1.0)
        for number, points in enumerate(finite.values()):
            points = points[:: max(1, math.ceil(len(points) / _MOST_POINTS))]
            across, up = ((points / 2 - low / 2) / span).T
            drawn = " ".join(
                f"{left + x * (right - left):.1f},{bottom - y * (bottom - top):.1f}"
                for x, y in zip(across, up, strict=True)
            )
            if drawn:
                shapes.append(
                    f'<polyline points="{drawn}" fill="none" stroke="{_colour(number)}" '
                    'stroke-width="1.5"/>'
                )
        shapes += [
            f'<text x="{left - 4}" y="{top + 8}" text-anchor="end">{high[1]:.3g}</text>',
            f'<text x="{left - 4}" y="{bottom}" text-anchor="end">{low[1]:.3g}</text>',
            f'<text x="{left}" y="{height - 6}">{low[0]:g}</text>',
            f'<text x="{right}" y="{height - 6}" text-anchor="end">{high[0]:g}</text>',
        ]
    legend = "".join(
        f'<br><svg width="9" height="9"><rect width="9" height="9" fill="{_colour(number)}"/>'
        f"</svg> {html.escape(_last(name, points, finite[name]))}"
        for number, (name, points) in enumerate(lines.items())
    )
    return (
        f'<figure><svg role="img" aria-label="{html.escape(title)}" viewBox="0 0 {width} {height}" '
        f'width="{width}" height="{height}" font-size="11" fill="#888">{"".join(shapes)}</svg>'
        f"<figcaption><b>{html.escape(title)}</b>{legend}</figcaption></figure>"
    )


def _colour(number: int) -> str:
    return _COLOURS[number % len(_COLOURS)]


def _last(name: str, points: Points, finite: np.ndarray) -> str:
    text = f"{name}: {finite[-1][1]:.4g} at {finite[-1][0]:g}" if len(finite) else name
    missing = len(points) - len(finite)
    return text + (f" ({missing} values not finite)" if missing else "")
