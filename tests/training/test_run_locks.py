"""One process to a folder: training, conversions, evaluations and journals."""

import json
import os

import pytest
from conftest import train

from mirg_jax.errors import ConfigError
from mirg_jax.evaluation.predictions import Predictions
from mirg_jax.files.locks import Lock
from mirg_jax.trajectories.journal import Journal


def test_a_second_run_in_a_workdir_is_refused(steady_recipe, tmp_path):
    run = tmp_path / "run"
    with Lock(run / "run.lock"):
        for kind in ("sft", "grpo"):
            with pytest.raises(ConfigError, match=f"writes to it .{os.getpid()} on") as refused:
                train(steady_recipe(kind), run)
            assert str(run) in str(refused.value) and "\n" not in str(refused.value)
        assert os.listdir(run) == ["run.lock"]
    train(steady_recipe("sft", num_steps=1), run)
    assert "run.lock" not in os.listdir(run)
    with pytest.raises(ConfigError):
        train(steady_recipe("sft", **{"mesh.data": 7}), run)
    assert "run.lock" not in os.listdir(run)


def test_a_killed_runs_lock_is_taken_over(steady_recipe, tmp_path):
    lock = Lock(tmp_path / "run.lock")
    lock.acquire()
    held = json.loads((tmp_path / "run.lock").read_text())
    gone = held | {"pid": 2**22 + 1}  # above what Linux gives
    (tmp_path / "run.lock").write_text(json.dumps(gone))
    train(steady_recipe("sft", num_steps=1), tmp_path)
    assert (tmp_path / "checkpoints/1").exists()


def test_conversions_evaluations_and_journals_are_locked(tiny_model, tmp_path, refusal):
    flags = ("--direction=import", f"--source={tiny_model}", f"--target={tmp_path}")
    with Lock(tmp_path / "conversion.lock"):
        assert "another process writes to it" in refusal("convert_checkpoint", *flags)
    with Predictions(tmp_path / "eval", {}, 1):
        with pytest.raises(ConfigError, match="another process writes to it"):
            Predictions(tmp_path / "eval", {}, 1)
    journal = Journal(tmp_path / "out", "replies.jsonl", write=True)
    with pytest.raises(ConfigError, match="another process writes to it"):
        Journal(tmp_path / "out", "replies.jsonl", write=True)
    other = Journal(tmp_path / "out", "replies-1-of-2.jsonl", write=True)  # of another shard
    Journal(tmp_path / "out", "replies.jsonl", write=False).close()
    other.close()
    journal.close()
    assert sorted(os.listdir(tmp_path / "out")) == ["replies-1-of-2.jsonl", "replies.jsonl"]
