"""Whole runs of SFT and GRPO on files, with a tiny model: what is learned, logged and resumed."""

import json
import shutil
import time

import jax
import numpy as np
import pytest
from conftest import killed_after_step_3, scalars, train
from PIL import Image

from mirg_jax.errors import CheckpointError, ConfigError, DataError
from mirg_jax.models.config import ModelConfig
from mirg_jax.runs import devices, metrics
from mirg_jax.runs.loading import load_model
from mirg_jax.runs.settings import Settings, read
from mirg_jax.training import grpo, rollouts, selecting
from mirg_jax.training.start import start
from mirg_jax.types import Rollout

CONTRACT = {
    "step", "loss", "reward", "reward_format", "reward_image", "reward_object", "kl",
    "completion_length", "zero_spread_fraction", "logprob_diff", "seconds",
}  # fmt: skip


def noise(answers, targets):
    """A reward: what a model of random weights says earns nothing else, and would teach nothing."""
    drawn = jax.random.normal(jax.random.key(0), answers.lengths.shape)
    return drawn * (answers.lengths > 0)


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("", {}),
        pytest.param("", {"lora.rank": 4}, marks=pytest.mark.slow),
        pytest.param("qwen2_5_vl", {}, marks=pytest.mark.slow),
        pytest.param("qwen3_vl", {}, marks=pytest.mark.slow),
        pytest.param("qwen3_vl", {"lora.rank": 4, "lora.tower": True}, marks=pytest.mark.slow),
    ],
    ids=["full", "lora", "qwen2_5_vl", "qwen3_vl", "qwen3_vl lora"],
)
@pytest.mark.parametrize("kind", ["sft", "grpo"])
def test_a_killed_run_resumes_to_the_same_numbers(
    kind, family, changes, recipe, tiny_model_of, tmp_path
):
    if family:
        own = {"model.path": str(tiny_model_of(family)), "data.max_pixels": 64 * 64}
        changes = changes | own
    if kind == "grpo":
        changes = changes | {"grpo.rewards.test_runs:noise": 1.0}
    train(recipe(kind, **changes), tmp_path / "whole")
    expected = scalars(tmp_path / "whole")
    assert all(row["grad_norm"] > 1e-3 for row in expected)
    assert [row["step"] for row in expected] == [1, 2, 3, 4]
    assert kind == "sft" or set(metrics.read(tmp_path / "whole")[0]) >= CONTRACT

    with killed_after_step_3():
        train(recipe(kind, **changes), tmp_path / "killed")
    while not (tmp_path / "killed/checkpoints/2").exists():
        time.sleep(0.01)  # this process lives on, and so does the save under way
    train(recipe(kind, **changes), tmp_path / "killed")
    assert scalars(tmp_path / "killed") == expected
    assert list((tmp_path / "killed" / "tensorboard").iterdir())


def test_a_run_starts_without_a_second_copy_of_its_parameters(recipe, tmp_path):
    run = start(read(recipe("sft")), tmp_path, with_response=True)
    held = {id(leaf) for leaf in jax.tree.leaves(run.initial)}
    assert all(id(leaf) in held for leaf in jax.tree.leaves(run.state.params))
    run.checkpoints.close()


def test_gradient_accumulation_does_not_change_sft(recipe, tmp_path):
    lengths = {"data.shapes.lengths": (124, 156)}  # micro-batches of two shapes
    train(recipe("sft", rows_per_micro_batch=1, **lengths), tmp_path / "many")
    train(recipe("sft", rows_per_micro_batch=4, **lengths), tmp_path / "one")
    many, one = scalars(tmp_path / "many"), scalars(tmp_path / "one")
    assert [row["tokens"] for row in many] == [row["tokens"] for row in one]
    np.testing.assert_allclose(
        [row["loss"] for row in many], [row["loss"] for row in one], rtol=1e-4
    )
    assert one[-1]["loss"] < one[0]["loss"]


def test_grpo_logs_what_it_sampled(recipe, tmp_path):
    train(recipe("grpo", num_steps=2), tmp_path)
    rows = metrics.read(tmp_path)
    assert all(row["logprob_diff"] < 1e-3 for row in rows)
    assert rows[0]["kl"] == pytest.approx(0, abs=1e-5)  # the policy is the reference at first
    (group,) = [json.loads(line) for line in (tmp_path / "groups/step_000001.jsonl").open()][:1]
    assert len(group["completions"]) == 3
    parts = {"text", "reward", "format", "image", "object", "advantage"}
    assert set(group["completions"][0]) == parts


def test_rows_that_cannot_be_rewarded_are_listed(recipe, scenes, tmp_path):
    """More targets than the rewards' arrays hold, or none."""
    rows = [json.loads(line) for line in (scenes / "sft.jsonl").open()][:8]
    (target,) = rows[2]["targets"]
    rows[2]["targets"] = [target] * 3
    rows[5]["targets"] = [target] * 2
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    changes = {"num_steps": 1, "grpo.max_objects": 2, "data.train_json": str(data)}
    # An attempt with a wrong image root is refused, and nothing of it is left.
    with pytest.raises(DataError, match="is empty"):
        wrong = {"data.image_root": str(tmp_path)}
        train(recipe("grpo", **changes | wrong), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    train(recipe("grpo", **changes), tmp_path / "run")
    (listed,) = [json.loads(line) for line in (tmp_path / "run/rejected.jsonl").open()]
    assert listed["id"] == rows[2]["id"] and listed["source"] == "rows.jsonl row 2"
    assert "3 targets are more than grpo.max_objects=2" in listed["reason"]
    with pytest.raises(ConfigError, match="max_objects=0 must be 1 or more"):
        read(recipe("grpo", **{"grpo.max_objects": 0}))


def test_how_prompts_are_sampled_changes_nothing(recipe, tmp_path, monkeypatch):
    """All of a step's prompts at once and in one slot, on visual tokens that are computed once."""
    options = {"num_steps": 2, "freeze": ("visual",)}
    at_once = {"sampling.prompts": 4, "sampling.slots": 1}
    train(recipe("grpo", **options, **at_once), tmp_path / "at_once")
    monkeypatch.setattr(Settings, "tower_is_frozen", False)
    train(recipe("grpo", **options), tmp_path / "in_turn")
    for a, b in zip(scalars(tmp_path / "at_once"), scalars(tmp_path / "in_turn"), strict=True):
        assert a["logprob_diff"] < 1e-4
        for name in ("loss", "reward", "kl", "grad_norm", "completion_length"):
            assert a[name] == pytest.approx(b[name], rel=1e-3, abs=1e-5), name


def test_answers_are_parsed_while_the_next_are_sampled(recipe, tmp_path, monkeypatch):
    events, with_resident, decode = [], rollouts.with_resident, grpo.decode

    def noted(name, function):
        return lambda *arguments, **named: (events.append(name), function(*arguments, **named))[1]

    monkeypatch.setattr(
        rollouts, "with_resident", lambda sample: noted("sample", with_resident(sample))
    )
    monkeypatch.setattr(grpo, "decode", noted("parse", decode))
    train(recipe("grpo", num_steps=1, batch_size=6), tmp_path)
    assert events == ["sample", "sample", "parse", "sample", "parse", "parse"]


@pytest.mark.slow
def test_a_cap_that_nothing_reaches_changes_nothing(recipe, tmp_path):
    """Sampler and learner compute the same here, but for rounding; with one update and with two."""
    for updates in (1, 2):
        found = []
        for cap in (0.0, 2.0):
            folder = tmp_path / f"{updates}_{cap}"
            train(
                recipe(
                    "grpo", num_steps=2, **{"grpo.updates": updates, "grpo.importance_cap": cap}
                ),
                folder,
            )
            found.append(metrics.read(folder))
        for without, capped in zip(*found, strict=True):
            assert capped["truncated_fraction"] == 0
            for name in ("loss", "reward", "kl", "grad_norm"):
                assert capped[name] == pytest.approx(without[name], rel=1e-3, abs=1e-5), name


def test_padding_behind_the_longest_completion_is_cut():
    rollout = Rollout(*(jax.device_put(np.ones((2, 3, 12), d)) for d in (int, bool, np.float32)))
    with jax.transfer_guard("disallow"):
        shorter = [selecting.shorten(rollout, longest, (4, 8, 12)) for longest in (3, 4, 5, 12)]
    assert [s.tokens.shape[-1] for s in shorter] == [4, 4, 8, 12]
    assert all(array.shape == s.tokens.shape for s in shorter for array in s)


@pytest.mark.parametrize(
    "changes",
    [
        {"grpo.kl": "exact", "data.direct": 0.5},
        {
            "grpo.kl": "k2",
            "grpo.normalisation": "token",
            "grpo.advantage_scale": "gdpo",
            "grpo.objective": "cispo",
            "grpo.more_rewards": ("test_runs:noise", "thoughts_image", "overlong=0.5"),
        },
        {
            "grpo.beta": 0.0,
            "grpo.updates": 2,
            "grpo.objective": "gspo",
            "grpo.difficulty_weight": True,
            "grpo.mask_cut": True,
        },
        {"grpo.int8_sampling": True, "grpo.importance_cap": 1.5, "grpo.updates": 2},
        *(
            pytest.param(
                {"grpo.more_rewards": ("test_runs:noise",), "grpo.updates": 2} | changes,
                marks=pytest.mark.slow,
            )
            for changes in (
                {"grpo.objective": "sapo", "grpo.advantage_scale": "batch_std"},
                {"grpo.objective": "reinforce", "grpo.advantage_scale": "leave_one_out"},
                {"grpo.objective": "gspo", "grpo.advantage_scale": "gdpo"},
                {"grpo.dual_clip": 3.0, "grpo.advantage_scale": "none"},
            )
        ),
    ],
)
def test_grpos_options_run(changes, recipe, tmp_path, monkeypatch):
    held, copy = [], grpo.copy_of_reference
    monkeypatch.setattr(grpo, "copy_of_reference", lambda run: held.append(copy(run)) or held[0])
    train(recipe("grpo", num_steps=2, **changes), tmp_path)
    assert (held[0] is None) == (changes.get("grpo.beta") == 0)
    rows = metrics.read(tmp_path)
    assert len(rows) == 2 and all(
        np.isfinite([row["loss"], row["grad_norm"]]).all() for row in rows
    )
    if "grpo.mask_cut" in changes:  # a model of random weights seldom ends what it says
        assert all(row["cut_fraction"] < 1 or row["grad_norm"] == 0 for row in rows)
    if "grpo.int8_sampling" in changes:
        assert all(1e-6 < row["logprob_diff"] < 0.05 for row in rows)
        assert all(0 <= row["truncated_fraction"] < 0.1 for row in rows)
    if rewards := changes.get("grpo.more_rewards"):
        assert all(f"reward_{name.partition('=')[0]}" in rows[0] for name in rewards)
        assert all(row["grad_norm"] > 1e-3 and row["zero_spread_fraction"] < 1 for row in rows)


def test_a_frozen_tower_stays_as_it_was(recipe, tmp_path, tiny_model):
    config = recipe("sft", num_steps=2, freeze=("visual",))
    train(config, tmp_path)
    mesh = devices.start(read(config).devices)
    before, after = (load_model(path, mesh).params for path in (tiny_model, tmp_path))
    same = jax.tree.map(lambda a, b: bool((a == b).all()), before, after)
    assert all(jax.tree.leaves(same["visual"]))
    assert not any(jax.tree.leaves(same["decoder"]["layers"]["up_proj"]))


def test_bad_rows_are_listed_and_the_run_goes_on(recipe, scenes, tmp_path):
    rows = [json.loads(line) for line in (scenes / "sft.jsonl").open()]
    rows[3]["images"][0] = "images/nowhere.png"
    rows[5]["images"][0] = "../outside.png"
    rows[7]["targets"][0]["box"] = [500, 0, 100, 10]
    rows[9]["response"] = "<|image_pad|>" + rows[9]["response"]
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = recipe("sft", num_steps=8)
    config.data.train_json, config.data.image_root = str(data), str(tmp_path / "root")
    shutil.copytree(scenes / "images", tmp_path / "root/images")
    exif = Image.Exif()
    exif[0x0112] = 3
    turned = tmp_path / "root" / rows[11]["images"][0]
    Image.open(turned).save(turned, exif=exif)
    train(config, tmp_path / "run")
    lines = metrics.read(tmp_path / "run")
    assert len(lines) == 8 and lines[-1]["rejected"] == 4
    rejected = [json.loads(line) for line in (tmp_path / "run/rejected.jsonl").open()]
    assert {row["id"] for row in rejected} == {rows[i]["id"] for i in (3, 5, 7, 9)}
    assert all(row["source"].startswith("rows.jsonl") and row["reason"] for row in rejected)


def test_what_cannot_work_is_said_in_one_line(recipe, scenes, tmp_path, tiny_model):
    def refused(error, kind="sft", **changes):
        with pytest.raises(error) as caught:
            train(recipe(kind, **changes), tmp_path / "run")
        assert len(str(caught.value).splitlines()) == 1
        return str(caught.value)

    (tmp_path / "empty.json").write_text("[]")
    assert "empty" in refused(DataError, **{"data.train_json": str(tmp_path / "empty.json")})
    assert "lengths" in refused(DataError, **{"data.shapes.lengths": (16,)})
    assert "mesh" in refused(ConfigError, **{"mesh.data": 7})
    assert "freeze" in refused(ConfigError, freeze=("vision",))
    assert "k9" in refused(ConfigError, "grpo", **{"grpo.kl": "k9"})
    assert "rewards" in refused(ConfigError, "grpo", **{"grpo.rewards": {"fromat": 1.0}})
    assert "config.json" in refused(CheckpointError, init_from=str(scenes))

    other = tmp_path / "other"
    shutil.copytree(tiny_model, other)
    raw = json.loads((other / "config.json").read_text()) | {"intermediate_size": 96}
    (other / "config.json").write_text(json.dumps(raw))
    assert ModelConfig.from_folder(other).text.intermediate_size == 96
    assert "misshapen" in refused(CheckpointError, init_from=str(other))


def test_a_checkpoint_of_another_shape_is_refused(recipe, tmp_path, wider_model):
    run = tmp_path / "run"
    train(recipe("sft", num_steps=2), run)
    (run / "origin.json").unlink()  # as in runs of earlier versions
    with pytest.raises(CheckpointError, match=r"doesn't fit this config.*down_proj.*64.*96"):
        train(recipe("sft", num_steps=4, **{"model.path": str(wider_model)}), run)
    shutil.copy(wider_model / "config.json", run / "model/config.json")
    with pytest.raises(CheckpointError, match=r"doesn't fit this model.*down_proj.*64.*96"):
        load_model(run, devices.start(read(recipe("sft")).devices))
