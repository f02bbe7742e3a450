"""scripts/build_trajectories.py as a user runs it."""

import json
import subprocess

import pipeline_runs
import pytest
from asking import write_questions
from pipeline_runs import command, flags_for

from mirg_jax.errors import DataError
from mirg_jax.trajectories import outputs

config = pipeline_runs.config


def build(folder, source) -> list:
    """The binary's name and flags, for a server that isn't there."""
    _, script, *flags = command(flags_for("http://127.0.0.1:9/v1"), folder, source)
    return [script.stem, *flags]


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
def test_the_binary_refuses_in_one_line(config, tmp_path, flags, message, refusal):
    source = write_questions(tmp_path / "data", 7)
    config("")
    line = refusal(*build(tmp_path / "out", source), *flags)
    assert message in line and "\n" not in line


def test_every_shard_has_all_tasks(config, tmp_path, refusal, capsys):
    source = write_questions(tmp_path / "data", 21)  # the tasks in turn, as many as shards
    config("")
    for shard in range(3):
        flags = build(tmp_path / "out", source)
        assert refusal(*flags, "--dry_run", f"--shard={shard}/3") == ""
        assert "7 questions: common_object 1, diff 1, " in capsys.readouterr().out


@pytest.mark.parametrize("wrong", ["images", "task"])
def test_no_usable_question_is_an_error(config, tmp_path, wrong, refusal, capsys):
    source = write_questions(tmp_path / "data", 7)
    if wrong == "images":
        (tmp_path / "data/images").rename(tmp_path / "data/elsewhere")
    else:
        source.write_text(source.read_text().replace('"id": "', '"id": "gg_reg_'))
    config("")
    line = refusal(*build(tmp_path / "out", source), "--dry_run")
    assert line and "\n" not in line
    reason = "no such file" if wrong == "images" else "captioning"
    assert "no question can be used, 7 were left out; the first: " in line
    assert reason in line
    if wrong == "images":  # with the images in place nothing is left of it
        (tmp_path / "data/elsewhere").rename(tmp_path / "data/images")
        assert refusal(*build(tmp_path / "out", source), "--dry_run") == ""
        assert "7 questions" in capsys.readouterr().out


def test_no_accepted_question_is_an_error(tmp_path):
    summary = {"accepted": 0, "rejected": 2, "unfinished": 0}
    rows = [{"source": "a", "id": "a", "reason": f"reasoning: {n}"} for n in (1, 2)]
    (tmp_path / "rejected.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(DataError, match="no question was accepted, 2 were .* first: reasoning: 1"):
        outputs.check_some_accepted(summary, tmp_path)
    for fine in ({"accepted": 1}, {"unfinished": 1}, {"rejected": 0}):
        outputs.check_some_accepted(summary | fine, tmp_path)


def test_the_binary_says_what_is_left(config, tmp_path, monkeypatch, refusal, capsys):
    source = write_questions(tmp_path / "data", 21)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    flags = command(flags_for("http://127.0.0.1:9/v1"), tmp_path / "out", source)
    ended = subprocess.run([*flags, "--dry_run"], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert "21 questions: common_object 3, diff 3" in ended.stdout
    assert "spent: $0.00" in ended.stdout
    assert refusal(*build(tmp_path / "out", source), "--batches") == ""
    assert "reasoning-0001.jsonl" in capsys.readouterr().out
