"""Parameters in Orbax's files, written and read by parts, so that a model is never held whole.

What is written is an ordinary Orbax checkpoint of a dictionary of arrays, in chunks of a layer or
a few, each a file that gets its name when it is whole. Not compressed: weights hardly shrink.
"""

import itertools
import math
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import tensorstore as ts
from flax import nnx

from mirg_jax.weights.hf import Index, Read, ahead, by_path
from mirg_jax.weights.safetensors_files import copy

_CHUNK_BYTES = 2**25


def write(
    folder: str | pathlib.Path,
    state: nnx.State,
    read: Read,
    progress: Callable[[int], object] = lambda nbytes: None,
) -> None:
    """Writes the parameters whose shapes and dtypes `state` holds, a chunk at a time.

    What an interrupted call with the same arguments wrote is kept: call it again to go on.

    Args:
      folder: is the checkpoint only when this returns; until then it is not to be read.
      read: where the parameters come from.
      progress: told of the bytes of each chunk when it is written.

    Raises:
      OSError: when the disk is full.
    """
    folder = pathlib.Path(folder).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    leaves = {path: _Unread(path, leaf) for path, leaf in by_path(state).items()}
    registry = ocp.type_handlers.create_type_handler_registry()
    registry.add(
        jax.Array,
        _ChunkWriter(read, progress),
        func=lambda kind: issubclass(kind, (jax.Array, _Unread)),
    )
    writer = ocp.PyTreeCheckpointHandler(use_ocdbt=False, type_handler_registry=registry)
    writer.save(folder, args=ocp.args.PyTreeSave(_nested(leaves)))


def reader(folder: str | pathlib.Path) -> Read:
    """Reads a checkpoint of parameters, no more of one at a time than its chunks make necessary.

    What `write` wrote is read by a chunk; what a run saved by a whole (stacked) parameter, or by as
    many of its rows as Orbax put together.
    """
    folder = pathlib.Path(folder).absolute()
    ocdbt = ocp.type_handlers.is_ocdbt_checkpoint(folder)
    held: dict[tuple[str, int, int], np.ndarray] = {}

    def read(path: str, index: Index, out: np.ndarray) -> None:
        if ocdbt:
            where = {"driver": "ocdbt", "base": f"file://{folder}/", "path": f"{path}/"}
        else:
            where = {"driver": "file", "path": f"{folder / path}/"}
        store = ts.open({"driver": "zarr", "kvstore": where}, open=True).result()
        size, rows = store.shape[0], store.chunk_layout.read_chunk.shape[0]
        start, stop, _ = index[0].indices(size)
        first, last = start // rows * rows, min(-(-stop // rows) * rows, size)
        if (path, first, last) not in held:
            held.clear()  # before the next takes memory
            held[path, first, last] = store[first:last].read().result()
        part = held[path, first, last][start - first : stop - first]
        copy(out, part[(slice(None), *index[1:])])

    return read


class _Unread:
    """A parameter that is still to be read."""

    def __init__(self, path: str, leaf: Any):
        self.path, self.shape, self.dtype = path, leaf.shape, np.dtype(leaf.dtype)


class _ChunkWriter(ocp.type_handlers.ArrayHandler):
    """Writes an `_Unread`, chunk by chunk, as the array that it stands for."""

    def __init__(self, read: Read, progress: Callable[[int], object]):
        super().__init__()
        self._read, self._progress = read, progress

    async def serialize(
        self, values: Sequence[_Unread], infos: Sequence[ocp.type_handlers.ParamInfo], args=None
    ) -> list:
        for value, info in zip(values, infos, strict=True):
            await info.await_path_creation()
            self._write(value, info.path)
        return []

    def _write(self, value: _Unread, path: pathlib.Path) -> None:
        size, *rest = value.shape
        row = math.prod(rest) * value.dtype.itemsize
        rows = min(size, max(1, _CHUNK_BYTES // row))
        ts.open(
            {
                "driver": "zarr",
                "kvstore": {"driver": "file", "path": str(path)},
                "dtype": value.dtype.name,
                "metadata": {
                    "shape": value.shape,
                    "chunks": (rows, *rest),
                    "compressor": None,
                    "filters": None,
                    "order": "C",
                    "dimension_separator": ".",
                },
            },
            open=True,
            create=True,
        ).result()

        # An uncompressed chunk is a file of its numbers, the last filled up to the size of all.
        # Written as such: tensorstore copies it once more, and on some machines fresh memory is
        # what takes most of the time. For the same reason two chunks of memory serve in turn.
        memory = itertools.cycle([np.zeros((rows, *rest), value.dtype) for _ in range(2)])

        def chunk(number: int) -> np.ndarray:
            first = number * rows
            held = min(rows, size - first)
            out = next(memory)
            index = (slice(first, first + held), *(slice(None) for _ in rest))
            self._read(value.path, index, out[:held])
            return out

        files = [
            path / ".".join(map(str, (n, *(0 for _ in rest)))) for n in range(-(-size // rows))
        ]
        held = [min(rows, size - n * rows) * row for n in range(len(files))]
        missing = [n for n, file in enumerate(files) if not file.exists()]
        if len(missing) < len(files):
            self._progress(sum(held) - sum(held[n] for n in missing))
        for n, out in zip(missing, ahead(chunk, missing), strict=True):
            unfinished = files[n].with_name(f"{files[n].name}.unfinished")
            with open(unfinished, "wb") as file:
                file.write(out.reshape(-1).view(np.uint8).data)
            os.replace(unfinished, files[n])
            self._progress(held[n])


def _nested(leaves: dict[str, Any]) -> dict:
    """{"a.b": x} → {"a": {"b": x}}."""
    tree: dict = {}
    for path, leaf in leaves.items():
        *parents, last = path.split(".")
        node = tree
        for name in parents:
            node = node.setdefault(name, {})
        node[last] = leaf
    return tree
