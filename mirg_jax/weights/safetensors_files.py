"""Reading and writing of safetensors files in small pieces, so that memory use stays small."""

import json
import math
import os
import pathlib
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from safetensors import SafetensorError, safe_open

from mirg_jax.errors import CheckpointError
from mirg_jax.files.stand_ins import find_stand_in_of

FLOATS = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}  # NumPy's name: safetensors' name
_BLOCK_BYTES = 2**23
_SHARD = re.compile(r"model-(?P<number>\d{1,9})-of-(?P<count>\d{1,9})\.safetensors")
_PICKLES = (".bin", ".pt", ".pth", ".ckpt")
_OTHER_FORMATS = (".safetensors", ".gguf", ".h5", ".msgpack", ".npz", ".onnx")


def copy(target: np.ndarray, source: np.ndarray) -> None:
    """Copies `source` into `target` in blocks that fit the CPU cache.

    This is faster than `target[...] = source` where one is a transposed view.
    """
    if source.ndim > 2:
        for part, value in zip(target, source, strict=True):
            copy(part, value)
    else:
        for start in range(0, len(source), 128):
            block = source[start : start + 128].astype(target.dtype, copy=False)
            target[start : start + 128] = block


class Tensors:
    """The tensors of a checkpoint folder: `model.safetensors`, or all shards.

    Files are opened for each read and closed again, because the mapped pages of an open file count
    as this process's memory.

    Attributes:
      shapes: shapes of the tensors by (renamed) name.
      dtypes: safetensors' dtype names by (renamed) name.

    Raises:
      CheckpointError: if a file is missing or damaged; the message names it.
    """

    def __init__(self, folder: pathlib.Path, rename: Callable[[str], str]):
        self._where: dict[str, tuple[pathlib.Path, str]] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.dtypes: dict[str, str] = {}
        for file in _files(folder):
            try:
                with safe_open(file, framework="numpy") as handle:
                    for name in handle.keys():  # noqa: SIM118 (not a dict)
                        view = handle.get_slice(name)
                        self._where[rename(name)] = (file, name)
                        self.shapes[rename(name)] = tuple(view.get_shape())
                        self.dtypes[rename(name)] = view.get_dtype()
            except (OSError, SafetensorError) as error:
                if stand_in := find_stand_in_of(file):
                    what, remedy = stand_in
                    raise CheckpointError(f"{file}: is {what} and no weights; {remedy}") from None
                raise CheckpointError(
                    f"{file}: can't be read ({error}); download the checkpoint again"
                ) from None

    def stored_name(self, name: str) -> str:
        """Returns the name that a tensor has in its file."""
        return self._where[name][1]

    def blocks(self, name: str, index: Sequence[slice]) -> Iterator[tuple[slice, np.ndarray]]:
        """Reads the slice `index` of a tensor in blocks of rows.

        Yields:
          Row range of each block within the slice, and the block.
        """
        file, stored = self._where[name]
        ranges = [part.indices(size) for part, size in zip(index, self.shapes[name], strict=True)]
        start, stop, _ = ranges[0]
        row = 4 * math.prod(end - begin for begin, end, _ in ranges[1:])
        step = max(1, _BLOCK_BYTES // row)
        for first in range(start, stop, step):
            rows = slice(first, min(first + step, stop))
            with safe_open(file, framework="numpy") as handle:
                block = handle.get_slice(stored)[(rows, *index[1:])]
            yield slice(rows.start - start, rows.stop - start), block

    def are_equal(self, one: str, other: str) -> bool:
        """Returns whether two tensors have the same values, or one of them is missing."""
        if one not in self.shapes or other not in self.shapes:
            return True
        floats = {self.dtypes[one], self.dtypes[other]} <= {*FLOATS.values()}
        if self.shapes[one] != self.shapes[other] or not floats:
            return False
        whole = [slice(None)] * len(self.shapes[one])
        pairs = zip(self.blocks(one, whole), self.blocks(other, whole), strict=True)
        return all((a.astype(np.float32) == b.astype(np.float32)).all() for (_, a), (_, b) in pairs)


def _files(folder: pathlib.Path) -> list[pathlib.Path]:
    """Returns the files with a checkpoint's tensors.

    Raises:
      CheckpointError: if there are none, some are missing, or it is unclear which are meant.
    """
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    adapters = folder / "adapter_config.json"
    if adapters.exists() and (single.exists() or index.exists()):
        raise CheckpointError(
            f"{folder}: holds adapters beside the weights ({adapters.name}), which transformers "
            "adds to them; merge them with peft (merge_and_unload, save_pretrained), or, if the "
            f"weights are meant without them, move {adapters.name} away"
        )
    if not index.exists():
        return [single] if single.exists() else _shards(folder)
    try:
        files = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        paths = [folder / file for file in files]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(
            f"{index}: not an index of shards ({error}); download the checkpoint again"
        ) from None
    missing = [path.name for path in paths if not path.exists()]
    if missing:
        raise CheckpointError(
            f"{folder}: lacks {some(missing)}, which {index.name} names; "
            "download the checkpoint again"
        )
    if single.exists() and single not in paths:
        raise CheckpointError(
            f"{folder}: holds {single.name} beside the shards of {index.name}, and libraries "
            "differ in which they read; delete those that are not meant"
        )
    return paths


def _shards(folder: pathlib.Path) -> list[pathlib.Path]:
    """Returns the shards of a folder without an index; their names say how many there are."""
    found = {path: _SHARD.fullmatch(path.name) for path in sorted(folder.glob("*.safetensors"))}
    counts = {match["count"] for match in found.values() if match}
    if len(counts) != 1 or not all(found.values()):
        raise CheckpointError(_not_safetensors(folder))
    (count,) = counts
    numbers = {int(match["number"]) for match in found.values()}
    if missing := sorted({*range(1, int(count) + 1)} - numbers):
        names = [f"model-{number:0{len(count)}d}-of-{count}.safetensors" for number in missing]
        raise CheckpointError(f"{folder}: lacks {some(names)}; download the checkpoint again")
    return list(found)


def _not_safetensors(folder: pathlib.Path) -> str:
    """Returns what to say of a folder without the files that are read."""
    names = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    if "adapter_config.json" in names:
        return (
            f"{folder}: holds adapters and no model.safetensors; merge them into their base with "
            "peft (merge_and_unload, save_pretrained)"
        )
    if pickles := [name for name in names if name.endswith(_PICKLES)]:
        return (
            f"{folder}: holds {some(pickles)} and no model.safetensors; files of PyTorch are not "
            "read, since they can run code: convert them to safetensors "
            "(from_pretrained, save_pretrained in transformers)"
        )
    if others := [name for name in names if name.endswith(_OTHER_FORMATS)]:
        return (
            f"{folder}: holds {some(others)} and no model.safetensors; give the checkpoint in "
            "Hugging Face's safetensors, named model.safetensors or by an index"
        )
    return f"{folder / 'model.safetensors'}: can't be read (no such file); download it again"


def some(names: Sequence[str]) -> str:
    """Returns the first names and the number of the others, for a message."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


class Spec(NamedTuple):
    """Name, shape and dtype of a tensor to write."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def nbytes(self) -> int:
        """Size of the tensor's data in bytes."""
        return math.prod(self.shape) * self.dtype.itemsize


def header(specs: Sequence[Spec]) -> bytes:
    """Returns the header of a safetensors file with these tensors, including its length field."""
    entries, offset = {"__metadata__": {"format": "pt"}}, 0
    for spec in specs:
        entries[spec.name] = {
            "dtype": FLOATS[spec.dtype.name],
            "shape": list(spec.shape),
            "data_offsets": [offset, offset + spec.nbytes],
        }
        offset += spec.nbytes
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def is_whole(path: pathlib.Path, specs: Sequence[Spec]) -> bool:
    """Returns whether `path` is a complete file with these tensors, judged by header and size."""
    start = header(specs)
    try:
        size = path.stat().st_size
        with open(path, "rb") as file:
            return (
                size == len(start) + sum(s.nbytes for s in specs) and file.read(len(start)) == start
            )
    except FileNotFoundError:
        return False


def write(path: pathlib.Path, specs: Sequence[Spec], tensors: Iterable[np.ndarray]) -> None:
    """Writes a safetensors file one tensor at a time; it is renamed to `path` once complete.

    Args:
      path: the file to write.
      specs: names, shapes and dtypes of the tensors.
      tensors: their values, in the same order.
    """
    unfinished = path.with_name(f"{path.name}.unfinished")
    with open(unfinished, "wb") as file:
        file.write(header(specs))
        for spec, tensor in zip(specs, tensors, strict=True):
            assert (tensor.shape, tensor.dtype) == (spec.shape, spec.dtype), spec
            file.write(np.ascontiguousarray(tensor).reshape(-1).view(np.uint8).data)
    os.replace(unfinished, path)
