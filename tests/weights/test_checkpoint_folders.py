"""Folders that another program would read otherwise, or that hold another model's parts."""

import contextlib
import json
import logging
import re
import shutil

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from conftest import train
from safetensors.numpy import load_file, save_file
from safetensors.torch import save_file as torch_save
from transformers import Qwen2VLForConditionalGeneration

from mirg_jax.errors import CheckpointError, UserError
from mirg_jax.inference.predictor import load
from mirg_jax.models.layers import Precision
from mirg_jax.runs import checkpoints, loading
from mirg_jax.runs.tokenizer import load_tokenizer
from mirg_jax.sharding import make_mesh
from mirg_jax.weights import hf


@pytest.fixture
def folder(tiny_model, tmp_path):
    """A copy of the tiny model."""
    return shutil.copytree(tiny_model, tmp_path / "model")


@pytest.fixture
def refused(recipe, tmp_path):
    """Trains on a folder, and asks its model, which both must refuse in the same line."""

    def refused(folder) -> str:
        with pytest.raises(UserError) as error:
            train(recipe("sft", **{"model.path": str(folder)}), tmp_path / "run")
        with pytest.raises(UserError) as again:
            load(folder)
        assert str(again.value) == str(error.value) and "\n" not in str(error.value)
        return str(error.value)

    return refused


def changed(folder, name: str, **fields):
    path = folder / name
    raw = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(raw | fields))


def test_a_file_is_no_folder(refused, folder, tmp_path):
    line = refused(folder / "config.json")
    assert f"{folder}/config.json: is a file, where a folder is expected: a run" in line
    assert line.endswith(f"give {folder}")
    (tmp_path / "model.ckpt").write_text("")
    with pytest.raises(
        CheckpointError, match=r"\*.safetensors\); give one of these, or a hub name"
    ):
        loading.model_folder(tmp_path / "model.ckpt")


# config.json and what is beside it ----------------------------------------------------------------

MROPE = {"type": "mrope", "mrope_section": [1, 1, 2]}
FIELDS = {
    "yarn": (
        {"rope_scaling": MROPE | {"type": "yarn", "factor": 4.0}},
        "rope_scaling of type 'yarn' .* mrope_section",
    ),
    "rope type by its newer name": (
        {"rope_scaling": MROPE | {"rope_type": "dynamic", "factor": 2.0}},
        "rope_scaling of type 'dynamic'",
    ),
    "rope of the newer form": (
        {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e6}},
        "rope_parameters of type 'linear'",
    ),
    "interleaved": (
        {"rope_scaling": MROPE | {"mrope_interleaved": True}},
        "rope_scaling.mrope_interleaved=True",
    ),
    "awq": (
        {"quantization_config": {"quant_method": "awq", "bits": 4}},
        r"quantization_config: .* quantised \(awq\), .* bfloat16",
    ),
    "fp8": (
        {"quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}},
        r"quantised \(fp8\)",
    ),
    "activation": ({"hidden_act": "gelu"}, "hidden_act='gelu' is not supported, only 'silu'"),
    "width of heads": ({"head_dim": 16}, "head_dim=16 is not supported, only 8"),
    "layers": ({"layer_types": ["full_attention", "sliding_attention"]}, "layer_types='sliding"),
    "image token": ({"image_token_id": 151655}, "image_token_id is 151655, .* vocab_size="),
    "list of ends": ({"eos_token_id": [2, 99999]}, "eos_token_id is 99999"),
}


@pytest.mark.parametrize("name", FIELDS)
def test_fields_that_ask_for_another_computation(folder, refused, name):
    fields, message = FIELDS[name]
    changed(folder, "config.json", **fields)
    line = refused(folder)
    assert str(folder / "config.json") in line
    assert re.search(message, line), line


@pytest.mark.parametrize(
    "field, value", [("hidden_act", "gelu"), ("patch_size", 16), ("spatial_merge_size", 4)]
)
def test_fields_of_the_tower(folder, refused, field, value):
    vision = json.loads((folder / "config.json").read_text())["vision_config"]
    changed(folder, "config.json", vision_config=vision | {field: value})
    assert f"vision_config.{field}={value!r} is not supported" in refused(folder)


def test_fields_without_a_meaning_here_are_no_obstacle(folder):
    before = hf.read_config(folder)
    extra = {"transformers_version": "4.0", "use_cache": True, "head_dim": 8, "factor": None}
    changed(folder, "config.json", rope_scaling=MROPE | {"rope_type": "default"}, **extra)
    assert hf.read_config(folder) == before


@pytest.mark.parametrize(
    "name, fields, message",
    [
        ("preprocessor_config.json", {"image_mean": [0.5, 0.5, 0.5]}, "image_mean="),
        ("processor_config.json", {"image_processor": {"do_normalize": False}}, "do_normalize="),
    ],
)
def test_images_that_would_be_prepared_otherwise(folder, refused, name, fields, message):
    changed(folder, name, **fields)
    assert message in refused(folder) and name in refused(folder)


# The files of weights -----------------------------------------------------------------------------


def test_pickles_are_not_read(folder, refused):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    line = refused(folder)
    assert "pytorch_model.bin" in line and "convert them to safetensors" in line


@pytest.mark.parametrize(
    "name, message",
    [
        ("model.gguf", "holds model.gguf and no model.safetensors"),
        ("model.fp16.safetensors", "holds model.fp16.safetensors"),
        ("adapter_config.json", "merge them into their base"),
    ],
)
def test_other_files_are_named(folder, refused, name, message):
    (folder / "model.safetensors").rename(folder / name)
    assert message in refused(folder)


LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "tokenizer_config.json"])
@pytest.mark.parametrize("text", [LFS, "<html>Sign in</html>"])
def test_files_that_were_not_downloaded_themselves(folder, refused, name, text):
    (folder / name).write_text(text)
    what = "a pointer of Git LFS" if text == LFS else "a page of HTML"
    line = refused(folder)
    assert line.startswith(f"{folder / name}: is {what} and no ") and "file itself" in line


def test_adapters_beside_the_weights_are_refused(folder, refused):
    """transformers adds them to the weights, or to another base that they name."""
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    line = refused(folder)
    assert "holds adapters beside the weights" in line and "move adapter_config.json away" in line


def in_shards(folder, names=("model-00001-of-00002", "model-00002-of-00002")):
    tensors = load_file(folder / "model.safetensors")
    for n, name in enumerate(names):
        part = {key: value for i, (key, value) in enumerate(tensors.items()) if i % 2 == n}
        save_file(part, folder / f"{name}.safetensors")
    (folder / "model.safetensors").unlink()


def test_shards_without_an_index_are_read_when_all_are_there(tiny_model, folder, refused):
    in_shards(folder)
    ours, whole = (loading.load_model(path, make_mesh()).params for path in (folder, tiny_model))
    for name, leaf in hf.by_path(whole).items():
        np.testing.assert_array_equal(hf.by_path(ours)[name].get_value(), leaf.get_value())
    (folder / "model-00002-of-00002.safetensors").unlink()
    assert "lacks model-00002-of-00002.safetensors" in refused(folder)


def test_two_sets_of_weights_are_refused(folder, refused):
    whole = (folder / "model.safetensors").read_bytes()
    in_shards(folder)
    tensors = load_file(folder / "model-00001-of-00002.safetensors")
    index = {"weight_map": dict.fromkeys(tensors, "model-00001-of-00002.safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "model.safetensors").write_bytes(whole)
    assert "delete those that are not meant" in refused(folder)


@pytest.mark.parametrize("added", ["qweight", "weight_scale_inv", "weight.quant_map", "SCB"])
def test_quantised_weights_are_named_by_their_tensors(folder, refused, added):
    """AWQ and GPTQ, FP8, bitsandbytes in 4 and 8 bits, where config.json doesn't say so."""
    tensors = load_file(folder / "model.safetensors")
    layer = "model.layers.0.mlp.up_proj"
    if added == "qweight":
        del tensors[f"{layer}.weight"]
    save_file(
        tensors | {f"{layer}.{added}": np.zeros((2, 2), np.int32)}, folder / "model.safetensors"
    )
    line = refused(folder)
    assert f"quantised weights, which can't be read: {layer}.{added}" in line
    assert "bfloat16 or float32 that they were made from" in line


def test_an_untied_head_is_used_as_transformers_does(folder):
    tensors = load_file(folder / "model.safetensors")
    embedding = tensors["model.embed_tokens.weight"]
    save_file(tensors | {"lm_head.weight": 2 * embedding}, folder / "model.safetensors")
    theirs = Qwen2VLForConditionalGeneration.from_pretrained(folder).lm_head.weight
    config, graph, params, _ = loading.load_model(folder, make_mesh())
    assert not config.text.tie_word_embeddings
    ours = dict(hf.tensors_of(params, config, np.float32))["lm_head.weight"]
    np.testing.assert_array_equal(ours, theirs.detach().numpy())
    np.testing.assert_array_equal(ours, 2 * embedding)

    model, read = loading.open_model(folder)
    assert model.config == config  # an export has it too
    save_file(tensors | {"lm_head.weight": embedding}, folder / "model.safetensors")
    assert loading.open_model(folder)[0].config.text.tie_word_embeddings


@pytest.mark.parametrize(
    "dtypes, kept",
    [("float32", "float32"), ("bfloat16", "bfloat16"), ("float16", "float32")]
    + [("bfloat16 float32", "float32"), ("bfloat16 float16", "float32")],
)
def test_the_dtype_that_weights_are_kept_in(tmp_path, dtypes, kept):
    first, last = dtypes.split()[0], dtypes.split()[-1]
    held = {"a": torch.ones(2, dtype=getattr(torch, first))}
    torch_save(
        held | {"b": torch.ones(2, dtype=getattr(torch, last))}, tmp_path / "model.safetensors"
    )
    (tmp_path / "config.json").write_text("{}")
    assert loading.stored_dtype(tmp_path) == kept


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_imported_run_has_a_dtype_too(folder, tmp_path, dtype):
    model, read = loading.open_model(folder, precision=Precision(jnp.float32, jnp.dtype(dtype)))
    checkpoints.save_params(tmp_path / "run", model.params, read)
    assert loading.stored_dtype(tmp_path / "run") == dtype


# The tokenizer ------------------------------------------------------------------------------------


def test_a_folder_without_a_tokenizer(folder, refused):
    (folder / "tokenizer.json").unlink()
    assert "no tokenizer.json; copy" in refused(folder)


def test_long_rows_bring_no_warning(folder, caplog, monkeypatch):
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model_max_length": 4}))
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    assert len(load_tokenizer(folder).encode("left " * 9, add_special_tokens=False)) > 4
    assert not caplog.records


@pytest.mark.parametrize("text", ["{", "{}", "[]"])
def test_damaged_tokenizers(folder, refused, text):
    (folder / "tokenizer.json").write_text(text)
    assert "the tokenizer can't be loaded" in refused(folder)


def test_tokens_beyond_the_embedding(folder, refused):
    path = folder / "tokenizer.json"
    raw = json.loads(path.read_text())
    rows = json.loads((folder / "config.json").read_text())["vocab_size"]
    raw["added_tokens"].append(raw["added_tokens"][-1] | {"id": rows, "content": "<|new|>"})
    path.write_text(json.dumps(raw))
    assert f"'<|new|>' has the ID {rows}, but the model has only vocab_size={rows}" in refused(
        folder
    )


@pytest.mark.parametrize(
    "names, message",
    [
        ({"<|vision_start|>": "<|seeing|>"}, "no token <|vision_start|>"),
        ({"<|im_end|>": "<|end_of_turn|>"}, "no token <|im_end|>"),
        (
            {"<|image_pad|>": "<|other|>", "<|video_pad|>": "<|image_pad|>"},
            "no token <|video_pad|>",
        ),
        (
            {"<|image_pad|>": "<|x|>", "<|video_pad|>": "<|image_pad|>", "<|x|>": "<|video_pad|>"},
            "config.json says image_token_id=",
        ),
    ],
)
def test_tokenizers_of_other_models(folder, refused, names, message):
    for name in ("tokenizer.json", "tokenizer_config.json"):
        text = (folder / name).read_text()
        for old, new in names.items():
            text = text.replace(old, new)
        (folder / name).write_text(text)
    assert message in refused(folder)


def test_code_in_a_folder_is_not_run(folder, tmp_path):
    changed(folder, "tokenizer_config.json", auto_map={"AutoTokenizer": ["code.Own", None]})
    (folder / "code.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Own: pass\n")
    with contextlib.suppress(CheckpointError):
        load(folder)
    assert not (tmp_path / "ran").exists()
