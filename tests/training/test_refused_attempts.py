"""A refused attempt leaves a run as it was, and is told from a damaged checkpoint."""

import os
import shutil

import pytest
from conftest import REPOSITORY, train
from test_origin import contents

from mirg_jax.errors import CheckpointError, ConfigError, DataError, UserError
from mirg_jax.evaluation.predictions import Predictions
from mirg_jax.runs import devices, loading, run_folder, settings


@pytest.fixture
def run(steady_recipe, tmp_path):
    """A finished run of two steps."""
    folder = tmp_path / "run"
    train(steady_recipe("sft", num_steps=2), folder)
    return folder


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
    assert "others before" not in capsys.readouterr().err
    train(steady_recipe("sft", **{"num_steps": 3, "prompt.system": "You are a pirate."}), run)
    said = capsys.readouterr().err
    assert 'prompt.system="You are a pirate." (was ' in said and "num_steps=3 (was 2)" in said
