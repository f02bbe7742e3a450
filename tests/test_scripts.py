"""The binaries as a user calls them."""

import json
import re
import shutil
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest
from absl.flags import FLAGS
from conftest import REPOSITORY, binary, call, page_data
from PIL import Image
from transformers import Qwen2VLForConditionalGeneration

from mirg_jax.errors import CheckpointError
from mirg_jax.runs.loading import load_model
from mirg_jax.sharding import make_mesh


def refused(result: subprocess.CompletedProcess) -> str:
    """The one line of a binary that refuses its input."""
    assert result.returncode == 2, result.stderr
    (line,) = [line for line in result.stderr.splitlines() if line.strip() and "it/s]" not in line]
    return line


def test_convert_both_ways_and_ground(tiny_model, scenes, tmp_path, refusal, capsys):
    run, exported, picture = tmp_path / "run", tmp_path / "exported", tmp_path / "answer.png"
    flags = ("--direction=import", f"--source={tiny_model}", f"--target={run}")  # float32, as it is
    assert refusal("convert_checkpoint", *flags) == ""
    flags = ("--direction=export", f"--source={run}", f"--target={exported}", "--dtype=float32")
    assert call("convert_checkpoint", *flags).returncode == 0
    before = Qwen2VLForConditionalGeneration.from_pretrained(tiny_model).state_dict()
    after = Qwen2VLForConditionalGeneration.from_pretrained(exported).state_dict()
    assert before.keys() == after.keys()
    assert all((before[name] == after[name]).all() for name in before)
    assert "not empty" in refusal("convert_checkpoint", *flags)
    assert not (run / "unfinished.json").exists() and not (exported / "unfinished.json").exists()

    images = [scenes / "images" / f"eval_00003_{n}.png" for n in (1, 2)]
    asked = refusal(
        "ground",
        f"--checkpoint={exported}",
        f"--images={images[0]},{images[1]}",
        "--query=Where is the red circle?",
        f"--output={picture}",
        f"--config={REPOSITORY}/configs/grpo_tiny.py",
        "--config.cpu_devices=0",
        "--config.evaluation.max_tokens=8",
    )
    assert asked == ""
    assert re.search(r"\d box(es)? drawn in", capsys.readouterr().out)
    width, height = Image.open(picture).size
    assert width > 56 and height >= 28


KILLED = """
import os, runpy, signal, sys
import tqdm
tqdm.tqdm.update = lambda *_, left=iter(range(8)): next(left, None) is None and os.kill(
    os.getpid(), signal.SIGKILL
)
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.parametrize("direction", ["import", pytest.param("export", marks=pytest.mark.slow)])
def test_a_killed_conversion_goes_on(tiny_model, tmp_path, direction, refusal):
    flags = [f"--direction={direction}", f"--source={tiny_model}", f"--target={tmp_path}"]
    flags += ["--dtype=bfloat16"] if direction == "import" else []  # an export's default
    script = REPOSITORY / "scripts/convert_checkpoint.py"
    killed = subprocess.run([sys.executable, "-c", KILLED, script, *flags], cwd=REPOSITORY)
    assert killed.returncode == -signal.SIGKILL
    other = refusal("convert_checkpoint", *flags, "--dtype=float16")
    assert "another conversion was left unfinished" in other
    with pytest.raises(CheckpointError):
        load_model(tmp_path, make_mesh())  # a half is not taken for a whole

    assert refusal("convert_checkpoint", *flags) == ""
    ours, source = (load_model(path, make_mesh()).params for path in (tmp_path, tiny_model))
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(source), strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b.astype("bfloat16")))
    assert "not empty" in refusal("convert_checkpoint", *flags)


def test_evaluate_resumes_and_keeps_runs_apart(tiny_model, scenes, tmp_path, refusal):
    flags = [
        f"--config={REPOSITORY}/configs/grpo_tiny.py",
        "--config.cpu_devices=0",
        f"--checkpoint={tiny_model}",
        f"--image_root={scenes}",
        f"--output_dir={tmp_path}",
        "--config.evaluation.max_tokens=8",
        "--config.evaluation.batch_size=8",
    ]
    predictions = tmp_path / "predictions.jsonl"
    some = call("evaluate", *flags, f"--benchmark={scenes}/eval.json", "--limit=7")
    assert some.returncode == 0, some.stderr
    assert "none of 7 responses has a box, so all count as misses; the first: " in some.stderr
    first = [json.loads(line)["index"] for line in predictions.open()]
    told = json.loads((tmp_path / "scores.json").read_text())
    assert [row["index"] for row in told["rows"]] == sorted(first)
    assert len(told["tasks"]) == 7  # which the file goes round

    assert refusal("evaluate", *flags, f"--benchmark={scenes}/eval.json") == ""
    lines = predictions.read_text().splitlines(keepends=True)
    assert sorted(json.loads(line)["index"] for line in lines) == list(range(21))
    assert [json.loads(line)["index"] for line in lines[:7]] == first
    scores = json.loads((tmp_path / "scores.json").read_text())

    predictions.write_text("".join(lines[:10]) + lines[10][:9])  # killed while writing
    assert refusal("evaluate", *flags, f"--benchmark={scenes}/eval.json") == ""
    assert sorted(predictions.read_text().splitlines(keepends=True)) == sorted(lines)
    assert json.loads((tmp_path / "scores.json").read_text()) == scores
    assert (tmp_path / "report.html").stat().st_size > 10_000

    same = (*flags, f"--benchmark={scenes}/eval.json")
    for change, words in (
        ("evaluation.max_tokens=9", "max_tokens was 8, is 9"),
        ("data.max_pixels=50176", "max_pixels was"),
        ("data.apply_exif=True", "apply_exif was false, is true"),
        ("prompt.instruction=Be brief.", 'is "Be brief."'),
        ("prompt.thinking=True", "thinking was false, is true"),
        ("evaluation.coordinates=thousandths", 'is "thousandths"'),
    ):
        line = refusal("evaluate", *same, f"--config.{change}")
        assert "predictions of another run" in line and words in line
    other = shutil.copytree(tiny_model, tmp_path / "other_model")
    written = json.loads((other / "config.json").read_text()) | {"rms_norm_eps": 1e-5}
    (other / "config.json").write_text(json.dumps(written))
    line = refusal("evaluate", *same, f"--checkpoint={other}")
    assert "the model's weights have changed" in line
    assert json.loads((tmp_path / "scores.json").read_text()) == scores

    page = tmp_path / "again.html"
    known = ("report", f"--benchmark={scenes}/eval.json", f"--output={page}")
    assert refusal(*known, f"--predictions=tiny={predictions}") == ""
    assert len(page_data(page)["views"][0]["cards"]) == 21
    assert "NAME=PATH" in refusal(*known, f"--predictions={predictions}")
    assert "metrics.jsonl" in refusal(*known, f"--training=tiny={tmp_path}")
    assert "nothing to report" in refusal(*known)

    rows = json.loads((scenes / "eval.json").read_text())
    (tmp_path / "other.json").write_text(json.dumps(rows[:20]))
    assert "another run" in refusal("evaluate", *flags, f"--benchmark={tmp_path}/other.json")


@pytest.mark.parametrize("kind", [pytest.param("sft", marks=pytest.mark.slow), "grpo"])
def test_one_device_and_two_make_the_same_run(kind, tiny_model, scenes, tmp_path):
    """However the rows are divided: the same completions are sampled, the same losses come out."""
    flags = {
        "sft": [
            f"--config.data.train_json={scenes}/sft.jsonl",
            "--config.num_steps=3",
            "--config.rows_per_micro_batch=2",
        ],
        "grpo": [
            f"--config.data.train_json={scenes}/rl.json",
            "--config.num_steps=1",
            "--config.prompts_per_micro_batch=2",
            "--config.grpo.group=3",
            "--config.grpo.max_tokens=12",
            "--config.grpo.completion_lengths=(12,)",
        ],
    }
    runs = []
    for devices in (1, 2):
        workdir = tmp_path / str(devices)
        result = call(
            f"train_{kind}",
            f"--config=configs/{kind}_tiny.py",
            f"--workdir={workdir}",
            f"--config.model.path={tiny_model}",
            f"--config.data.image_root={scenes}",
            f"--config.cpu_devices={devices}",
            "--config.batch_size=4",
            *flags[kind],
        )
        assert result.returncode == 0, result.stderr
        groups = [path.read_text() for path in sorted(workdir.glob("groups/*"))]
        steps = [json.loads(line) for line in (workdir / "metrics.jsonl").open()]
        runs.append((groups, [step["loss"] for step in steps]))
    (one_groups, one_losses), (two_groups, two_losses) = runs
    assert one_groups == two_groups and bool(one_groups) == (kind == "grpo")
    assert one_losses == pytest.approx(two_losses, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--config.no_such_field=1", "no_such_field"),
        ("--config.data.train_json=nowhere.json", "nowhere.json"),
        ("--config.data.train_json=", "data.train_json is not set"),
        ("--config.model.path=tests", "config.json"),
        ("--no_such_flag", "no_such_flag"),
    ],
)
def test_bad_settings_end_in_one_line(flag, message, tiny_model, scenes, tmp_path, refusal):
    flags = [
        f"--config={REPOSITORY}/configs/sft_tiny.py",
        "--config.cpu_devices=0",
        f"--workdir={tmp_path}",
        f"--config.model.path={tiny_model}",
        f"--config.data.train_json={scenes}/sft.jsonl",
        f"--config.data.image_root={scenes}",
    ]
    line = refusal("train_sft", *flags, flag)
    assert message in line and "\n" not in line


def test_a_binary_ends_in_the_line_and_with_its_status(tmp_path):
    """A setting and a flag that it doesn't take; the tests above run its main in this process."""
    for flag, message in (("--config.seed=1", "train_json is not"), ("--no_such_flag", "no_such")):
        ended = call("train_sft", "--config=configs/sft_tiny.py", f"--workdir={tmp_path}", flag)
        assert message in refused(ended)


@pytest.mark.parametrize(
    "script", ["train_sft", "train_grpo", "evaluate", "score", "report", "ground", "doctor"]
)
def test_every_flag_has_help(script):
    with binary(script) as module:
        own = FLAGS.module_help(module.__name__)
    assert "--" in own and "(no help available)" not in own


def test_help_tells_every_flag():
    help_text = call("evaluate", "--help").stdout
    assert "scripts/evaluate.py" in help_text and "\n  --checkpoint:" in help_text
