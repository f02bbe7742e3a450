"""Hashes of models and files."""

import json
import os
import shutil

import numpy as np
import pytest
from safetensors.numpy import save_file

from mirg_jax.errors import DataError
from mirg_jax.files import hashes
from mirg_jax.runs import facts


@pytest.fixture
def model(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    save(folder)
    return folder


def save(folder, **changes):
    tensors = {"a": np.zeros((500, 30), np.float32), "b": np.ones(3, np.float32)} | changes
    save_file(tensors, folder / "model.safetensors")


def test_a_copy_is_the_same_model(model, tmp_path):
    before = facts.hash_model(model)
    shutil.copytree(model, tmp_path / "copy")
    os.utime(tmp_path / "copy/model.safetensors", (0, 0))
    (tmp_path / "copy/README.md").write_text("words")
    assert facts.hash_model(tmp_path / "copy") == before
    assert facts.hash_model(tmp_path / "none") is None


@pytest.mark.parametrize("place", [(0, 0), (250, 0), (499, 29), (100, 7), (333, 1)])
def test_each_tensor_counts(model, place):
    before = facts.hash_model(model)
    changed = np.zeros((500, 30), np.float32)
    changed[place] = 1e-3
    save(model, a=changed)
    assert facts.hash_model(model) != before
    save(model)
    assert facts.hash_model(model) == before
    save(model, b=np.full(3, 1.1, np.float32))
    assert facts.hash_model(model) != before


def test_a_run_is_another_model_when_it_was_trained_anew(model, tmp_path):
    run = tmp_path / "run"
    params = run / "checkpoints/7/params/d"
    params.mkdir(parents=True)
    shutil.copytree(model, run / "model")
    (params / "0123abcd").write_bytes(b"x" * 50_000)
    before = facts.hash_model(run)
    assert before == facts.hash_model(run / "checkpoints/7") is not None
    (params / "0123abcd").rename(params / "4567abcd")  # Orbax's names are random
    assert facts.hash_model(run) != before
    (params / "4567abcd").write_bytes(b"x" * 10_000 + b"y" + b"x" * 39_999)  # between samples
    (params / "4567abcd").rename(params / "0123abcd")
    changed = facts.hash_model(run)
    assert changed != before and changed.partition(".")[0] == before.partition(".")[0]
    (params / "0123abcd").write_bytes(b"x" * 50_000)
    assert facts.hash_model(run) == before
    # Adapters are of their base.
    (params / "0123abcd").rename(params / "4567abcd")
    (params / "4567abcd").rename(params / "0123abcd")
    lora = {"rank": 4, "alpha": 8, "targets": ["q_proj"], "tower": False}
    record = {"base": str(model), "param_dtype": "float32", "lora": lora}
    (run / "lora.json").write_text(json.dumps(record))
    adapters = facts.hash_model(run)
    assert adapters != before
    save(model, b=np.zeros(3, np.float32))
    assert facts.hash_model(run) != adapters


def test_a_hash_of_samples_that_an_earlier_version_recorded_agrees(model):
    now = facts.hash_model(model)
    samples = now.partition(".")[0]
    assert facts.agrees(samples, now) and facts.agrees(now, now)
    assert not facts.agrees(now.partition(".")[2], now) and not facts.agrees(None, now)
    assert facts.describe_changes({"start": samples}, {"start": now}) == []
    save(model, a=np.ones((500, 30), np.float32))
    other = facts.hash_model(model)
    assert not facts.agrees(samples, other)
    assert len(facts.describe_changes({"start": samples}, {"start": other})) == 1
    assert not facts.agrees("a", "a.b")  # no hash of a model


def test_parts_of_files_count_in_their_order(tmp_path, monkeypatch):
    monkeypatch.setattr(hashes, "_PART", 100)
    contents = [b"a" * 100 + b"b" * 100 + b"c", b"b" * 100 + b"a" * 100 + b"c", b"a" * 100, b""]
    found = set()
    for content in contents:
        (tmp_path / "file").write_bytes(content)
        found.add(hashes.hash_files([("name", tmp_path / "file")]))
    found.add(hashes.hash_files([("other", tmp_path / "file")]))
    found.add(hashes.hash_files([("name", tmp_path / "file")] * 2))
    assert len(found) == 6


def test_changes_in_words():
    found = {"a": 1, "b": {"c": [1, 2], "d": 3}, "gone": 5}
    wanted = {"a": 2, "b": {"c": [1, 2], "e": 4}, "new": 6}
    told = facts.describe_changes(found, wanted)
    assert sorted(told) == ["a was 1, is 2", "b.d was 3, is null", "b.e was null, is 4"]
    assert facts.describe_changes({"a": "x" * 999}, {"a": 1})[0].endswith("..., is 1")


def test_settings_with_names_of_the_user_s_are_compared_when_one_side_lacks_them():
    found = {"grpo": {"rewards": {"format": 1.0, "mine": 0.5}, "beta": 1}, "seed": 1}
    wanted = {"grpo": {"rewards": {"format": 1.0, "other": 2.0}, "beta": 1, "new": 3}, "seed": 2}
    flat = facts.flat(found)
    assert flat == {
        "grpo.rewards.format": 1.0,
        "grpo.rewards.mine": 0.5,
        "grpo.beta": 1,
        "seed": 1,
    }
    assert sorted(facts.describe_settings(flat, facts.flat(wanted))) == [
        "grpo.rewards.mine was 0.5, is null",
        "grpo.rewards.other was null, is 2.0",
        "seed was 1, is 2",
    ]
    assert facts.describe_settings({}, {"new": 1, "grpo.rewards.format": 1.0}) == []


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(DataError, match="none.json: cannot be read"):
        facts.hash_file(tmp_path / "none.json")


def test_further_end_tokens_make_another_model(tmp_path, tiny_model):
    model = shutil.copytree(tiny_model, tmp_path / "model")
    before, own = facts.hash_model(model), json.loads((model / "config.json").read_text())
    for ends, other in (([own["eos_token_id"], own["bos_token_id"]], False), ([7], True)):
        (model / "generation_config.json").write_text(json.dumps({"eos_token_id": ends}))
        assert (facts.hash_model(model) != before) == other
