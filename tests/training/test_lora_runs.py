"""LoRA runs: what their checkpoints hold, what they are loaded as, and stages built on them."""

import json
import math
import shutil

import jax
import numpy as np
import peft
import pytest
import reference
import torch
from conftest import train
from flax import nnx
from transformers import Qwen2VLForConditionalGeneration

from mirg_jax.data.batching import Shapes, collate
from mirg_jax.errors import CheckpointError, ConfigError
from mirg_jax.models import lora
from mirg_jax.runs import devices, loading, metrics, run_folder
from mirg_jax.runs.settings import read
from mirg_jax.weights import hf

LORA = {"lora.rank": 4, "lora.tower": True, "optimizer.learning_rate": 0.02}
GRPO = {"grpo.rewards": {"test_runs:noise": 1.0}, "optimizer.schedule": "constant"}


@pytest.fixture
def mesh(recipe):
    return devices.start(read(recipe("sft")).devices)


def arrays(params):
    return {path: np.asarray(leaf[...]) for path, leaf in hf.by_path(params).items()}


def assert_same(one, other, **tolerance):
    one, other = arrays(one), arrays(other)
    assert one.keys() == other.keys()
    for path in one:
        np.testing.assert_allclose(one[path], other[path], err_msg=path, **tolerance)


def test_a_checkpoint_holds_adapters_and_is_loaded_as_the_merged_model(
    recipe, tmp_path, tiny_model, mesh
):
    run = tmp_path / "run"
    train(recipe("sft", **LORA), run)
    for part in ("params", "train"):
        tree = run_folder.pytree_handler().metadata(run / "checkpoints/4" / part).tree
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
            few = math.prod(leaf.shape) < 4  # the step, the key, constants
            assert few or "lora_" in jax.tree_util.keystr(path)

    record, _, values = loading.load_adapters(run, mesh)
    assert len(arrays(values)) == 2 * (7 + 4)
    assert all(value.any() for value in arrays(values).values())
    earlier = loading.load_adapters(run / "checkpoints" / "2", mesh)[2]
    assert any((arrays(earlier)[path] != value).any() for path, value in arrays(values).items())

    base = loading.load_model(tiny_model, mesh).params
    merged = loading.load_model(run, mesh).params
    assert_same(merged, lora.merge(base, values, record.lora), atol=1e-6)
    before, after = arrays(base), arrays(merged)
    changed = [path for path in before if (before[path] != after[path]).any()]
    assert len(changed) == 7 + 4 and all(path.endswith(".kernel") for path in changed)


@pytest.mark.slow
def test_grpo_on_top_of_a_lora_sft_run(recipe, tmp_path, mesh):
    """A stage starts from the merged model, which is GRPO's reference too."""
    first, second = tmp_path / "sft", tmp_path / "grpo"
    changes = LORA | {"model.param_dtype": "bfloat16"}
    train(recipe("sft", **changes), first)
    train(recipe("grpo", **changes, **GRPO, init_from=str(first)), second)
    rows = metrics.read(second)
    assert rows[0]["kl"] == pytest.approx(0, abs=1e-6) and rows[-1]["kl"] > 1e-4
    assert all(row["logprob_diff"] < 1e-3 for row in rows)

    # The first run goes on; the second's base stays what it was.
    base = loading.load_model(first, mesh).params
    before = loading.load_model(second, mesh).params
    train(recipe("sft", **changes, num_steps=5), first)
    assert_same(loading.load_model(second, mesh).params, before, atol=0)
    after = arrays(loading.load_model(first, mesh).params)
    assert any((after[path] != value).any() for path, value in arrays(base).items())

    shutil.copytree(first, tmp_path / "moved")
    shutil.rmtree(first / "checkpoints" / "4")
    with pytest.raises(CheckpointError, match=r"base of its adapters.*/4: not a folder") as caught:
        loading.load_model(second, mesh)
    assert len(str(caught.value).splitlines()) == 1 and "lora.json" in str(caught.value)
    record = json.loads((second / "lora.json").read_text())
    other = record | {"base": str(first / "checkpoints" / "5")}
    (second / "lora.json").write_text(json.dumps(other))
    for opened in (lambda: loading.load_model(second, mesh), lambda: loading.open_model(second)):
        with pytest.raises(CheckpointError, match="/5 has other weights than in its training"):
            opened()
    moved = record | {"base": str(tmp_path / "moved/checkpoints/4")}
    (second / "lora.json").write_text(json.dumps(moved))
    assert_same(loading.load_model(second, mesh).params, before, atol=0)
    loading.open_model(second)
    (second / "lora.json").write_text("{")
    with pytest.raises(CheckpointError, match="not a record of a LoRA run"):
        loading.load_model(second, mesh)


def test_the_exact_kl_to_the_base(recipe, tmp_path):
    train(recipe("grpo", **LORA, **GRPO, **{"grpo.kl": "exact", "num_steps": 2}), tmp_path)
    first, second = (row["kl"] for row in metrics.read(tmp_path))
    assert first == pytest.approx(0, abs=1e-6) and second > 1e-4


def test_a_folder_keeps_to_one_kind_of_run(recipe, tmp_path, tiny_model, mesh):
    def refused(error, workdir, **changes):
        with pytest.raises(error) as caught:
            train(recipe("sft", **changes), workdir)
        assert len(str(caught.value).splitlines()) == 1
        return str(caught.value)

    plain, adapted = tmp_path / "plain", tmp_path / "adapted"
    plain.mkdir()
    (plain / "lora.json").write_text("left by a run killed before its first checkpoint")
    train(recipe("sft", num_steps=1), plain)
    assert not (plain / "lora.json").exists()
    train(recipe("sft", num_steps=1, **LORA), adapted)
    assert "made with no LoRA" in refused(CheckpointError, plain, **LORA)
    loading.load_model(plain, mesh)
    assert "asks for no LoRA" in refused(CheckpointError, adapted)
    assert "alpha=8" in refused(CheckpointError, adapted, **LORA, **{"lora.alpha": 8})
    loading.load_model(adapted, mesh)
    with pytest.raises(CheckpointError, match="no adapters"):
        loading.load_adapters(plain, mesh)

    fresh = tmp_path / "fresh"
    assert "targets" in refused(ConfigError, fresh, **{"lora.rank": 2, "lora.targets": ("qkv",)})
    assert "rank=-1" in refused(ConfigError, fresh, **{"lora.rank": -1})


@pytest.mark.parametrize("tower", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_exported_both_ways_it_is_what_we_trained(
    recipe, tmp_path, tiny_model, mesh, tower, refusal
):
    run, merged, adapter = (tmp_path / name for name in ("run", "merged", "adapter"))
    train(recipe("sft", **LORA | {"lora.tower": tower}), run)
    flags = ("--direction=export", f"--source={run}", "--dtype=float32")
    for extra in ([f"--target={merged}"], [f"--target={adapter}", "--adapter"]):
        assert refusal("convert_checkpoint", *flags, *extra) == ""

    model = loading.load_model(run, mesh)
    rng = np.random.default_rng(0)
    item, images = reference.sample(rng, [(84, 56), (28, 56)], response=9)
    placeholder = item.encoded.tokens == reference.IDS["image_token_id"]
    item.encoded.tokens[:] = np.where(placeholder, model.config.image_token_id, item.encoded.tokens)
    inputs = reference.torch_inputs(item.encoded.tokens, images)
    inputs["mm_token_type_ids"] = torch.from_numpy(placeholder[None].astype(np.int32))
    batch = collate([item], [[0]], Shapes((56, 112), (4,), (64,)))

    def ours(source):
        loaded = loading.load_model(source, mesh)
        whole = nnx.merge(loaded.graph, loaded.params)
        out = jax.jit(lambda text, images: whole(text, images))(batch.text, batch.images)
        return np.asarray(out)[0, : len(item.encoded.tokens)]

    base = Qwen2VLForConditionalGeneration.from_pretrained(tiny_model).eval()
    with torch.no_grad():
        before = base(**inputs).logits[0].numpy()
        theirs = peft.PeftModel.from_pretrained(base, adapter).eval()(**inputs).logits[0].numpy()
        whole = Qwen2VLForConditionalGeneration.from_pretrained(merged).eval()
        exported = whole(**inputs).logits[0].numpy()
    assert np.abs(before - theirs).max() > 1e-2
    np.testing.assert_allclose(ours(run), theirs, atol=1e-4)
    np.testing.assert_allclose(ours(merged), exported, atol=1e-4)
    np.testing.assert_allclose(exported, theirs, atol=1e-4)


def test_what_has_no_adapters_to_export(tiny_model, tmp_path, refusal):
    for flags, message in (
        ([f"--source={tiny_model}", "--direction=export"], "no adapters"),
        ([f"--source={tiny_model}", "--direction=import"], "exported, not imported"),
    ):
        line = refusal("convert_checkpoint", *flags, f"--target={tmp_path}", "--adapter")
        assert message in line and "\n" not in line
