"""Training curves as HTML charts for a page or a notebook, with raw and smoothed lines."""

import html
import math
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float

from mirg_jax.errors import DataError
from mirg_jax.report import meanings
from mirg_jax.runs import metrics

Points = Sequence[tuple[float, float]]  # (step, value)

_MOST_POINTS = 500
_COLOURS = ("#1f77b4", "#e0700a", "#1a9a6c", "#8a5cc4", "#c83c78", "#8c6d31")
_WIDTH, _HEIGHT = 340, 180
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 332, 10, 160  # ends of the axes
_THIN = 'stroke-width="1" stroke-opacity="0.5"'
_THICK = 'stroke-width="2.2" stroke-linejoin="round"'
_ALONE = 'stroke-width="1.5"'  # for a line too short to be smoothed
_KEY = "thick: centred moving average; thin: each value"
_SHOWN = (
    "loss",
    "reward",
    "kl",
    "entropy",
    "completion_length",
    "zero_spread_fraction",
    "used_fraction",
    "below_gate_fraction",
    "logprob_diff",
    "cut_fraction",
    "grad_norm",
)


def training_curves(
    workdirs: Mapping[str, str | pathlib.Path],
) -> dict[str, dict[str, Points]]:
    """Reads the curves of training runs; runs of the same kind share charts.

    Args:
      workdirs: folders of the runs by name.

    Returns:
      The points by chart and run.

    Raises:
      DataError: if a folder has no metrics.jsonl that can be read, or a line of it is no metrics.
    """
    charts: dict[str, dict[str, Points]] = {}
    for run, workdir in workdirs.items():
        try:
            steps = metrics.read(workdir)
        except OSError as error:
            raise DataError(
                f"{metrics.path_in(workdir)}: cannot be read ({error.strerror}); is it a run's "
                "folder?"
            ) from None
        kind = "GRPO" if any("reward" in step for step in steps) else "SFT"
        names = dict.fromkeys(name for step in steps for name in step)
        shown = [name for name in _SHOWN if name in names]
        shown[2:2] = [name for name in names if name.startswith("reward_")]
        shown += sorted(name for name in names if name.startswith("task_"))
        shown += [name for name in names if name.startswith("eval") and name not in shown]
        for name in shown:
            charts.setdefault(f"{kind} {name}", {})[run] = [
                (step["step"], math.nan if step[name] is None else step[name])
                for step in steps
                if name in step
            ]
    return charts


def smooth(values: Float[np.ndarray, " n"], window: int) -> Float[np.ndarray, " n"]:
    """Computes a centred moving average.

    Only the finite values within the window are averaged, so there are fewer at both ends and
    around gaps. The result is NaN where there are none.

    Args:
      values: the values.
      window: number of values to average, odd; it may exceed the number of values.
    """
    if not len(values):
        return values
    finite = np.isfinite(values)
    scale = np.abs(values[finite]).max(initial=0.0) or 1.0  # keeps sums of large values finite
    half, ones = window // 2, np.ones(window)
    sums, counts = (
        np.convolve(each, ones)[half : half + len(values)]
        for each in (np.where(finite, values, 0.0) / scale, finite)
    )
    return np.where(counts > 0, sums / np.maximum(counts, 1) * scale, np.nan)


def smoothing_window(count: int) -> int:
    """Returns the window for a line of `count` points: about a tenth of them, at most 101, odd.

    For fewer than 20 points it is 1, which means no smoothing.
    """
    return 2 * min(count // 20, 50) + 1


def chart(title: str, lines: Mapping[str, Points]) -> str:
    """Returns a line chart as HTML, with the ends of both axes and each line's last value as text.

    Below the title of a curve of `training_curves` stands what it means.

    A line of 20 points or more is drawn twice: its values thin and pale, and over them their moving
    average as a thick line. The chart needs no style sheet. Values that are not finite are counted
    in the legend.

    Args:
      title: heading of the chart, such as "GRPO reward".
      lines: the points of each line by name.
    """
    curves = {name: _Curve(points) for name, points in lines.items()}
    shapes = [f'<path d="M{_LEFT} {_TOP}V{_BOTTOM}H{_RIGHT}" fill="none" stroke="#888"/>']
    drawn = [(_colour(i), curve) for i, curve in enumerate(curves.values()) if len(curve.values)]
    if drawn:
        every = np.concatenate([curve.values for _, curve in drawn])
        low, high = every.min(axis=0), every.max(axis=0)
        for colour, curve in drawn:
            if curve.window > 1:
                shapes.append(_polyline(curve.values, low, high, colour, _THIN))
        for colour, curve in drawn:  # over all thin lines
            stroke = _THICK if curve.window > 1 else _ALONE
            shapes.append(_polyline(curve.smoothed, low, high, colour, stroke))
        shapes += [
            f'<text x="{_LEFT - 4}" y="{_TOP + 8}" text-anchor="end">{_tick(high[1])}</text>',
            f'<text x="{_LEFT - 4}" y="{_BOTTOM}" text-anchor="end">{_tick(low[1])}</text>',
            f'<text x="{_LEFT}" y="{_HEIGHT - 6}">{low[0]:g}</text>',
            f'<text x="{_RIGHT}" y="{_HEIGHT - 6}" text-anchor="end">{high[0]:g}</text>',
        ]
    legend = "".join(
        f'<br><svg width="9" height="9"><rect width="9" height="9" fill="{_colour(number)}"/>'
        f"</svg> {html.escape(_last(name, curve))}"
        for number, (name, curve) in enumerate(curves.items())
    )
    if meaning := meanings.of_curve(title):
        legend = f"<br>{html.escape(meaning)}{legend}"
    if any(curve.window > 1 for curve in curves.values()):
        legend += f"<br>{_KEY}"
    return (
        f'<figure><svg role="img" aria-label="{html.escape(title)}" '
        f'viewBox="0 0 {_WIDTH} {_HEIGHT}" width="{_WIDTH}" height="{_HEIGHT}" font-size="11" '
        f'fill="#888">{"".join(shapes)}</svg>'
        f"<figcaption><b>{html.escape(title)}</b>{legend}</figcaption></figure>"
    )


def _polyline(
    points: Float[np.ndarray, "n 2"],
    low: Float[np.ndarray, "2"],
    high: Float[np.ndarray, "2"],
    colour: str,
    stroke: str,
) -> str:
    """Returns an SVG line in a chart whose axes range from `low` to `high`."""
    points = _thinned(points)
    # Halved, since the span of two large numbers may not be finite.
    span = np.where(high > low, high / 2 - low / 2, 1.0)
    across, up = ((points / 2 - low / 2) / span).T
    corners = " ".join(
        f"{_LEFT + x * (_RIGHT - _LEFT):.1f},{_BOTTOM - y * (_BOTTOM - _TOP):.1f}"
        for x, y in zip(across, up, strict=True)
    )
    return f'<polyline points="{corners}" fill="none" stroke="{colour}" {stroke}/>'


def _thinned(points: Float[np.ndarray, "n 2"]) -> Float[np.ndarray, "m 2"]:
    """Returns at most `_MOST_POINTS` points: the lowest and highest of each block of neighbours.

    Taking every k-th point could hide peaks, and whatever repeats every k steps.
    """
    size = 2 * math.ceil(len(points) / _MOST_POINTS)
    if size <= 2:
        return points
    kept: list[int] = []
    for start in range(0, len(points), size):
        values = points[start : start + size, 1]
        kept += sorted({start + int(values.argmin()), start + int(values.argmax())})
    return points[kept]


class _Curve:
    """A line of a chart.

    Attributes:
      values: its finite points.
      missing: number of points that are not finite.
      window: number of points that each smoothed value is the mean of.
      smoothed: the points of the moving average.
    """

    def __init__(self, points: Points):
        placed = np.array([(x, y) for x, y in points if math.isfinite(x)], np.float64)
        placed = placed.reshape(-1, 2)
        finite = np.isfinite(placed[:, 1])
        self.values = placed[finite]
        self.missing = len(points) - len(self.values)
        self.window = smoothing_window(len(self.values))
        averaged = np.column_stack([placed[:, 0], smooth(placed[:, 1], self.window)])
        self.smoothed = averaged[np.isfinite(averaged[:, 1])]


def _tick(value: float) -> str:
    """Formats a value to fit beside the axis."""
    text = f"{value:.3g}"
    return text if len(text) <= 7 else f"{value:.1e}"


def _colour(number: int) -> str:
    return _COLOURS[number % len(_COLOURS)]


def _last(name: str, curve: _Curve) -> str:
    """Returns a line's name with its last value, for the legend."""
    text = name
    if len(curve.values):
        step, value = curve.values[-1]
        text += f": {value:.4g} at {step:g}"
    if curve.window > 1:
        _, smoothed = curve.smoothed[-1]
        text += f"; smoothed over {curve.window} points: {smoothed:.4g}"
    return text + (f" ({curve.missing} values not finite)" if curve.missing else "")
