"""Conversion between Hugging Face safetensors and our parameters, by the table in `published.py`.

Published names and those of newer versions of transformers are read; those that the family is
published with are written. Our layers are stacked on a leading axis; only this module unstacks
them.
"""

import concurrent.futures
import dataclasses
import json
import logging
import os
import pathlib
import shutil
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import ml_dtypes
import numpy as np
from flax import nnx

from mirg_jax.files import outputs, places
from mirg_jax.files.places import Place
from mirg_jax.models.config import ModelConfig
from mirg_jax.models.options import DEFAULT, ModelOptions
from mirg_jax.models.qwen2_vl import abstract
from mirg_jax.weights import preprocessor, safetensors_files, tensor_check
from mirg_jax.weights.published import Entry, published_name, table, written_name
from mirg_jax.weights.safetensors_files import Spec, Tensors

Index = tuple[slice, ...]
# `read(path, index, out)` fills `out` with the slice `index` of the parameter at a dotted path,
# cast to `out.dtype`: a common interface for safetensors files, Orbax files and device arrays.
Read = Callable[[str, Index, np.ndarray], None]


def by_path(state: nnx.State) -> dict[str, nnx.Param]:
    """Returns the parameters as a dictionary with dotted paths as keys."""
    return {".".join(map(str, path)): leaf for path, leaf in nnx.to_flat_state(state)}


def read_config(folder: str | pathlib.Path) -> ModelConfig:
    """Reads the config.json of a safetensors checkpoint; its tensors decide about a tied head.

    Where config.json ties the head to the embedding, but the files have a head of other values,
    the head is the model's own, as in transformers.

    Raises:
      CheckpointError: if config.json or a file is missing, damaged or not supported.
    """
    folder = pathlib.Path(folder)
    config = ModelConfig.from_folder(folder)
    preprocessor.check(folder, config.vision)
    if not config.text.tie_word_embeddings:
        return config
    tensors = Tensors(folder, published_name)
    if tensors.are_equal("lm_head.weight", "model.embed_tokens.weight"):
        return config
    logging.warning(
        "%s: config.json ties lm_head.weight to the embedding, but the files have another; theirs "
        "is used, set tie_word_embeddings to false there",
        folder,
    )
    text = dataclasses.replace(config.text, tie_word_embeddings=False)
    return dataclasses.replace(config, text=text)


def stored_dtype(folder: str | pathlib.Path) -> str:
    """Returns the narrowest of float32 and bfloat16 that holds all tensors of a checkpoint.

    Raises:
      CheckpointError: if a file is missing or damaged.
    """
    dtypes = set(Tensors(pathlib.Path(folder), published_name).dtypes.values())
    return "bfloat16" if dtypes == {"BF16"} else "float32"


def reader(folder: str | pathlib.Path, state: nnx.State, config: ModelConfig) -> Read:
    """Opens a safetensors checkpoint and checks names, shapes and dtypes; reads headers only.

    Args:
      folder: the checkpoint.
      state: the model's parameters; arrays or shapes.
      config: the model's configuration.

    Raises:
      CheckpointError: if a file is missing or damaged, or a tensor is missing, unknown, quantised
        or of another shape; the message names them.
    """
    folder = pathlib.Path(folder)
    leaves = by_path(state)
    entries = {entry.path: entry for entry in table(config)}
    tensors = Tensors(folder, published_name)
    wanted = {
        name: entry.published_shape(leaves[path].shape, config)
        for path, entry in entries.items()
        for name in entry.names(leaves[path].shape)
    }
    tensor_check.check(folder, tensors, wanted, lambda name: written_name(name, config))

    def fill(entry: Entry, name: str, index: Index, out: np.ndarray) -> None:
        if entry.kind == "same":
            for rows, block in tensors.blocks(name, index):
                out[rows] = block
            return
        inputs, outputs = index
        rest = [inputs] if entry.kind == "linear" else [slice(None)] * 4
        for rows, block in tensors.blocks(name, (outputs, *rest)):
            if entry.kind == "conv":
                block = block.reshape(len(block), -1)[:, inputs]
            safetensors_files.copy(out.T[rows], block)

    def read(path: str, index: Index, out: np.ndarray) -> None:
        entry, shape = entries[path], leaves[path].shape
        names = entry.names(shape)
        if not entry.is_stacked:
            return fill(entry, names[0], index, out)
        with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
            jobs = [
                pool.submit(fill, entry, name, index[1:], layer)
                for name, layer in zip(names[index[0]], out, strict=True)
            ]
            for job in jobs:
                job.result()

    return read


def load(folder: str | pathlib.Path, state: nnx.State, config: ModelConfig) -> nnx.State:
    """Reads a checkpoint into parameters with the dtypes and shardings of the abstract `state`.

    Names and shapes are checked before anything is loaded. Each device's shard of a parameter is
    then read separately, from the file slices that it needs, by the process that owns the device.
    The host holds one shard at a time.

    Args:
      folder: the checkpoint.
      state: shapes, dtypes and shardings of the parameters.
      config: the model's configuration.

    Raises:
      CheckpointError: see `reader`.
    """
    read = reader(folder, state, config)
    flat = [
        (path, leaf.replace(_placed(read, ".".join(map(str, path)), leaf)))
        for path, leaf in nnx.to_flat_state(state)
    ]
    return nnx.from_flat_state(flat)


def _placed(read: Read, path: str, leaf: nnx.Param) -> jax.Array:
    def part(index: Index) -> np.ndarray:
        shape = [len(range(*s.indices(size))) for s, size in zip(index, leaf.shape, strict=True)]
        out = _aligned(tuple(shape), leaf.dtype)
        read(path, index, out)
        return out

    sharding = getattr(leaf, "sharding", None)
    if sharding is None:
        return jax.block_until_ready(jax.device_put(part((slice(None),) * len(leaf.shape))))
    holders: dict[tuple, list[tuple[jax.Device, Index]]] = {}
    for device, index in sharding.addressable_devices_indices_map(leaf.shape).items():
        bounds = tuple(s.indices(size) for s, size in zip(index, leaf.shape, strict=True))
        holders.setdefault(bounds, []).append((device, index))
    arrays = []
    for group in holders.values():
        value = part(group[0][1])
        copies = [jax.device_put(value, device) for device, _ in group]
        arrays += jax.block_until_ready(copies)  # frees this shard before the next is read
    return jax.make_array_from_single_device_arrays(leaf.shape, sharding, arrays)


def _aligned(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Allocates an uninitialised array, aligned so that a CPU device can use it without a copy."""
    nbytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
    memory = np.empty(nbytes + 64, np.uint8)
    start = -memory.ctypes.data % 64
    return memory[start : start + nbytes].view(dtype).reshape(shape)


def of_state(state: nnx.State) -> Read:
    """Returns a `Read` of parameters on devices; it transfers only the slices requested."""
    leaves = by_path(state)

    def read(path: str, index: Index, out: np.ndarray) -> None:
        whole = leaves[path].get_value()
        part = whole[index]
        # A jax.Array caches its host copy. A copy of the parameter keeps that memory temporary.
        part = jax.numpy.copy(part) if part is whole else part
        safetensors_files.copy(out, np.asarray(part))

    return read


def tensors_of(
    state: nnx.State, config: ModelConfig, dtype: np.dtype | type
) -> Iterator[tuple[str, np.ndarray]]:
    """Yields published names and tensors, one at a time.

    Args:
      state: the model's parameters.
      config: the model's configuration.
      dtype: dtype of the tensors.

    Raises:
      ValueError: if a parameter has no published name.
    """
    read = of_state(state)
    for piece in _pieces(state, config, np.dtype(dtype)):
        yield piece.spec.name, _published(read, piece)


class _Piece(NamedTuple):
    """A published tensor and the slice of our parameter that it comes from."""

    entry: Entry
    index: Index
    shape: tuple[int, ...]  # shape of the slice
    spec: Spec


def _pieces(state: nnx.State, config: ModelConfig, dtype: np.dtype) -> list[_Piece]:
    pieces, leaves, entries = [], by_path(state), table(config)
    if unknown := leaves.keys() - {entry.path for entry in entries}:
        raise ValueError(f"{min(unknown)} has no published name; merge adapters into their base")
    for entry in entries:
        shape = leaves[entry.path].shape
        published = entry.published_shape(shape, config)
        for i, name in enumerate(entry.names(shape)):
            whole = (slice(None),) * len(shape)
            layer = (slice(i, i + 1), *whole[1:])
            part = (1, *shape[1:]) if entry.is_stacked else shape
            spec = Spec(name, published, dtype)
            pieces.append(_Piece(entry, layer if entry.is_stacked else whole, part, spec))
    return pieces


def _published(read: Read, piece: _Piece) -> np.ndarray:
    _, index, shape, spec = piece
    if piece.entry.kind == "same":
        out = np.empty(shape, spec.dtype)
        read(piece.entry.path, index, out)
    else:
        out = np.empty((*shape[:-2], shape[-1], shape[-2]), spec.dtype)
        read(piece.entry.path, index, out.swapaxes(-1, -2))
    return out.reshape(spec.shape)


def ahead(function: Callable, items: list) -> Iterator:
    """Yields `function(item)` for each item, computing the next result in a background thread."""
    if not items:
        return
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        pending = pool.submit(function, items[0])
        for item in items[1:]:
            ready, pending = pending.result(), pool.submit(function, item)
            yield ready
        yield pending.result()


def save(
    folder: str | pathlib.Path,
    state: nnx.State,
    config: ModelConfig,
    *,
    dtype: str = "float32",
    shard_bytes: int = 5_000_000_000,
    read: Read | None = None,
    resume: bool = False,
    progress: Callable[[int], object] = lambda nbytes: None,
) -> None:
    """Writes a checkpoint that transformers loads: config.json and safetensors files.

    Tensors are read and written one at a time. A file is renamed to its final name once complete.

    Args:
      folder: where to write.
      state: the model's parameters; arrays, or shapes if `read` is given.
      config: the model's configuration.
      dtype: dtype of the written tensors: float32, bfloat16 or float16.
      shard_bytes: maximum size of a file in bytes (a larger tensor gets a file of its own).
      read: source of the parameters; by default the arrays of `state`.
      resume: whether to keep files completed by an interrupted call with the same arguments.
      progress: called with the number of bytes of each tensor after it is written.
    """
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    read = read or of_state(state)
    np_dtype = np.dtype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)

    shards: list[list[_Piece]] = [[]]
    size, total = 0, 0
    for piece in _pieces(state, config, np_dtype):
        spec = piece.spec._replace(name=written_name(piece.spec.name, config))
        piece = piece._replace(spec=spec)
        nbytes = piece.spec.nbytes
        if shards[-1] and size + nbytes > shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(piece)
        size += nbytes
        total += nbytes

    def tensors(pieces: list[_Piece]) -> Iterator[np.ndarray]:
        for tensor in ahead(lambda piece: _published(read, piece), pieces):
            yield tensor
            progress(tensor.nbytes)

    weight_map = {}
    for i, pieces in enumerate(shards):
        file = "model.safetensors"
        if len(shards) > 1:
            file = f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors"
        specs = [piece.spec for piece in pieces]
        if resume and safetensors_files.is_whole(folder / file, specs):
            progress(sum(spec.nbytes for spec in specs))
        else:
            safetensors_files.write(folder / file, specs, tensors(pieces))
        weight_map |= {spec.name: file for spec in specs}
    if len(shards) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1))
    (folder / "config.json").write_text(json.dumps(config.to_hf(), indent=2) + "\n")


def copy_processor(source: str | pathlib.Path, target: str | Place) -> None:
    """Copies tokenizer and preprocessor files, so that transformers can load `target`."""
    target = places.of(target)
    outputs.make_folder(target)
    for file in sorted(pathlib.Path(source).iterdir()):
        if file.suffix in (".json", ".txt", ".jinja") and not file.name.startswith(
            ("config.json", "model.safetensors")
        ):
            if isinstance(target, pathlib.Path):
                with outputs.whole(target / file.name) as part:
                    shutil.copyfile(file, part)
            else:
                places.write_bytes(target / file.name, file.read_bytes())


def from_pretrained(
    folder: str | pathlib.Path, options: ModelOptions = DEFAULT
) -> tuple[nnx.GraphDef, nnx.State]:
    """Loads a model from a local folder, split into its graph and its parameters."""
    config = read_config(folder)
    graph, state = abstract(config, options)
    return graph, load(folder, state, config)
