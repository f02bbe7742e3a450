"""Hugging Face safetensors ↔ our parameters, by one table used in both directions.

Published Qwen2-VL checkpoints name tensors `visual.*`, `model.*`, `lm_head.weight`; newer
transformers say `model.visual.*` and `model.language_model.*`. Both are read; the published names
are written. Our layers are stacked on a leading axis, and only here are they taken apart.
"""

import json
import pathlib
import shutil
from collections.abc import Iterator
from typing import NamedTuple

import jax
import ml_dtypes
import numpy as np
from flax import nnx
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from mirg_jax.errors import CheckpointError
from mirg_jax.models.config import ModelConfig
from mirg_jax.models.qwen2_vl import abstract


class Entry(NamedTuple):
    """One parameter. `name` holds `{}` where a stacked parameter's layer number goes."""

    path: str
    name: str
    kind: str  # "linear": [out, in] there, [in, out] here; "conv": the same, flattened; "same"


def _linear(path: str, name: str, *, bias: bool) -> list[Entry]:
    entries = [Entry(f"{path}.kernel", f"{name}.weight", "linear")]
    return entries + ([Entry(f"{path}.bias", f"{name}.bias", "same")] if bias else [])


def _norm(path: str, name: str, *, bias: bool) -> list[Entry]:
    entries = [Entry(f"{path}.scale", f"{name}.weight", "same")]
    return entries + ([Entry(f"{path}.bias", f"{name}.bias", "same")] if bias else [])


def table(config: ModelConfig) -> list[Entry]:
    """Every parameter of the model, with its published name."""
    tower, block = "visual.blocks", "visual.blocks.{}"
    layers, layer = "decoder.layers", "model.layers.{}"
    entries = [
        Entry("visual.patch_embed.kernel", "visual.patch_embed.proj.weight", "conv"),
        *_norm(f"{tower}.norm1", f"{block}.norm1", bias=True),
        *_linear(f"{tower}.qkv", f"{block}.attn.qkv", bias=True),
        *_linear(f"{tower}.proj", f"{block}.attn.proj", bias=True),
        *_norm(f"{tower}.norm2", f"{block}.norm2", bias=True),
        *_linear(f"{tower}.fc1", f"{block}.mlp.fc1", bias=True),
        *_linear(f"{tower}.fc2", f"{block}.mlp.fc2", bias=True),
        *_norm("visual.merger.norm", "visual.merger.ln_q", bias=True),
        *_linear("visual.merger.fc1", "visual.merger.mlp.0", bias=True),
        *_linear("visual.merger.fc2", "visual.merger.mlp.2", bias=True),
        Entry("embed_tokens.embedding", "model.embed_tokens.weight", "same"),
        *_norm(f"{layers}.input_norm", f"{layer}.input_layernorm", bias=False),
        *_linear(f"{layers}.attention.q_proj", f"{layer}.self_attn.q_proj", bias=True),
        *_linear(f"{layers}.attention.k_proj", f"{layer}.self_attn.k_proj", bias=True),
        *_linear(f"{layers}.attention.v_proj", f"{layer}.self_attn.v_proj", bias=True),
        *_linear(f"{layers}.attention.o_proj", f"{layer}.self_attn.o_proj", bias=False),
        *_norm(f"{layers}.post_norm", f"{layer}.post_attention_layernorm", bias=False),
        *_linear(f"{layers}.gate_proj", f"{layer}.mlp.gate_proj", bias=False),
        *_linear(f"{layers}.up_proj", f"{layer}.mlp.up_proj", bias=False),
        *_linear(f"{layers}.down_proj", f"{layer}.mlp.down_proj", bias=False),
        *_norm("decoder.norm", "model.norm", bias=False),
    ]
    if not config.text.tie_word_embeddings:
        entries += _linear("lm_head", "lm_head", bias=False)
    return entries


def _names(entry: Entry, shape: tuple[int, ...]) -> list[str]:
    return [entry.name.format(i) for i in range(shape[0])] if "{}" in entry.name else [entry.name]


def _published_shape(entry: Entry, shape: tuple[int, ...], config: ModelConfig) -> tuple[int, ...]:
    if "{}" in entry.name:
        shape = shape[1:]
    if entry.kind == "conv":
        patch = config.vision.patch_size
        return (shape[1], 3, config.vision.temporal_patch_size, patch, patch)
    return shape[::-1] if entry.kind == "linear" else shape


def published_name(name: str) -> str:
    """The published (older) form of a tensor's name."""
    for new, old in (("model.visual.", "visual."), ("model.language_model.", "model.")):
        if name.startswith(new):
            return old + name[len(new) :]
    return name


def by_path(state: nnx.State) -> dict[str, nnx.Param]:
    """The parameters keyed by dotted path."""
    return {".".join(map(str, path)): leaf for path, leaf in nnx.to_flat_state(state)}


class _Tensors:
    """The tensors of a folder: `model.safetensors`, or the shards that an index names."""

    def __init__(self, folder: pathlib.Path):
        index = folder / "model.safetensors.index.json"
        if index.exists():
            try:
                files = sorted(set(json.loads(index.read_text())["weight_map"].values()))
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise CheckpointError(
                    f"{index}: not an index of shards ({error}); fetch the checkpoint again"
                ) from None
        else:
            files = ["model.safetensors"]
        self.where: dict[str, tuple[safe_open, str]] = {}
        for file in files:
            try:
                handle = safe_open(folder / file, framework="numpy")
            except (OSError, SafetensorError) as error:
                raise CheckpointError(
                    f"{folder / file}: can't be read ({error}); fetch the checkpoint again"
                ) from None
            for name in handle.keys():  # noqa: SIM118 (not a dict)
                self.where[published_name(name)] = (handle, name)

    def shape(self, name: str) -> tuple[int, ...]:
        handle, stored = self.where[name]
        return tuple(handle.get_slice(stored).get_shape())

    def read(self, name: str) -> np.ndarray:
        handle, stored = self.where[name]
        return handle.get_tensor(stored)


def _check(folder: pathlib.Path, tensors: _Tensors, wanted: dict[str, tuple[int, ...]]) -> None:
    missing = [name for name in wanted if name not in tensors.where]
    extra = [name for name in tensors.where if name not in wanted and name != "lm_head.weight"]
    wrong = [
        f"{name} is {tensors.shape(name)}, not {shape}"
        for name, shape in wanted.items()
        if name in tensors.where and tensors.shape(name) != shape
    ]
    for problem, names in (("lacks", missing), ("has unknown", extra), ("misshapen:", wrong)):
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            raise CheckpointError(
                f"{folder}: the checkpoint {problem} {', '.join(names[:3])}{more}; "
                "is this the folder whose config.json was read?"
            )


def load(folder: str | pathlib.Path, state: nnx.State, config: ModelConfig) -> nnx.State:
    """Reads a checkpoint into the form, dtypes and shardings of the abstract `state`.

    Names and shapes are checked before anything is loaded; then one parameter at a time is read.

    Raises:
      CheckpointError: naming the tensors that are missing, unknown or misshapen.
    """
    folder = pathlib.Path(folder)
    leaves = by_path(state)
    tensors = _Tensors(folder)
    entries = table(config)
    wanted = {
        name: _published_shape(entry, leaves[entry.path].shape, config)
        for entry in entries
        for name in _names(entry, leaves[entry.path].shape)
    }
    _check(folder, tensors, wanted)

    loaded = {}
    for entry in entries:
        leaf = leaves[entry.path]
        value = np.empty(leaf.shape, leaf.dtype)
        slices = value if "{}" in entry.name else [value]
        for name, target in zip(_names(entry, leaf.shape), slices, strict=True):
            tensor = tensors.read(name)
            if entry.kind == "conv":
                tensor = tensor.reshape(tensor.shape[0], -1)
            target[...] = tensor if entry.kind == "same" else tensor.T
        loaded[entry.path] = leaf.replace(jax.device_put(value, getattr(leaf, "sharding", None)))
    flat = [(path, loaded[".".join(map(str, path))]) for path, _ in nnx.to_flat_state(state)]
    return nnx.from_flat_state(flat)


def tensors_of(
    state: nnx.State, config: ModelConfig, dtype: np.dtype
) -> Iterator[tuple[str, np.ndarray]]:
    """Published names and tensors, one at a time.

    Raises:
      ValueError: for parameters that have no published name.
    """
    leaves, entries = by_path(state), table(config)
    if unknown := leaves.keys() - {entry.path for entry in entries}:
        raise ValueError(f"{min(unknown)} has no published name; merge adapters into their base")
    for entry in entries:
        leaf = leaves[entry.path]
        value = np.asarray(jax.device_get(leaf.get_value()))
        slices = value if "{}" in entry.name else [value]
        for name, tensor in zip(_names(entry, value.shape), slices, strict=True):
            tensor = tensor if entry.kind == "same" else tensor.T
            shape = _published_shape(entry, value.shape, config)
            yield name, np.ascontiguousarray(tensor.reshape(shape)).astype(dtype)


def save(
    folder: str | pathlib.Path,
    state: nnx.State,
    config: ModelConfig,
    *,
    dtype: str = "float32",
    shard_bytes: int = 5_000_000_000,
) -> None:
    """Writes config.json and safetensors under their published names, which transformers loads.

    Args:
      dtype: of the tensors written: float32, bfloat16 or float16.
      shard_bytes: a new file is begun when one would grow past this.
    """
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    np_dtype = np.dtype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    names: list[list[str]] = []
    shard, size, total = {}, 0, 0

    def flush():
        save_file(shard, folder / f"part-{len(names)}.safetensors", metadata={"format": "pt"})
        names.append(list(shard))

    for name, tensor in tensors_of(state, config, np_dtype):
        if shard and size + tensor.nbytes > shard_bytes:
            flush()
            shard, size = {}, 0
        shard[name] = tensor
        size += tensor.nbytes
        total += tensor.nbytes
    flush()

    weight_map = {}
    for i, held in enumerate(names):
        file = "model.safetensors"
        if len(names) > 1:
            file = f"model-{i + 1:05d}-of-{len(names):05d}.safetensors"
        (folder / f"part-{i}.safetensors").rename(folder / file)
        weight_map |= dict.fromkeys(held, file)
    if len(names) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1))
    (folder / "config.json").write_text(json.dumps(config.to_hf(), indent=2) + "\n")


def copy_processor(source: str | pathlib.Path, target: str | pathlib.Path) -> None:
    """Copies tokenizer and preprocessor files, so that `target` is complete for transformers."""
    target = pathlib.Path(target)
    target.mkdir(parents=True, exist_ok=True)
    for file in sorted(pathlib.Path(source).iterdir()):
        if file.suffix in (".json", ".txt", ".jinja") and not file.name.startswith(
            ("config.json", "model.safetensors")
        ):
            shutil.copyfile(file, target / file.name)


def from_pretrained(folder: str | pathlib.Path, **options) -> tuple[nnx.GraphDef, nnx.State]:
    """A model from a local folder; `options` as for `qwen2_vl.create`."""
    config = ModelConfig.from_folder(folder)
    graph, state = abstract(config, **options)
    return graph, load(folder, state, config)
