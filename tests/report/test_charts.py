"""Curves: points where they belong, whatever values there are."""

import json
import re

import pytest

from mirg_jax.errors import DataError
from mirg_jax.report.charts import chart, training_curves

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


def test_runs_share_axes():
    one, two = lines(chart("loss", {"a": [(0, 0.0), (10, 4.0)], "b": [(5, 2.0), (20, 2.0)]}))
    (left, low), (_, high) = one
    (middle, y), (right, _) = two
    assert y == pytest.approx((low + high) / 2, abs=0.1)
    assert (middle - left) == pytest.approx((right - left) / 4, abs=0.1)


@pytest.mark.parametrize(
    "points", [[], [(0, NAN)], [(5, 0.0)], [(0, -1e308), (1, 1e308), (2, INF)]]
)
def test_odd_values_break_nothing(points):
    text = chart("<b>", {"<i>": points})
    assert (
        "nan" not in text and "inf" not in text and "<b>&lt;b&gt;</b>" in text and "<i>" not in text
    )


def test_long_runs_are_thinned():
    (line,) = lines(chart("x", {"a": [(step, step**2) for step in range(5000)]}))
    assert len(line) <= 500


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
    with pytest.raises(DataError, match=r"metrics\.jsonl"):
        training_curves({"none": tmp_path})
