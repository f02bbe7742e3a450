"""Checkpoints in and out: names old and new, shards, dtypes, and what is said of a wrong one."""

import errno
import json
import os
import pathlib
import re
import signal
import subprocess
import sys

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import reference
import torch
from conftest import REPOSITORY
from flax import nnx
from safetensors.torch import load_file, save_file

from mirg_jax.errors import CheckpointError
from mirg_jax.models.config import ModelConfig
from mirg_jax.models.layers import Precision
from mirg_jax.models.options import ModelOptions
from mirg_jax.models.qwen2_vl import abstract
from mirg_jax.weights import hf, published


@pytest.fixture(scope="module", params=reference.ALL_NAMES)
def config(request):
    return reference.ALL_CONFIGS[request.param]


@pytest.fixture(scope="module")
def model(config):
    return reference.torch_model(config)


@pytest.fixture(scope="module")
def tensors(model, config):
    """The model's tensors under their published names, without a tied head."""
    return {
        published.published_name(name): parameter.detach().clone()
        for name, parameter in model.named_parameters()
    }


@pytest.fixture
def folder(tmp_path, config):
    (tmp_path / "config.json").write_text(json.dumps(config.to_hf()))
    return tmp_path


def assert_holds(params: nnx.State, config: ModelConfig, tensors: dict[str, torch.Tensor]):
    """Bit for bit."""
    ours = dict(hf.tensors_of(params, config, np.float32))
    assert ours.keys() == tensors.keys()
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(ours[name], tensor.float().numpy(), err_msg=name)


@pytest.mark.parametrize("shard_size", ["1GB", "100KB"])
@pytest.mark.parametrize("published", [True, False])
def test_reads_what_transformers_writes(model, config, tensors, tmp_path, shard_size, published):
    """Published and newer names, which are the same for Qwen3-VL; one file and a sharded index."""
    model.save_pretrained(tmp_path, max_shard_size=shard_size, save_original_format=published)
    sharded = (tmp_path / "model.safetensors.index.json").exists()
    assert sharded == (shard_size != "1GB")
    names = set()
    for file in tmp_path.glob("*.safetensors"):
        names |= load_file(file).keys()
    older = published and config.model_type != "qwen3_vl"
    assert ("visual.patch_embed.proj.weight" in names) == older
    assert ("model.language_model.norm.weight" in names) == (not older)

    assert ModelConfig.from_folder(tmp_path) == config
    _, params = hf.from_pretrained(tmp_path)
    assert_holds(params, config, tensors)


def test_a_tied_head_in_the_file_is_no_surprise(folder, config, tensors):
    """Some files hold the head of a tied model as well."""
    head = tensors.get("lm_head.weight", tensors["model.embed_tokens.weight"])
    save_file(tensors | {"lm_head.weight": head.clone()}, folder / "model.safetensors")
    _, params = hf.from_pretrained(folder)
    assert_holds(params, config, tensors)


@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("params_dtype", [jnp.float32, jnp.bfloat16])
def test_half_precision_files(folder, config, tensors, stored, params_dtype):
    half = {name: tensor.to(stored) for name, tensor in tensors.items()}
    save_file(half, folder / "model.safetensors")
    _, params = hf.from_pretrained(folder, ModelOptions(Precision(jnp.bfloat16, params_dtype)))
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype(params_dtype)}
    kept = torch.bfloat16 if params_dtype == jnp.bfloat16 else torch.float32
    assert_holds(params, config, {name: tensor.to(kept) for name, tensor in half.items()})


@pytest.mark.parametrize("shard_bytes", [5_000_000_000, 100_000])
def test_transformers_reads_what_we_write(model, config, tensors, folder, tmp_path, shard_bytes):
    """Import, export, and the same logits bit for bit."""
    save_file(tensors, folder / "model.safetensors")
    _, params = hf.from_pretrained(folder)
    target = tmp_path / "exported"
    hf.save(target, params, config, shard_bytes=shard_bytes)
    sizes = [file.stat().st_size for file in target.glob("*.safetensors")]
    largest = max(tensor.nbytes for tensor in tensors.values())
    assert max(sizes) < max(shard_bytes, largest) + 10_000  # the header
    assert (len(sizes) > 1) == (shard_bytes < 1_000_000)

    again, report = reference.CLASSES[config.model_type][1].from_pretrained(
        target, output_loading_info=True
    )
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    rng, vision = np.random.default_rng(0), config.vision
    item, images = reference.sample(rng, [(84, 56), (28, 56)], 4, vision)
    inputs = reference.torch_inputs(item.encoded.tokens, images, vision)
    with torch.no_grad():
        assert torch.equal(again.eval()(**inputs).logits, model(**inputs).logits)

    assert ModelConfig.from_folder(target) == config
    _, params = hf.from_pretrained(target)
    assert_holds(params, config, tensors)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_export_in_half_precision(config, tensors, folder, tmp_path, dtype):
    save_file(tensors, folder / "model.safetensors")
    _, params = hf.from_pretrained(folder)
    hf.save(tmp_path / "half", params, config, dtype=dtype)
    written = load_file(tmp_path / "half" / "model.safetensors")
    assert {*written} == {published.written_name(name, config) for name in tensors}
    written = {published.published_name(name): tensor for name, tensor in written.items()}
    for name, tensor in tensors.items():
        assert torch.equal(written[name], tensor.to(getattr(torch, dtype))), name


def test_table_names_every_parameter_once(config):
    _, state = abstract(config)
    paths = [entry.path for entry in published.table(config)]
    assert sorted(paths) == sorted(hf.by_path(state))


def _without(tensors, name):
    return {key: tensor for key, tensor in tensors.items() if key != name}


# What is done to a good checkpoint's tensors, and what the message must say.
DAMAGE = {
    "missing": (
        lambda tensors: _without(tensors, "model.layers.1.mlp.up_proj.weight"),
        "lacks model.layers.1.mlp.up_proj.weight",
    ),
    "missing in the tower": (
        lambda tensors: _without(tensors, "visual.blocks.0.attn.qkv.bias"),
        "lacks visual.blocks.0.attn.qkv.bias",
    ),
    "extra layer": (
        lambda tensors: tensors | {"model.layers.9.mlp.up_proj.weight": torch.zeros(2, 2)},
        "unknown model.layers.9.mlp.up_proj.weight",
    ),
    "misshapen": (
        lambda tensors: tensors | {"model.norm.weight": torch.zeros(3)},
        r"misshapen: model.norm.weight is \(3,\), not \(\d+,\)",
    ),
    "transposed": (
        lambda tensors: (
            tensors
            | {
                "model.layers.0.mlp.up_proj.weight": tensors[
                    "model.layers.0.mlp.up_proj.weight"
                ].T.contiguous()
            }
        ),
        "misshapen: model.layers.0.mlp.up_proj.weight",
    ),
    "quantised": (
        lambda tensors: (
            tensors | {"model.norm.weight": tensors["model.norm.weight"].to(torch.float8_e4m3fn)}
        ),
        "quantised weights, which can't be read: model.norm.weight in F8_E4M3",
    ),
    "several": (
        lambda tensors: {"model.norm.weight": tensors["model.norm.weight"]},
        r"lacks visual.patch_embed.proj.weight, .* and \d+ more",
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_wrong_tensors_are_named_before_any_is_read(folder, config, tensors, monkeypatch, damage):
    """By the names that the family is published with."""
    change, message = DAMAGE[damage]
    damaged = {published.written_name(name, config): x for name, x in change(tensors).items()}
    save_file(damaged, folder / "model.safetensors")
    message = re.sub(
        r"(visual|model)\.[\w.]+", lambda name: published.written_name(name[0], config), message
    )
    monkeypatch.setattr(hf.Tensors, "blocks", lambda *_: pytest.fail("read before the check"))
    with pytest.raises(CheckpointError, match=message) as raised:
        hf.from_pretrained(folder)
    assert str(folder) in str(raised.value)


def test_damaged_files(config, tensors, folder):
    with pytest.raises(CheckpointError, match="model.safetensors: can't be read"):
        hf.from_pretrained(folder)

    file = folder / "model.safetensors"
    save_file(tensors, file)
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match="model.safetensors: can't be read"):
        hf.from_pretrained(folder)

    index = folder / "model.safetensors.index.json"
    for text in ('{"weight_map": {"model.norm.wei', "{}", '{"weight_map": []}', "[]"):
        index.write_text(text)
        with pytest.raises(CheckpointError, match="index.json: not an index"):
            hf.from_pretrained(folder)

    index.write_text(json.dumps({"weight_map": {"model.norm.weight": "gone.safetensors"}}))
    with pytest.raises(CheckpointError, match="lacks gone.safetensors, which .*index.json names"):
        hf.from_pretrained(folder)


def test_loads_into_the_wanted_shardings(folder, config, tensors):
    save_file(tensors, folder / "model.safetensors")
    _, state = abstract(config)
    device = jax.sharding.SingleDeviceSharding(jax.devices()[-1])
    state = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device), state
    )
    params = hf.load(folder, state, config)
    assert {leaf.sharding for leaf in jax.tree.leaves(params)} == {device}
    assert_holds(params, config, tensors)


def test_copies_the_processor(tmp_path, monkeypatch):
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    kept = ("tokenizer.json", "merges.txt", "preprocessor_config.json", "chat_template.jinja")
    left = ("config.json", "model.safetensors.index.json", "model.safetensors", "README.md")
    for name in kept + left:
        (source / name).write_text(name)
    hf.copy_processor(source, target)
    assert sorted(file.name for file in target.iterdir()) == sorted(kept)

    def fill_up(file, copy):
        pathlib.Path(copy).write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("shutil.copyfile", fill_up)
    with pytest.raises(OSError):
        hf.copy_processor(source, target)
    assert {file.name: file.read_text() for file in target.iterdir()} == {
        name: name for name in kept
    }


def test_bfloat16_parameters_survive_the_round_trip(config, tensors, folder, tmp_path):
    save_file(tensors, folder / "model.safetensors")
    _, params = hf.from_pretrained(folder, ModelOptions(Precision(jnp.bfloat16, jnp.bfloat16)))
    hf.save(tmp_path / "again", params, config, dtype="bfloat16")
    _, again = hf.from_pretrained(
        tmp_path / "again", ModelOptions(Precision(jnp.bfloat16, jnp.bfloat16))
    )
    for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(again), strict=True):
        assert a.dtype == ml_dtypes.bfloat16
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


KILLED = """
import os, pathlib, signal, sys
from mirg_jax.models.config import ModelConfig
from mirg_jax.models.qwen2_vl import abstract
from mirg_jax.weights import hf
source, target = sys.argv[1:]
config = ModelConfig.from_folder(source)
_, state = abstract(config)
def progress(nbytes):
    if len(list(pathlib.Path(target).glob("*.safetensors"))) == 3:
        os.kill(os.getpid(), signal.SIGKILL)
hf.save(target, state, config, shard_bytes=50_000, read=hf.reader(source, state, config),
        progress=progress)
"""


@pytest.mark.parametrize("config", ["untied", *reference.LATER], indirect=True)
def test_a_killed_export_goes_on(config, tensors, folder, tmp_path):
    """Finished shards are kept, whatever else lies there is written anew."""
    save_file(tensors, folder / "model.safetensors")
    target = tmp_path / "exported"
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, folder, target],
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
    )
    assert killed.returncode == -signal.SIGKILL
    assert any(target.glob("*.unfinished")) and not (target / "config.json").exists()
    done = sorted(target.glob("*.safetensors"))
    assert len(done) == 3
    done[1].write_bytes(done[1].read_bytes()[:-1])  # not what was written
    before = [file.stat().st_mtime_ns for file in done]

    _, state = abstract(config)
    read, told = hf.reader(folder, state, config), []
    hf.save(target, state, config, shard_bytes=50_000, read=read, resume=True, progress=told.append)
    after = [file.stat().st_mtime_ns for file in done]
    assert [a == b for a, b in zip(before, after, strict=True)] == [True, False, True]
    assert sum(told) == sum(tensor.nbytes for tensor in tensors.values())
    assert not any(target.glob("*.unfinished"))
    _, params = hf.from_pretrained(target)
    assert_holds(params, config, tensors)


def test_files_are_what_the_library_writes(config, tensors, folder, tmp_path):
    """Byte for byte but for the header's order."""
    save_file(tensors, folder / "model.safetensors")
    _, params = hf.from_pretrained(folder)
    hf.save(tmp_path / "ours", params, config)
    written = load_file(tmp_path / "ours" / "model.safetensors")
    save_file(written, tmp_path / "theirs.safetensors", metadata={"format": "pt"})
    ours, theirs = (
        file.read_bytes()
        for file in (tmp_path / "ours" / "model.safetensors", tmp_path / "theirs.safetensors")
    )
    headers = [json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")]) for raw in (ours, theirs)]
    assert [held["__metadata__"] for held in headers] == [{"format": "pt"}] * 2
    for name in tensors:
        a, b = (held[published.written_name(name, config)] for held in headers)
        assert (a["dtype"], a["shape"]) == (b["dtype"], b["shape"])
    assert len(ours) - int.from_bytes(ours[:8], "little") == len(theirs) - int.from_bytes(
        theirs[:8], "little"
    )
