"""Rewards of a user's own over texts: what they get, and what is said when they fail."""

import json
import re
import sys
import time

import numpy as np
import pytest

from mirg_jax import defaults
from mirg_jax.data.examples import read_examples, to_line
from mirg_jax.errors import ConfigError
from mirg_jax.runs.settings import check_rewards, read
from mirg_jax.training.text_rewards import TextRewards

BOX = "<|box_start|>(1,2),(30,40)<|box_end|>"
RIGHT = f"<think>{BOX}</think><answer>Image-2 {BOX}</answer>"


@pytest.fixture
def examples(tmp_path):
    """Three rows with a column of their own."""
    rows = [
        {
            "id": f"{n}", "task": "diff", "images": ["a.png", "b.png"], "question": "Where?",
            "targets": [{"image": 1, "box": [1, 2, 30, 40]}], "response": None, "points": n,
        }
        for n in (1, 2, 3)
    ]  # fmt: skip
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found, rejected = read_examples(tmp_path / "rows.jsonl", columns=True)
    assert not rejected
    return found


def points(completions):
    return [each.example.columns["points"] * each.response.format_ok for each in completions]


def lengths(completions):
    return np.array([each.tokens + len(each.text) / 100 for each in completions])


def broken(completions):
    return [1 / (each.example.columns["points"] - 2) for each in completions]


def leaves(completions):
    sys.exit(3)


def only_pairs(completions):
    return [1.0] * (len(completions) // 2)


def nan_of_three(completions):
    return [np.nan if each.example.id == "3" else 0.0 for each in completions]


def of_two(completions):
    """Fails for more than one completion."""
    (one,) = completions
    return [one.tokens]


def slow(completions):
    time.sleep(30)


def rewards(*names, seconds=5.0):
    return TextRewards([f"text:test_text_rewards:{name}" for name in names], seconds)


def test_a_reward_gets_texts_parsed_answers_and_columns(examples):
    texts, counts = [RIGHT, "no"] * 3, np.arange(6).reshape(3, 2)
    found = rewards("points", "lengths")(texts, examples, counts)
    points, lengths = found.values()
    np.testing.assert_array_equal(points, [[1, 0], [2, 0], [3, 0]])
    np.testing.assert_allclose(lengths, counts + [len(RIGHT) / 100, 0.02], rtol=1e-6)
    assert list(found) == ["text:test_text_rewards:points", "text:test_text_rewards:lengths"]
    assert TextRewards(["format", "my.py:f"], 1.0)(texts, examples, counts) == {}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("broken", "fails for a completion of rows.jsonl row 1 with ZeroDivisionError: "),
        ("leaves", "fails for a completion of rows.jsonl row 0 with SystemExit: 3"),
        ("only_pairs", r"returns an array of \[3\] for 6 completions; return a number for each"),
        ("nan_of_three", "is nan for a completion of rows.jsonl row 2; return a finite number"),
        ("of_two", "fails for 6 completions, from rows.jsonl row 0 on with ValueError: "),
        ("slow", "took more than 0.5 s for 6 completions, .* raise grpo.text_reward_seconds"),
    ],
)
def test_a_failure_names_the_reward_and_the_row(name, message, examples):
    own = rewards(name, "lengths", seconds=0.5)
    start = time.monotonic()
    failed, good = own(["said"] * 6, examples, np.ones((3, 2), int)).values()
    assert np.isnan(failed).all() and np.isfinite(good).all() and time.monotonic() - start < 5
    pattern = f"rewards: 'text:test_text_rewards:{name}' {message}"
    assert re.match(pattern, own.problem), own.problem
    assert len(own.problem.splitlines()) == 1
    own(["said"], examples[:1], np.ones((1, 1), int))
    assert not own.problem or name in ("leaves", "only_pairs", "slow")  # it is of the last call


def test_columns_are_kept_only_where_they_are_asked_for(examples, tmp_path):
    plain, _ = read_examples(tmp_path / "rows.jsonl")
    assert plain == examples and not any(each.columns for each in plain)
    assert "points" not in json.loads(to_line(examples[0]))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"more_rewards": ("text:points",)}, "'text:points' names no function"),
        ({"more_rewards": ("text:none.py:f",)}, "'text:none.py:f': there is no file none.py"),
        ({"more_rewards": ("text:test_text_rewards:f",)}, "'f' is not there"),
        ({"text_reward_seconds": 0.0}, "grpo.text_reward_seconds=0.* must be above 0"),
        ({"rewards": {"format": 0.0, "image": 0.0, "object": 0.0}}, "all weights are 0"),
        ({"kl": "k1"}, "grpo.kl='k1': its gradient is 0 on average"),
    ],
)
def test_what_cannot_work_is_said_before_anything_is_loaded(changes, message):
    config = defaults.grpo()
    config.grpo.update(changes)
    with pytest.raises(ConfigError, match=message):
        check_rewards(read(config).grpo)
