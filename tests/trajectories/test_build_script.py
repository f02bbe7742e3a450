"""scripts/build_trajectories.py as a user runs it."""

import subprocess

import pipeline_runs
import pytest
from asking import write_questions
from pipeline_runs import command, flags_for

config = pipeline_runs.config


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--shard=2/2"], "--shard=2/2: it is i/n"),
        (["--input=missing.json"], "missing.json: cannot be read"),
        (["--config.prompts=nowhere"], "reasoning/frame.txt: cannot be read"),
        (["--config.tries=0"], "tries: at least one"),
        (["--config.stages.mapping.key_variable=NO_KEY"], "NO_KEY is not set"),
    ],
)
def test_the_binary_refuses_in_one_line(config, tmp_path, flags, message):
    source = write_questions(tmp_path / "data", 7)
    config("")
    flags = [*command(flags_for("http://127.0.0.1:9/v1"), tmp_path / "out", source), *flags]
    ended = subprocess.run(flags, capture_output=True, text=True)
    assert ended.returncode == 2 and message in ended.stderr
    assert ended.stderr.count("\n") == 1


def test_the_binary_says_what_is_left(config, tmp_path, monkeypatch):
    source = write_questions(tmp_path / "data", 21)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    flags = command(flags_for("http://127.0.0.1:9/v1"), tmp_path / "out", source)
    ended = subprocess.run([*flags, "--dry_run"], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert "21 questions: common_object 3, diff 3" in ended.stdout
    assert "spent: $0.00" in ended.stdout
    ended = subprocess.run([*flags, "--batches"], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert "reasoning-0001.jsonl" in ended.stdout
