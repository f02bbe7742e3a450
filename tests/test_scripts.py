"""The binaries as a user calls them."""

import json
import subprocess
import sys

import pytest
from conftest import REPOSITORY
from PIL import Image
from transformers import Qwen2VLForConditionalGeneration


def call(script: str, *flags: object) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, REPOSITORY / "scripts" / f"{script}.py", *map(str, flags)],
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
        timeout=300,
    )


def refused(result: subprocess.CompletedProcess) -> str:
    """The one line of a binary that refuses its input."""
    assert result.returncode == 2, result.stderr
    (line,) = [line for line in result.stderr.splitlines() if line.strip() and "it/s]" not in line]
    return line


def test_convert_both_ways_and_ground(tiny_model, scenes, tmp_path):
    run, exported, picture = tmp_path / "run", tmp_path / "exported", tmp_path / "answer.png"
    flags = ("--direction=import", f"--source={tiny_model}", f"--target={run}", "--dtype=float32")
    assert call("convert_checkpoint", *flags).returncode == 0
    flags = ("--direction=export", f"--source={run}", f"--target={exported}", "--dtype=float32")
    assert call("convert_checkpoint", *flags).returncode == 0
    before = Qwen2VLForConditionalGeneration.from_pretrained(tiny_model).state_dict()
    after = Qwen2VLForConditionalGeneration.from_pretrained(exported).state_dict()
    assert before.keys() == after.keys()
    assert all((before[name] == after[name]).all() for name in before)
    assert "not empty" in refused(call("convert_checkpoint", *flags))

    images = [scenes / "images" / f"eval_00003_{n}.png" for n in (1, 2)]
    result = call(
        "ground",
        f"--checkpoint={exported}",
        f"--images={images[0]},{images[1]}",
        "--query=Where is the red circle?",
        f"--output={picture}",
        "--config=configs/grpo_tiny.py",
        "--config.evaluation.max_tokens=8",
    )
    assert result.returncode == 0, result.stderr
    assert "boxes drawn" in result.stdout
    width, height = Image.open(picture).size
    assert width > 56 and height >= 28


def test_evaluate_resumes_and_keeps_runs_apart(tiny_model, scenes, tmp_path):
    flags = [
        "--config=configs/grpo_tiny.py",
        f"--checkpoint={tiny_model}",
        f"--image_root={scenes}",
        f"--output_dir={tmp_path}",
        "--config.evaluation.max_tokens=8",
        "--config.evaluation.batch_size=8",
    ]
    whole = call("evaluate", *flags, f"--benchmark={scenes}/eval.json")
    assert whole.returncode == 0, whole.stderr
    predictions = tmp_path / "predictions.jsonl"
    lines = predictions.read_text().splitlines(keepends=True)
    assert len(lines) == 21
    scores = json.loads((tmp_path / "scores.json").read_text())

    predictions.write_text("".join(lines[:10]) + lines[10][:9])  # killed while writing
    assert call("evaluate", *flags, f"--benchmark={scenes}/eval.json").returncode == 0
    assert sorted(predictions.read_text().splitlines(keepends=True)) == sorted(lines)
    assert json.loads((tmp_path / "scores.json").read_text()) == scores
    assert (tmp_path / "report.html").stat().st_size > 10_000

    other = call("evaluate", *flags, f"--benchmark={scenes}/eval.json", "--limit=5")
    assert "another run" in refused(other)


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--config.no_such_field=1", "no_such_field"),
        ("--config.data.train_json=nowhere.json", "nowhere.json"),
        ("--config.model.path=tests", "config.json"),
        ("--no_such_flag", "no_such_flag"),
    ],
)
def test_bad_settings_end_in_one_line(flag, message, tiny_model, tmp_path):
    flags = ["--config=configs/sft_tiny.py", f"--workdir={tmp_path}"]
    if "model.path" not in flag:
        flags.append(f"--config.model.path={tiny_model}")
    assert message in refused(call("train_sft", *flags, flag))


@pytest.mark.parametrize("script", ["train_sft", "train_grpo", "evaluate", "score", "ground"])
def test_help_explains_every_flag(script):
    help_text = call(script, "--help").stdout
    own = help_text[help_text.index(f"{script}.py:") :].split("\nabsl")[0]
    assert "--" in own and "(no help available)" not in own
