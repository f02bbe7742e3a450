"""One process to a folder: training, conversions, evaluations and journals."""

import json
import os

import pytest
from conftest import REPOSITORY, train

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


@pytest.mark.parametrize("script", ["evaluate", "rate_rows", "evaluate_server", "compose"])
def test_every_binary_that_goes_on_locks_its_folder(script, scenes, tiny_model, tmp_path, refusal):
    config = f"--config={REPOSITORY}/configs/grpo_tiny.py", "--config.cpu_devices=0"
    model, root = f"--checkpoint={tiny_model}", f"--image_root={scenes}"
    benchmark = f"--benchmark={scenes}/eval.json"
    server = ("--family=mirg", "--model=m", "--base_url=http://localhost:9/v1", "--key_variable=")
    flags = {
        "evaluate": (*config, model, benchmark),
        "rate_rows": (*config, model, f"--rows={scenes}/rl.json"),
        "evaluate_server": (*server, benchmark),
        "compose": (f"--source=rows={scenes}/rl.json", "--sft=1"),
    }[script]
    name = "compose" if script == "compose" else "predictions"
    with Lock(tmp_path / "out" / f"{name}.lock"):
        line = refusal(script, *flags, root, f"--output_dir={tmp_path}/out")
        assert f"writes to it ({os.getpid()} on" in line and "\n" not in line
        assert os.listdir(tmp_path / "out") == [f"{name}.lock"]


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
