"""A refused attempt leaves a run as it was, and is told from a damaged checkpoint."""

import dataclasses
import json
import os
import pathlib
import shutil

import pytest
from conftest import REPOSITORY, small_recipe, steady, train
from test_origin import contents

from configs import grpo_tiny
from mirg_jax import defaults
from mirg_jax.data.examples import Example, Target
from mirg_jax.errors import CheckpointError, ConfigError, DataError, UserError
from mirg_jax.evaluation.predictions import Predictions
from mirg_jax.files.outputs import MARKS
from mirg_jax.runs import devices, loading, run_folder, settings
from mirg_jax.training import resumed, usable
from mirg_jax.trajectories import build


@pytest.fixture(scope="module")
def finished(tiny_model, scenes, tmp_path_factory):
    """A run of two steps, which no test changes."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    train(steady(small_recipe(tiny_model, scenes))("sft", num_steps=2), folder)
    return folder


@pytest.fixture
def run(finished, tmp_path):
    """A copy of a finished run of two steps."""
    return pathlib.Path(shutil.copytree(finished, tmp_path / "run"))


@pytest.fixture
def refused(steady_recipe, run):
    def attempt(error=CheckpointError, kind="sft", **changes):
        before = contents(run)
        with pytest.raises(error) as caught:
            train(steady_recipe(kind, **{"num_steps": 3} | changes), run)
        after = contents(run)
        assert after == before, [name for name in after if after[name] != before.get(name)]
        (line,) = str(caught.value).splitlines()
        return line

    return attempt


def test_a_refused_attempt_leaves_the_run_as_it_was(
    steady_recipe, run, refused, wider_model, tmp_path
):
    assert "other weights" in refused(**{"model.path": str(wider_model)})

    prompt = {"prompt.instruction": "Think.", "prompt.image_label": "Picture {n}: "}
    assert "is empty" in refused(DataError, **prompt, **{"data.image_root": "/dev"})
    nothing = tmp_path / "nothing.jsonl"
    nothing.write_text("[]")
    refused(UserError, **prompt, **{"data.train_json": str(nothing)})
    assert "lengths" in refused(DataError, **prompt, **{"data.shapes.lengths": (16,)})
    line = refused(DataError, **prompt, **{"data.shapes.slots": (1,)})
    assert "raise data.shapes.slots" in line and "max_pixels" not in line
    no_benchmark = {"evaluation.every": 1, "evaluation.benchmark": str(tmp_path / "none.json")}
    assert "none.json" in refused(DataError, **prompt, **no_benchmark)
    assert "no LoRA" in refused(**prompt, **{"lora.rank": 4})
    assert "freeze" in refused(ConfigError, **prompt, freeze=("vision",))

    # It is still the run that it was: it can be asked, and goes on.
    own = settings.read(settings.of_model(str(run)))
    assert own.prompt == settings.read(steady_recipe("sft")).prompt
    loading.load_model(run, devices.start(own.devices))
    train(steady_recipe("sft", num_steps=3), run)


def test_what_does_not_fit_is_not_called_damaged(run, refused, monkeypatch):
    for changes in (
        {"freeze": ("visual",)},
        {"optimizer.name": "adamw"},
        {"freeze": ("visual", "embed_tokens"), "optimizer.name": "adamw"},
    ):
        line = refused(**changes)
        assert "doesn't fit this config" in line and "use the config it was made with" in line
        assert "damaged" not in line and "delete" not in line

    newest = run / "checkpoints/2"
    with pytest.raises(CheckpointError) as caught:
        with run_folder.reading(newest, "config", ""):
            raise PermissionError(13, "Permission denied")
    assert "can't be read (Permission denied)" in str(caught.value)
    assert "damaged" not in str(caught.value)
    with pytest.raises(CheckpointError, match="damaged"):
        with run_folder.reading(newest, "config", ""):
            raise ValueError("OUT_OF_RANGE: checksum")
    assert os.listdir(newest)


def test_an_evaluation_that_never_began_claims_no_folder(tmp_path):
    with Predictions(tmp_path, {"model": "misspelt"}, 3):
        pass
    with Predictions(tmp_path, {"model": "right"}, 3) as kept:
        kept.add(1, "yes")
    with pytest.raises(ConfigError, match="another run"), Predictions(tmp_path, {"model": "b"}, 3):
        pass
    with Predictions(tmp_path, {"model": "right"}, 3) as kept:
        assert kept.responses == [None, "yes", None]


def test_a_model_s_folder_is_no_workdir(steady_recipe, tiny_model, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    before = contents(folder)
    with pytest.raises(ConfigError, match="is the folder of a model"):
        train(steady_recipe("sft", num_steps=1), folder)
    assert contents(folder) == before


@pytest.mark.parametrize("mark", [mark for mark in MARKS if mark != "checkpoints"])
def test_a_folder_of_other_results_is_no_workdir(mark, steady_recipe, tmp_path):
    (tmp_path / mark).write_text("")
    with pytest.raises(ConfigError, match="of which some files would be replaced"):
        train(steady_recipe("sft", num_steps=1), tmp_path)
    with pytest.raises(ConfigError, match="of which some files would be replaced"):
        if mark == "selection":
            Predictions(tmp_path, {}, 1)
        else:
            with build._open_journal(tmp_path, None, False):
                pass
    assert [path.name for path in tmp_path.iterdir() if path.suffix != ".lock"] == [mark]


def test_a_refused_first_attempt_removes_nothing(steady_recipe, tmp_path):
    (tmp_path / "rejected.jsonl").write_text("{}\n")
    config = steady_recipe("sft", num_steps=1)
    config.model.path = str(tmp_path / "no_model")
    with pytest.raises(CheckpointError, match="no_model"):
        train(config, tmp_path)
    assert (tmp_path / "rejected.jsonl").read_text() == "{}\n"


def test_a_run_s_folder_takes_no_evaluation(run, refusal, scenes):
    before = contents(run)
    said = refusal(
        "evaluate",
        f"--config={REPOSITORY}/configs/grpo_tiny.py",
        f"--checkpoint={run}",
        f"--benchmark={scenes}/eval.json",
        f"--image_root={scenes}",
        f"--output_dir={run}",
    )
    assert f"is a training run, whose files an evaluation would replace; give {run}/eval" in said
    assert contents(run) == before


def test_a_resumed_run_says_which_settings_are_others(run, steady_recipe, capsys):
    train(steady_recipe("sft", num_steps=2), run)
    assert "changed since" not in capsys.readouterr().err
    train(steady_recipe("sft", **{"num_steps": 3, "prompt.system": "You are a pirate."}), run)
    said = capsys.readouterr().err
    assert 'is "You are a pirate."' in said and "num_steps was 2, is 3" in said


def test_a_resumed_run_says_that_the_content_of_its_data_has_changed(
    steady_recipe, scenes, tmp_path, capsys
):
    data, folder = tmp_path / "rows.jsonl", tmp_path / "run"
    rows = (scenes / "sft.jsonl").read_text().splitlines(keepends=True)

    def told(steps, *lines):
        data.write_text("".join(lines))
        named = {"num_steps": steps, "data.train_json": str(data)}
        train(steady_recipe("sft", **named), folder)
        assert len(json.loads((folder / "data.json").read_text())["sha256"]) == 64
        return capsys.readouterr().err.count("rows.jsonl: its content has changed since")

    assert told(1, *rows) == 0
    assert told(2, *rows[:-1]) == 1
    assert told(3, *rows[:-1]) == 0
    (folder / "data.json").unlink()  # as an earlier version left it
    assert told(4, *rows) == 0


def test_a_resumed_run_says_that_the_file_of_its_reward_has_changed(scenes, tmp_path):
    path, config = tmp_path / "mine.py", grpo_tiny.get_config()
    path.write_text("def reward(answers, targets):\n    return answers.format_ok\n")
    config.data.train_json = str(scenes / "rl.json")
    config.grpo.more_rewards = (f"{path}:reward", "test_runs:noise", "object_giou")
    now = settings.read(config)
    (tmp_path / "config.json").write_text(now.text)
    resumed.write_data(tmp_path, before := resumed.facts_of_data(now))
    assert list(before["rewards_sha256"]) == [f"{path}:reward", "test_runs:noise"]
    assert not resumed.changes(tmp_path, now, before)
    path.write_text(path.read_text() + "\n")
    (line,) = resumed.changes(tmp_path, now, resumed.facts_of_data(now))
    assert line.startswith(f"{path}:reward: the file of this reward has changed")
    resumed.write_data(tmp_path, {k: v for k, v in before.items() if k != "rewards_sha256"})
    assert not resumed.changes(tmp_path, now, before)  # of an earlier version


def test_a_run_that_reads_its_examples_several_times_says_so(capsys):
    usable.say_passes(20, 8, 30)
    said = capsys.readouterr().out
    assert said.startswith("20 steps of 8 examples go 5.3 times through these 30")
    usable.say_passes(10, 3, 30)
    assert not capsys.readouterr().out


def test_responses_that_miss_their_targets_are_counted(capsys):
    box = "<think>t</think><answer><|box_start|>({}),({})<|box_end|></answer>"
    near, far = box.format("100,100", "500,500"), box.format("600,600", "900,900")
    target = Target((100, 110, 500, 500), 1)
    said = [near, far, "I see no dog.", None]
    examples = [
        Example(f"{n}", "diff", ("1.jpg",), "Where?", (target,), each)
        for n, each in enumerate(said)
    ]
    examples.append(dataclasses.replace(examples[1], targets=()))
    usable.say_misses("a.json", examples)
    assert "a.json: 2 of 3 responses miss a target" in (err := capsys.readouterr().err)
    assert err.rstrip().endswith("the first: 1") and err.count("\n") == 1
    usable.say_misses("a.json", examples[:1] + examples[3:])
    two = ("1.jpg", "2.jpg")
    for image, missed in ((1, 0), (2, 1), (None, 0)):
        one = Target(target.box, image)
        response = near.replace("<|box_start|>", "In image 1: <|box_start|>")
        usable.say_misses("a.json", [Example("a", "diff", two, "Where?", (one,), response)])
        assert capsys.readouterr().err.count("1 of 1 responses") == missed


def test_a_run_keeps_its_number_of_updates(tmp_path):
    whole = settings.read(defaults.grpo())
    (tmp_path / "config.json").write_text(whole.text)
    resumed.check_updates(tmp_path, whole)
    for name in ("updates", "mini_batches"):
        config = defaults.grpo()
        config.grpo[name] = 2
        with pytest.raises(ConfigError, match=f"grpo.{name} was 1 and can't be 2"):
            resumed.check_updates(tmp_path, settings.read(config))
    before = json.loads(whole.text)
    del before["grpo"]["mini_batches"]  # as earlier versions wrote it
    (tmp_path / "config.json").write_text(json.dumps(before))
    resumed.check_updates(tmp_path, whole)


def test_a_run_without_a_checkpoint_is_no_broken_model(tmp_path):
    (tmp_path / "config.json").write_text(settings.read(defaults.sft()).text)
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(CheckpointError, match="is a run that has saved no checkpoint yet; wait"):
        loading.model_folder(str(tmp_path))
