"""Runs with rewards of a user's own, over arrays and over texts."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
from conftest import scalars, train

from mirg_jax.errors import UserError
from mirg_jax.runs import run_folder

CALLS = []


def few_tokens(answers, targets):
    return -answers.lengths.astype(jnp.float32)


def few_tokens_of_texts(completions):
    assert all(each.example.columns["images"] for each in completions)
    return [-each.tokens for each in completions]


def fails_later(completions):
    CALLS.append(len(completions))
    if len(CALLS) > 2:  # a call a step
        raise LookupError("no judge there")
    return [each.tokens for each in completions]


def zero_over_zero(answers, targets):
    zero = 0.0 * answers.lengths
    return zero.at[1, 0].set(jnp.nan)


def test_a_reward_over_texts_equals_the_same_over_arrays(recipe, tmp_path):
    """Bit for bit, also where each reward is normalised by itself."""
    options = {"num_steps": 2, "grpo.advantage_scale": "gdpo"}
    found = []
    for name in (
        "test_own_reward_runs:few_tokens",
        "text:test_own_reward_runs:few_tokens_of_texts",
    ):
        folder = tmp_path / f"{len(found)}"
        train(recipe("grpo", **options, **{"grpo.more_rewards": (f"{name}=0.5",)}), folder)
        rows = scalars(folder)
        assert all(row[f"reward_{name}"] < -1 and row["grad_norm"] > 1e-3 for row in rows)
        found.append([{k: v for k, v in row.items() if name not in k} for row in rows])
    assert found[0] == found[1]


def test_a_failing_reward_ends_the_run_with_what_was_learned(recipe, tmp_path):
    CALLS.clear()
    options = {"grpo.more_rewards": ("text:test_own_reward_runs:fails_later",)}
    options |= {"sampling.prompts": recipe("grpo").batch_size, "checkpoint.every": 100}
    message = "^step 3: rewards: 'text:.*fails_later' fails for .* with LookupError: no judge there"
    with pytest.raises(UserError, match=message):
        train(recipe("grpo", **options), tmp_path)
    assert len(scalars(tmp_path)) == 2
    saved = run_folder.find_run(tmp_path)
    assert saved and saved.step == 2


def test_a_reward_that_is_nan_is_named_with_its_row(recipe, tmp_path):
    config = recipe("grpo", **{"grpo.more_rewards": ("test_own_reward_runs:zero_over_zero",)})
    with pytest.raises(UserError, match="zero_over_zero' is nan for a completion of rl.json row"):
        train(config, tmp_path)
    assert not list(tmp_path.glob("groups/*"))


def test_groups_say_which_rows_asked_for_a_direct_answer(recipe, tmp_path):
    options = {"num_steps": 1, "data.direct": 0.5, "grpo.log_groups_every": 1}
    train(recipe("grpo", **options, **{"grpo.log_groups": 8}), tmp_path)
    lines = (tmp_path / "groups/step_000001.jsonl").read_text().splitlines()
    assert {json.loads(line)["direct"] for line in lines} == {True, False}
    assert np.isfinite(scalars(tmp_path)[0]["loss"])
