"""Groups chosen from a pool: the arrays of their micro-batches, and runs with a tiny model."""

import json
import os
import signal
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import killed_after_step_3, scalars, train

from mirg_jax import sharding
from mirg_jax.errors import UserError
from mirg_jax.models.flops import Forward
from mirg_jax.rl.selection import reward_spread
from mirg_jax.runs.settings import read
from mirg_jax.training import watching
from mirg_jax.training.grpo_programs import Judgement
from mirg_jax.training.rollouts import Facts, Rollouts
from mirg_jax.training.selecting import Call, Chosen, Pool, Selector
from mirg_jax.types import Images, Rollout, Text

REWARD = "test_selecting:every_other"
GROUP, LONGEST, WIDTH = 3, 12, 5


def every_other(answers, targets):
    """A reward with a spread in every second group of a call, and a mean of the prompt's own."""
    spread = jnp.arange(answers.lengths.shape[0]) % 2
    own = targets.boxes[..., 0, 0] + targets.boxes[..., 0, 1]
    return own + spread[:, None] * jnp.arange(answers.lengths.shape[1])


# Micro-batches ------------------------------------------------------------------------------------


def drawn_call(rng, rows, sizes, frozen, rewards):
    T, S, P = sizes
    index = np.where(np.arange(T) < 3, np.arange(T) % (S * P // 4), -1)
    text = Text(
        rng.integers(1, 99, (rows, T)).astype(np.int32),
        rng.integers(1, 99, (rows, T, 3)).astype(np.int32),
        np.ones((rows, T), np.int32),
        index[None].repeat(rows, 0).astype(np.int32),
    )
    images = Images(
        rng.integers(1, 255, (rows, S, P, 588)).astype(np.uint8),
        rng.integers(0, 4, (rows, S, P, 2)).astype(np.int32),
    )
    if frozen:
        images = rng.normal(size=(rows, S * P // 4, WIDTH)).astype(np.float32)
    shape = rows, GROUP, LONGEST
    mask = np.arange(LONGEST) < rng.integers(1, 8, (*shape[:2], 1))
    rollout = Rollout(
        rng.integers(1, 99, shape).astype(np.int32), mask, rng.normal(size=shape).astype(np.float32)
    )
    advantages = rng.normal(size=shape[:2]).astype(np.float32)
    judgement = Judgement({"reward": rewards}, advantages, None, np.zeros(rows, bool))
    return Call(text, images, rollout, judgement, sizes)


def seen(prompt, images, row):
    """A prompt's tokens, each with what it sees: a visual token, an image's patches, or nothing."""
    found = []
    for token, index in zip(prompt.tokens[row], prompt.visual_index[row], strict=True):
        if token and index < 0:
            found.append((int(token), None))
        elif token and isinstance(images, Images):
            S, P = images.patches.shape[1:3]
            slot, at = divmod(int(index), P // 4)
            block = slice(4 * at, 4 * at + 4)
            there = images.patches[row, slot, block], images.positions[row, slot, block]
            found.append((int(token), tuple(each.tobytes() for each in there)))
        elif token:
            found.append((int(token), images[row, index].tobytes()))
    return found


@pytest.mark.parametrize("frozen", [True, False])
def test_micro_batches_have_the_chosen_rows_whatever_the_sizes_of_their_calls(frozen, recipe):
    changes = {"grpo.pool": 2, "grpo.gate": (0.5,), "grpo.order": "reward", "batch_size": 6}
    changes |= {"grpo.mini_batches": 3, "grpo.completion_lengths": (4, 8, 12)}
    settings = read(recipe("grpo", **changes))
    mesh = sharding.make_mesh(1, 1, 1, devices=jax.devices()[:1])
    rng = np.random.default_rng(0)
    kept = np.isin(np.arange(12), [0, 3, 5, 6, 9])
    rewards = rng.normal(size=(12, 1)) + np.where(kept, 1.0, 0.1)[:, None] * np.arange(GROUP)
    rewards = rewards.astype(np.float32)
    sizes = [(8, 1, 4), (12, 2, 4), (8, 1, 16), (8, 1, 4), (8, 2, 8), (8, 1, 4)]
    calls = [
        drawn_call(rng, 2, each, frozen, rewards[2 * n : 2 * n + 2]) for n, each in enumerate(sizes)
    ]
    numbers = rng.permutation(12).astype(np.int32)
    lengths = np.concatenate([call.rollout.mask.sum(-1) for call in calls])
    facts = Facts(numbers, lengths, lengths > LONGEST, -1.0 * lengths)
    pool = Pool(
        [sharding.place_rows(call._replace(sizes=()), mesh)._replace(sizes=call.sizes)
         for call in calls],
        [], [], facts, {"reward": rewards}, reward_spread(rewards), np.zeros(12, bool),
        ["diff"] * 12, 0, Forward(0, 0),
    )  # fmt: skip
    with jax.transfer_guard("disallow"):
        chosen = Selector(settings, mesh).choose(0, pool)
    wanted = sorted(np.flatnonzero(kept), key=lambda row: -rewards[row].mean())
    assert chosen.used.tolist() == chosen.above_gate.tolist() == kept.tolist()
    assert [len(part.experiences) for part in chosen.mini_batches] == [1, 1, 1]
    assert not pool.calls

    parts = [wanted[:2], wanted[2:4], wanted[4:]]
    for rows, (experiences, completions, tokens) in zip(parts, chosen.mini_batches, strict=True):
        (one,) = jax.device_get(experiences)
        assert completions == GROUP * len(rows) and tokens == lengths[rows].sum()
        assert one.rollout.tokens.shape[2] == next(
            n for n in (4, 8, 12) if n >= lengths[rows].max()
        )
        assert not one.rollout.mask[len(rows) :].any() and not one.advantages[len(rows) :].any()
        for at, row in enumerate(rows):
            call, own = calls[row // 2], row % 2
            assert seen(one.prompt, one.images, at) == seen(call.prompt, call.images, own)
            np.testing.assert_array_equal(one.advantages[at], call.judgement.advantages[own])
            for found, given in zip(one.rollout, call.rollout, strict=True):
                np.testing.assert_array_equal(found[at], given[own, :, : found.shape[2]])


def test_what_the_gate_leaves_out_is_told_apart_from_what_the_pool_does(recipe):
    settings = read(recipe("grpo", **{"grpo.pool": 3, "grpo.gate": (0.1,)}))
    facts = Facts(np.arange(4), np.ones((4, GROUP)), np.zeros((4, GROUP), bool), np.zeros((4, 1)))
    spread, tasks = np.array([0.0, 1.0, 1.0, 1.0]), ["diff"] * 4
    rewards = {"reward": np.ones((4, GROUP))}
    pool = Pool([], [], [], facts, rewards, spread, spread == 0, tasks, 0, Forward(0, 0))
    used = np.array([False, True, False, False])
    found = watching.scalars(settings.grpo, pool, Chosen([], used, spread > 0.1, rewards), {})
    assert found["below_gate_fraction"] == found["used_fraction"] == 0.25
    assert found["left_over"] == 3


# Runs ---------------------------------------------------------------------------------------------

REWARDED = {"grpo.more_rewards": (REWARD,), "grpo.log_groups_every": 1, "grpo.log_groups": 8}
CHOSEN = {"grpo.pool": 2, "grpo.gate": (0.0,), "grpo.order": "reward", "grpo.mini_batches": 2}


def test_a_gate_that_all_groups_pass_changes_nothing(recipe, tmp_path):
    """Bit for bit: chosen groups are gathered into the micro-batches that all groups make."""
    options = {"num_steps": 2, "grpo.more_rewards": ("test_runs:noise",)}
    train(recipe("grpo", **options), tmp_path / "all")
    train(recipe("grpo", **options, **{"grpo.gate": (0.0,)}), tmp_path / "gated")
    of_choice = {"used_fraction", "left_over", "below_gate_fraction", "rounds"}
    for ours, theirs in zip(scalars(tmp_path / "gated"), scalars(tmp_path / "all"), strict=True):
        assert {k: ours.pop(k) for k in of_choice} == {
            "used_fraction": 1, "left_over": 0, "below_gate_fraction": 0, "rounds": 1
        }  # fmt: skip
        assert ours == theirs and ours["grad_norm"] > 1e-3


def test_a_pool_is_gated_ordered_and_resumed(recipe, tmp_path):
    train(recipe("grpo", **REWARDED, **CHOSEN), tmp_path / "whole")
    expected = scalars(tmp_path / "whole")
    for row in expected:
        assert row["used_fraction"] == 0.5 and row["left_over"] == 4 and row["skipped"] == 0
        assert row["below_gate_fraction"] == 0.5
        assert row["grad_norm"] > 1e-3 and row["reward_spread"] == pytest.approx(0.4082, abs=1e-3)
        tasks = {k.partition("/")[2]: v for k, v in row.items() if k.startswith("task_reward/")}
        assert tasks and min(tasks.values()) <= row["reward"] <= max(tasks.values())
    rows = [json.loads(line) for line in (tmp_path / "whole/groups/step_000001.jsonl").open()]
    assert [row["used"] for row in rows] == [False, True] * 4

    with killed_after_step_3():
        train(recipe("grpo", **REWARDED, **CHOSEN), tmp_path / "killed")
    while not (tmp_path / "killed/checkpoints/2").exists():
        time.sleep(0.01)  # this process lives on, and so does the save under way
    train(recipe("grpo", **REWARDED, **CHOSEN), tmp_path / "killed")
    assert scalars(tmp_path / "killed") == expected


def test_a_step_is_filled_up_by_further_rounds(recipe, tmp_path):
    """Two of four groups are above the gate: a second round fills the step, and none is sampled
    twice before all have been."""
    options = {"num_steps": 3, "grpo.gate": (0.0,), "grpo.max_rounds": 3}
    train(recipe("grpo", **REWARDED, **options), tmp_path)
    rows, asked = scalars(tmp_path), []
    for step, row in enumerate(rows, start=1):
        assert row["rounds"] == 2 and row["used_fraction"] == 0.5
        groups = (tmp_path / f"groups/step_{step:06d}.jsonl").open()
        asked += [json.loads(line)["id"] for line in groups]
    assert len(asked) == len(set(asked)) == 24


def test_a_step_without_a_group_takes_no_update(recipe, tmp_path, tiny_model, capsys):
    options = {"num_steps": 2, "grpo.gate": (9.0, 0.0)}
    train(recipe("grpo", **REWARDED, **options), tmp_path)
    said = capsys.readouterr().err
    assert said.count("no group's rewards spread by more than grpo.gate=9") == 1
    first, second = scalars(tmp_path)
    assert first["used_fraction"] == first["loss"] == first["grad_norm"] == 0
    assert first["skipped"] == second["skipped"] == 1
    assert second["kl"] == pytest.approx(0, abs=1e-5)  # the reference's weights until now
    assert second["used_fraction"] == 0.5 and second["grad_norm"] > 1e-3


def test_a_run_that_learns_nothing_says_so_and_fails(recipe, tmp_path, capsys):
    options = {"num_steps": 2, "grpo.gate": (9.0,), "grpo.max_rounds": 2}
    why = r"nothing was learned in 2 steps: .* by more than grpo.gate=9; lower it"
    with pytest.raises(UserError, match=why):
        train(recipe("grpo", **REWARDED, **options), tmp_path)
    assert "grpo.gate=9 in 2 rounds of sampling, so nothing" in capsys.readouterr().err
    rows = scalars(tmp_path)
    assert [row["rounds"] for row in rows] == [2, 2] and rows[-1]["skipped"] == 2
    assert (tmp_path / "checkpoints/2").exists()
    with pytest.raises(UserError, match=why):  # and again, as nothing has changed
        train(recipe("grpo", **REWARDED, **options), tmp_path)


@pytest.mark.slow
def test_a_signal_between_two_rounds_ends_the_run_before_the_step_is_over(
    recipe, tmp_path, monkeypatch, capsys
):
    """In the first step, where there is nothing to save, and in a later one."""
    options = {"num_steps": 2, "grpo.gate": (0.0,), "grpo.max_rounds": 3, "checkpoint.every": 100}
    train(recipe("grpo", **REWARDED, **options), tmp_path / "whole")
    draw, rounds = Rollouts.sample, []

    def run(workdir, at):
        rounds.clear()

        def draw_and_send(self, state, batches):
            rounds.append((batches.step + 1, batches.round))
            if rounds[-1] == (at, 0):
                os.kill(os.getpid(), signal.SIGTERM)
            return draw(self, state, batches)

        with monkeypatch.context() as patch:
            patch.setattr(Rollouts, "sample", draw_and_send)
            with pytest.raises(SystemExit) as ended:
                train(recipe("grpo", **REWARDED, **options), workdir)
        assert ended.value.code == 143 and rounds[-1] == (at, 0)
        return capsys.readouterr().err

    said = run(tmp_path / "first", 1)
    assert "stopped by SIGTERM before the first step" in said
    assert not list((tmp_path / "first").glob("checkpoints/*"))
    said = run(tmp_path / "second", 2)
    assert "stopped by SIGTERM after step 1, which is saved" in said
    train(recipe("grpo", **REWARDED, **options), tmp_path / "second")
    assert scalars(tmp_path / "second") == scalars(tmp_path / "whole")
