"""Curves: points where they belong, whatever values there are."""

import html
import json
import math
import re

import numpy as np
import pytest

from mirg_jax.errors import DataError
from mirg_jax.report import charts, meanings
from mirg_jax.report.charts import chart, smooth, smoothing_window, training_curves
from mirg_jax.runs import metrics

NAN, INF = float("nan"), float("inf")


def lines(text):
    return [
        [tuple(map(float, point.split(","))) for point in drawn.split()]
        for drawn in re.findall(r'<polyline points="([^"]*)"', text)
    ]


def test_points_are_drawn_in_proportion():
    text = chart("loss", {"a": [(0, 3.0), (10, 1.0), (20, NAN), (30, 2.0)]})
    ((x0, y0), (x1, y1), (x2, y2)) = lines(text)[0]
    assert x0 < x1 < x2 and (x1 - x0) == pytest.approx((x2 - x0) / 3, abs=0.1)
    assert y0 < y2 < y1 and y2 == pytest.approx((y0 + y1) / 2, abs=0.1)  # up is more
    assert "a: 2 at 30 (1 values not finite)" in text
    assert all(f">{end}</text>" in text for end in ("3", "1", "0", "30"))


def test_the_ends_of_an_axis_are_short():
    text = chart("loss", {"a": [(0, -0.000677123), (1, 123456.7)]})
    assert re.findall(r'text-anchor="end">([^<]*)</text>', text) == ["1.2e+05", "-6.8e-04", "1"]


def test_runs_share_axes():
    one, two = lines(chart("loss", {"a": [(0, 0.0), (10, 4.0)], "b": [(5, 2.0), (20, 2.0)]}))
    (left, low), (_, high) = one
    (middle, y), (right, _) = two
    assert y == pytest.approx((low + high) / 2, abs=0.1)
    assert (middle - left) == pytest.approx((right - left) / 4, abs=0.1)


def test_what_one_watches_has_curves(tmp_path):
    watched = ["reward", "entropy", "reward_spread", "used_fraction", "task_image/diff"]
    rows = [{"step": 1} | dict.fromkeys(watched, 0.5), {"step": 2, "reward": 1.0}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    curves = training_curves({"a": tmp_path})
    assert set(curves) == {f"GRPO {name}" for name in watched}
    assert curves["GRPO task_image/diff"] == {"a": [(1, 0.5)]}  # a task isn't in every step


@pytest.mark.parametrize(
    "points", [[], [(0, NAN)], [(5, 0.0)], [(0, -1e308), (1, 1e308), (2, INF)]]
)
def test_odd_values_break_nothing(points):
    text = chart("<b>", {"<i>": points})
    assert (
        "nan" not in text and "inf" not in text and "<b>&lt;b&gt;</b>" in text and "<i>" not in text
    )


def test_long_runs_are_thinned():
    raw, smoothed = lines(chart("x", {"a": [(step, step**2) for step in range(5000)]}))
    assert 250 < len(raw) <= 500 and 250 < len(smoothed) <= 500
    # What recurs every ten steps, and a single peak, are drawn.
    (raw, _) = lines(chart("x", {"a": [(step, -(step % 10 == 7)) for step in range(5000)]}))
    assert len({y for _, y in raw}) == 2
    (raw, _) = lines(chart("x", {"a": [(step, step == 4321) for step in range(5000)]}))
    assert len({y for _, y in raw}) == 2


@pytest.mark.parametrize("window", [1, 3, 11, 101])
@pytest.mark.parametrize("count", [0, 1, 2, 30, 200])
@pytest.mark.parametrize("gaps", [0.0, 0.3, 0.95, 1.0])
def test_smoothing_is_the_mean_of_the_finite_values_around(window, count, gaps):
    rng = np.random.default_rng(count)
    values = rng.normal(size=count)
    values[rng.random(count) < gaps] = NAN
    values[:1] = INF
    expected = []
    for i in range(count):
        around = values[max(0, i - window // 2) : i + window // 2 + 1]
        around = around[np.isfinite(around)]
        expected.append(around.mean() if len(around) else NAN)
    found = smooth(values, window)
    assert found.shape == (count,)
    np.testing.assert_allclose(found, np.array(expected), rtol=1e-12, atol=1e-14)


def test_the_mean_of_large_values_is_finite():
    np.testing.assert_allclose(smooth(np.full(30, 1.5e308), 11), 1.5e308)


def test_the_window_is_a_tenth_of_the_points():
    assert [smoothing_window(n) for n in (0, 19, 20, 100, 500, 10**6)] == [1, 1, 3, 11, 51, 101]


def test_the_average_is_drawn_thick_over_the_pale_values():
    noise = np.random.default_rng(0).normal(size=200)
    points = [(step, 0.01 * step + value) for step, value in enumerate(noise)]
    points[50:60] = [(step, NAN) for step in range(50, 60)]
    text = chart("reward", {"long": points, "short": points[:19]})
    raw, average, short = lines(text)
    assert len(raw) == 190 and len(average) == 200 and len(short) == 19
    assert short == raw[:19]
    assert np.std(np.diff(np.array(average)[:, 1])) < 0.2 * np.std(np.diff(np.array(raw)[:, 1]))
    widths, opacities = (
        re.findall(rf'<polyline[^>]* stroke-{name}="([^"]*)"', text)
        for name in ("width", "opacity")
    )
    thin, thick, alone = map(float, widths)
    assert thin < alone < thick and len(opacities) == 1 and float(opacities[0]) <= 0.5
    last = math.fsum(value for _, value in points[-10:]) / 10
    told = f"long: {points[-1][1]:.4g} at 199; smoothed over 19 points: {last:.4g} (10 values"
    assert told in text
    assert "thick: centred moving average; thin: each value" in text


def test_a_short_run_is_drawn_as_it_is():
    text = chart("loss", {"a": [(step, step % 3) for step in range(19)]})
    assert len(lines(text)) == 1 and "average" not in text and "smoothed" not in text


def test_curves_of_runs_of_one_kind_share_charts(tmp_path):
    steps = {
        "sft": [{"step": 1, "loss": 2.0, "seconds": {}}, {"step": 2, "loss": None, "seconds": {}}],
        "exact": [{"step": 1, "loss": 3.0, "seconds": {}}],
        "grpo": [
            {"step": 1, "loss": 0.0, "reward": 2.0, "reward_mine": 1.0, "kl": 0.1},
            {"step": 2, "loss": 0.0, "reward": 2.5, "reward_mine": 1.0, "kl": 0.2, "eval_acc": 0.5},
        ],
    }
    for name, rows in steps.items():
        (tmp_path / name).mkdir()
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / name / "metrics.jsonl").write_text(text)
    found = training_curves({name: tmp_path / name for name in steps})
    assert set(found["SFT loss"]) == {"sft", "exact"} and set(found["GRPO loss"]) == {"grpo"}
    assert str(found["SFT loss"]["sft"]) == "[(1, 2.0), (2, nan)]"
    assert {"GRPO reward", "GRPO reward_mine", "GRPO kl"} < set(found)
    assert found["GRPO eval_acc"] == {"grpo": [(2, 0.5)]}
    assert not any("seconds" in name for name in found)
    with pytest.raises(DataError, match=r"metrics\.jsonl: cannot be read \(No such file"):
        training_curves({"none": tmp_path})


@pytest.mark.parametrize(
    "row, message",
    [
        ({"step": 2, "loss": "high"}, "loss='high' is not a number"),
        ({"step": 2, "reward": [1.0]}, r"reward=\[1.0\] is not a number"),
        ({"step": 2, "eval_acc": {"diff": 1}}, "eval_acc=.* is not a number"),
        ({"step": 2, "loss": 10**400}, "loss=1000.* is not a number"),
        ({"step": 2, "kl": False}, "kl=False is not a number"),
        ({"step": True, "loss": 1.0}, "has no step"),
        ({"step": -1}, "has no step"),
        ({"step": 10**400}, "has no step"),
    ],
)
def test_metrics_of_odd_types_are_named(tmp_path, row, message):
    """By every reader: curves, the choice of the best checkpoint, and a run that goes on."""
    good = [{"step": 1, "loss": 2, "eval_acc": None, "seconds": {}}, {"step": 1, "loss": NAN}]
    text = "".join(json.dumps(each) + "\n" for each in (*good, row))
    (tmp_path / "metrics.jsonl").write_text(text)
    for reader in (lambda run: training_curves({"a": run}), metrics.held_out, metrics.read):
        with pytest.raises(DataError, match=rf"metrics\.jsonl line 3: {message}") as caught:
            reader(tmp_path)
        assert "\n" not in str(caught.value) and "remove the line" in str(caught.value)
    (tmp_path / "metrics.jsonl").write_text("".join(text.splitlines(keepends=True)[:2]))
    assert metrics.held_out(tmp_path) == {}
    assert str(training_curves({"a": tmp_path})["SFT loss"]["a"]) == "[(1, 2), (1, nan)]"


def test_every_curve_of_a_usual_run_has_its_meaning_beside_it(tmp_path):
    named = ["format", "image", "object"]
    metrics = [*charts._SHOWN, *(f"reward_{name}" for name in named)]
    metrics += ["eval_acc", "eval_mean_iou", "eval_image_acc", "eval_format"]
    row = {"step": 1} | dict.fromkeys(metrics, 0.5)
    (tmp_path / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    titles = list(charts.training_curves({"a": tmp_path})) + ["SFT loss"]
    assert len(titles) == len(metrics) + 1
    meanings_of = {title: meanings.of_curve(title) for title in titles}
    assert len(set(meanings_of.values())) == len(titles) and all(meanings_of.values())
    for title, meaning in meanings_of.items():
        assert meaning in html.unescape(chart(title, {"a": [(1, 0.5)]}))
    assert meanings.of_curve("GRPO reward_of_my_own") == meanings.of_curve("x") == ""
