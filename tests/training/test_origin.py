"""What a run started from: recorded by content, and needed again when it is resumed."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import together
from conftest import train
from flax import nnx

from mirg_jax import sharding
from mirg_jax.errors import CheckpointError
from mirg_jax.models import qwen2_vl
from mirg_jax.models.config import ModelConfig
from mirg_jax.runs import devices, loading, origin
from mirg_jax.runs.settings import read
from mirg_jax.weights import hf


def contents(run):
    """Every file of a run but the list of rejected rows, which is there to be read."""
    files = (path for path in run.rglob("*") if path.is_file() and path.name != "rejected.jsonl")
    return {str(path.relative_to(run)): path.read_bytes() for path in files}


def refused(config, run):
    """The line with which a run refuses to go on; it must not have touched its folder."""
    before = contents(run)
    with pytest.raises(CheckpointError) as caught:
        train(config, run)
    assert contents(run) == before
    (line,) = str(caught.value).splitlines()
    return line


def replaced(folder, seed):
    """Writes other weights of the same model into a Hugging Face folder."""
    config = ModelConfig.from_folder(folder)
    hf.save(folder, qwen2_vl.create(config, seed)[1], config)


def test_grpo_goes_on_only_with_the_reference_that_it_started_from(steady_recipe, tmp_path, capsys):
    sft, run = tmp_path / "sft", tmp_path / "run"
    train(steady_recipe("sft", num_steps=2), sft)
    started = {"init_from": str(sft)}
    train(steady_recipe("grpo", num_steps=1, **started), run)
    record = json.loads((run / "origin.json").read_text())
    assert record["source"] == str(sft / "checkpoints/2")

    line = refused(steady_recipe("grpo", num_steps=2, **started | {"init_from": ""}), run)
    assert f"it started from {sft}/checkpoints/2" in line
    assert f"set init_from={sft}/checkpoints/2" in line

    # The SFT run goes on; its folder still means the checkpoint that was the start.
    train(steady_recipe("sft", num_steps=3, **{"checkpoint.keep": 2}), sft)
    train(steady_recipe("grpo", num_steps=2, **started), run)
    assert json.loads((run / "origin.json").read_text()) == record
    line = refused(steady_recipe("grpo", num_steps=3, init_from=str(sft / "checkpoints/3")), run)
    assert "other weights" in line

    # The same weights elsewhere are the same start.
    shutil.copytree(sft, tmp_path / "copy")
    shutil.rmtree(sft / "checkpoints/2")
    line = refused(steady_recipe("grpo", num_steps=3, **started), run)
    assert f"restore {sft}/checkpoints/2, which is gone" in line
    moved = started | {"init_from": str(tmp_path / "copy/checkpoints/2")}
    train(steady_recipe("grpo", num_steps=3, **moved), run)

    # A run of an earlier version has no record.
    (run / "origin.json").unlink()
    capsys.readouterr()
    train(steady_recipe("grpo", num_steps=4, **moved), run)
    assert f"from now on they are those of {moved['init_from']}" in capsys.readouterr().err
    assert json.loads((run / "origin.json").read_text())["weights"] == record["weights"]
    assert [row["step"] for row in together.scalars(run)] == [1, 2, 3, 4]


def test_weights_replaced_in_place_are_noticed(steady_recipe, tiny_model, tmp_path, refusal):
    model, run, adapted = tmp_path / "model", tmp_path / "run", tmp_path / "adapted"
    shutil.copytree(tiny_model, model)
    kept = (model / "model.safetensors").read_bytes()
    named, lora = {"model.path": str(model), "num_steps": 1}, {"lora.rank": 4}
    train(steady_recipe("sft", **named), run)
    train(steady_recipe("sft", **named, **lora), adapted)
    replaced(model, seed=1)
    again = named | {"num_steps": 2}
    changed = f"the weights of {model} are no longer the same"
    assert changed in refused(steady_recipe("sft", **again), run)
    assert changed in refused(steady_recipe("sft", **again, **lora), adapted)
    mesh = devices.start(read(steady_recipe("sft")).devices)
    other = f"{model} has other weights than in its training"
    with pytest.raises(CheckpointError, match=other):
        loading.load_model(adapted, mesh)
    export = ("convert_checkpoint", "--direction=export", f"--source={adapted}")
    line = refusal(*export, f"--target={tmp_path / 'a'}")
    assert other in line and "\n" not in line and not list((tmp_path / "a").glob("*.safetensors"))
    assert other in refusal(*export, f"--target={tmp_path / 'a'}", "--adapter")
    (adapted / "origin.json").rename(tmp_path / "origin.json")  # a run of an earlier version
    assert refusal(*export, f"--target={tmp_path / 'b'}") == ""
    (tmp_path / "origin.json").rename(adapted / "origin.json")
    (model / "model.safetensors").write_bytes(kept)
    loading.load_model(adapted, mesh)
    assert refusal(*export, f"--target={tmp_path / 'a'}") == ""
    line = refused(steady_recipe("sft", **again, **{"model.param_dtype": "bfloat16"}), run)
    assert "set model.param_dtype=float32" in line
    (run / "origin.json").write_text("{")
    assert "origin.json: not a record of a run's start" in refused(
        steady_recipe("sft", **again), run
    )


def test_another_architecture_or_tokenizer_is_noticed(steady_recipe, tiny_model, tmp_path):
    model, run = tmp_path / "model", tmp_path / "run"
    shutil.copytree(tiny_model, model)
    config = steady_recipe("sft", num_steps=1, **{"model.path": str(model)})
    train(config, run)
    config.num_steps = 2
    files = {name: (model / name).read_bytes() for name in ("config.json", "tokenizer.json")}
    raw = json.loads(files["config.json"]) | {"rope_theta": 500.0, "rms_norm_eps": 0.01}
    (model / "config.json").write_text(json.dumps(raw))
    line = refused(config, run)
    assert "rope_theta was" in line and "rms_norm_eps was" in line
    (model / "config.json").write_bytes(files["config.json"])

    raw = json.loads(files["tokenizer.json"])
    words = raw["model"]["vocab"]
    words["(320,"], words["(340,"] = words["(340,"], words["(320,"]
    (model / "tokenizer.json").write_text(json.dumps(raw))
    assert "another tokenizer" in refused(config, run)
    (model / "tokenizer.json").write_bytes(files["tokenizer.json"])
    train(config, run)


def test_a_fingerprint_is_of_the_values_and_their_places(monkeypatch):
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    rng = np.random.default_rng(0)
    values = {name: rng.normal(size=(3, 4, 5)).astype(jnp.bfloat16) for name in "ab"}

    def of(**changes):
        arrays = {name: nnx.Param(jnp.asarray(value)) for name, value in (values | changes).items()}
        return origin.fingerprint(nnx.State(arrays), mesh)

    def of_files(array):
        def read(path, index, out):
            out[...] = array[path][index]

        shapes = {name: nnx.Param(jnp.asarray(value)) for name, value in array.items()}
        return origin.fingerprint_of_files(nnx.State(shapes), read, "bfloat16")

    same = of()
    monkeypatch.setattr(origin, "_PART", 40)  # two rows, and one that is left
    assert of_files(values) == same != of_files(values | {"a": values["a"][::-1]})
    assert same == of(a=values["a"].astype(np.float32)) and len(same) == 16
    swapped = values["a"].copy()
    swapped[0, 0, 0], swapped[2, 3, 4] = swapped[2, 3, 4], swapped[0, 0, 0]
    nudged = values["a"].astype(np.float32)
    nudged[1, 2, 3] = np.nextafter(nudged[1, 2, 3], 9, dtype=np.float32)
    found = [
        of(a=swapped),
        of(a=nudged),
        of(a=values["a"][::-1]),
        of(a=values["b"], b=values["a"]),
        of(a=values["a"].reshape(5, 4, 3).transpose(2, 1, 0)),
        of(a=-values["a"]),
        of(c=values["a"]),
    ]
    assert len({same, *found}) == 8
