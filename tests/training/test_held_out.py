"""Evaluation in the midst of training, and the checkpoint that did best."""

import json
import pathlib
import shutil

import pytest
from conftest import train
from PIL import Image

from configs import sft_tiny
from mirg_jax.errors import CheckpointError, ConfigError, DataError
from mirg_jax.evaluation import evaluate
from mirg_jax.mig_bench.responses import load_predictions
from mirg_jax.runs import metrics, run_folder
from mirg_jax.runs.settings import read


def steps(workdir):
    return sorted(int(path.name) for path in (workdir / "checkpoints").iterdir())


def held_out(scenes, **changes):
    return {
        "evaluation.every": 2,
        "evaluation.benchmark": str(scenes / "eval.json"),
        "evaluation.image_root": str(scenes),
        "evaluation.batch_size": 8,
        "evaluation.max_tokens": 40,
        **changes,
    }


@pytest.mark.parametrize(
    "kind, changes",
    [
        pytest.param("sft", {}, marks=pytest.mark.slow),
        pytest.param("sft", {"lora.rank": 4}, marks=pytest.mark.slow),
        ("grpo", {"grpo.max_tokens": 12}),
    ],
    ids=["sft", "sft lora", "grpo"],
)
def test_the_best_checkpoint_is_kept_and_is_as_good_as_logged(
    kind, changes, recipe, scenes, tmp_path
):
    """A base that can answer, ruined by a learning rate far too high."""
    config = recipe(
        kind,
        **held_out(scenes),
        **changes,
        **{
            "model.path": sft_tiny.get_config().model.path,
            "num_steps": 5,
            "checkpoint.every": 100,
            "checkpoint.keep": 1,
            "optimizer.learning_rate": 1.0,
            "optimizer.schedule": "constant",
            "optimizer.warmup_ratio": 0.0,
        },
    )
    train(config, tmp_path / "run")
    rows = metrics.read(tmp_path / "run")
    assert [row["step"] for row in rows if "eval_acc" in row] == [2, 4, 5]
    assert {"eval_mean_iou", "eval_image_acc", "eval_format"} < set(rows[1])
    found = {row["step"]: row["eval_acc"] for row in rows if "eval_acc" in row}
    best = run_folder.best_of(found, found)
    assert steps(tmp_path / "run") == sorted({best, 5})
    assert run_folder.find_run(tmp_path / "run/best") == (tmp_path / "run", best)

    # An evaluation of that checkpoint by itself.
    config.evaluation.every = 0
    scores = evaluate.run(
        read(config),
        checkpoint=str(tmp_path / "run/best"),
        benchmark=str(scenes / "eval.json"),
        image_root=str(scenes),
        output_dir=tmp_path / "eval",
    )
    assert scores.overall.hit_rate == pytest.approx(found[best])
    told = load_predictions(tmp_path / f"run/held_out/step_{best:06d}.jsonl", 21)
    assert told == load_predictions(tmp_path / "eval/predictions.jsonl", 21)


def test_the_best_of_equals_is_the_latest():
    assert run_folder.best_of({2: 0.5, 4: 0.7, 6: 0.7, 8: 0.1}, [2, 4, 6, 8]) == 6
    assert run_folder.best_of({2: 0.5, 4: 0.7}, [2, 8]) == 2
    assert run_folder.best_of({}, [2, 8]) is None


def test_an_earlier_best_outlives_resuming(steady_recipe, scenes, tmp_path, monkeypatch):
    accuracies = iter([0.9, 0.1, 0.2, 0.3])
    monkeypatch.setattr(
        "mirg_jax.training.held_out.HeldOut.evaluate",
        lambda *args: {"eval_acc": next(accuracies)},
    )
    options = {**held_out(scenes), "checkpoint.keep": 1, "checkpoint.every": 100}
    train(steady_recipe("sft", num_steps=4, **options), tmp_path)
    train(steady_recipe("sft", num_steps=8, **options), tmp_path)
    assert steps(tmp_path) == [2, 8]
    assert run_folder.find_run(tmp_path / "best")[1] == 2


def test_rows_that_cannot_be_read_count_as_misses_and_are_listed(recipe, scenes, tmp_path):
    rows = json.loads((scenes / "eval.json").read_text())[:3]
    rows[1]["images"][0] = "images/nowhere.png"
    benchmark = tmp_path / "eval.json"
    benchmark.write_text(json.dumps(rows))
    options = held_out(scenes, **{"evaluation.benchmark": str(benchmark)})
    train(recipe("sft", num_steps=2, **options), tmp_path / "run")
    listed = [json.loads(line) for line in (tmp_path / "run/rejected.jsonl").open()]
    assert [row["id"] for row in listed] == ["1"]
    assert "nowhere.png" in listed[0]["reason"]
    answers = [json.loads(line) for line in (tmp_path / "run/held_out/step_000002.jsonl").open()]
    assert [answer["index"] for answer in answers] == [0, 2]


def test_accuracies_of_other_questions_are_not_compared(
    steady_recipe, scenes, tmp_path, monkeypatch
):
    """`RUN/best` is the best of all steps, so they must have been asked the same."""
    monkeypatch.setattr(
        "mirg_jax.training.held_out.HeldOut.evaluate", lambda *args: {"eval_acc": 0.5}
    )
    benchmark = tmp_path / "eval.json"
    benchmark.write_bytes((scenes / "eval.json").read_bytes())
    options = held_out(scenes, **{"evaluation.benchmark": str(benchmark), "evaluation.limit": 14})
    train(steady_recipe("sft", num_steps=2, **options), tmp_path / "run")
    for change, message in (
        ({"evaluation.limit": 7}, "limit was 14, is 7"),
        ({"evaluation.max_tokens": 9}, "max_tokens was 40, is 9"),
        ({"prompt.instruction": "Think."}, "prompt.instruction was"),
        ({"data.max_pixels": 4000}, "max_pixels was"),
    ):
        with pytest.raises(ConfigError, match=message):
            train(steady_recipe("sft", num_steps=4, **options | change), tmp_path / "run")
    rows = json.loads(benchmark.read_text())
    shutil.copytree(scenes, tmp_path / "other")
    for row in rows:
        Image.new("RGB", (56, 56)).save(tmp_path / "other" / row["images"][0])
    with pytest.raises(ConfigError, match="images was"):
        other = {"evaluation.image_root": str(tmp_path / "other")}
        train(steady_recipe("sft", num_steps=4, **options | other), tmp_path / "run")
    benchmark.write_text(json.dumps(rows[::-1]))
    with pytest.raises(ConfigError, match="benchmark_sha256 was"):
        train(steady_recipe("sft", num_steps=4, **options), tmp_path / "run")
    benchmark.write_text(json.dumps(rows))
    benchmark.write_bytes((scenes / "eval.json").read_bytes())
    (tmp_path / "run/held_out/questions.json").unlink()  # as an earlier version left it
    train(steady_recipe("sft", num_steps=4, **options), tmp_path / "run")
    assert steps(tmp_path / "run")[-1] == 4


def test_a_wrong_image_root_is_said_before_training(recipe, scenes, tmp_path):
    options = held_out(scenes, **{"evaluation.image_root": str(tmp_path)})
    with pytest.raises(DataError, match="no held-out row can be used; the first: .*eval_0"):
        train(recipe("sft", num_steps=2, **options), tmp_path / "run")
    assert not list((tmp_path / "run").glob("checkpoints/*"))


def test_what_is_missing_is_said(recipe, tmp_path):
    with pytest.raises(ConfigError, match="evaluation.benchmark"):
        train(recipe("sft", **{"evaluation.every": 1}), tmp_path / "run")
    nowhere = {"evaluation.every": 1, "evaluation.benchmark": "nowhere.json"}
    with pytest.raises(DataError, match="nowhere.json"):
        train(recipe("grpo", **nowhere), tmp_path / "run")
    assert not (tmp_path / "run").exists()  # said before anything is loaded or written
    (tmp_path / "other/checkpoints/3").mkdir(parents=True)
    with pytest.raises(CheckpointError, match="no checkpoint was evaluated"):
        run_folder.find_run(pathlib.Path(tmp_path / "other/best"))
