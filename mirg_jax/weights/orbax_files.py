"""Orbax checkpoints of parameters, written and read in chunks, so that memory use stays small.

The result is an ordinary Orbax checkpoint of a dictionary of arrays. Each chunk of one or a few
layers is a file, which is renamed to its final name once complete. Chunks are not compressed, since
weights hardly shrink.
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

from mirg_jax.files import places
from mirg_jax.files.places import Place
from mirg_jax.weights.hf import Index, Read, ahead, by_path
from mirg_jax.weights.safetensors_files import copy

_CHUNK_BYTES = 2**25


def write(
    folder: str | pathlib.Path,
    state: nnx.State,
    read: Read,
    progress: Callable[[int], object] = lambda nbytes: None,
) -> None:
    """Writes a checkpoint of parameters, one chunk at a time.

    An interrupted call can be continued by calling again with the same arguments; chunks already
    written are kept.

    Args:
      folder: where to write; it is a complete checkpoint only when this function has returned.
      state: shapes and dtypes of the parameters.
      read: source of the parameters.
      progress: called with the number of bytes of each chunk after it is written.

    Raises:
      OSError: if the disk is full.
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


def reader(folder: str | Place) -> Read:
    """Opens an Orbax checkpoint of parameters for reading, one chunk at a time.

    Checkpoints from `write` have chunks of one or a few layers. Checkpoints saved by a run have
    larger ones: a whole stacked parameter, or as many of its rows as Orbax stored together.
    """
    folder = places.absolute(places.of(folder))
    base = str(folder) if places.is_url(folder) else f"file://{folder}"
    ocdbt = ocp.type_handlers.is_ocdbt_checkpoint(folder)
    held: dict[tuple[str, int, int], np.ndarray] = {}

    def read(path: str, index: Index, out: np.ndarray) -> None:
        if ocdbt:
            where = {"driver": "ocdbt", "base": f"{base}/", "path": f"{path}/"}
        elif places.is_url(folder):
            where = f"{base}/{path}/"
        else:
            where = {"driver": "file", "path": f"{folder / path}/"}
        store = ts.open({"driver": "zarr", "kvstore": where}, open=True).result()
        size, rows = store.shape[0], store.chunk_layout.read_chunk.shape[0]
        start, stop, _ = index[0].indices(size)
        first, last = start // rows * rows, min(-(-stop // rows) * rows, size)
        if (path, first, last) not in held:
            held.clear()  # frees the previous chunk before the next is read
            held[path, first, last] = store[first:last].read().result()
        part = held[path, first, last][start - first : stop - first]
        copy(out, part[(slice(None), *index[1:])])

    return read


class _Unread:
    """Placeholder for a parameter that has not been read yet."""

    def __init__(self, path: str, leaf: Any):
        self.path, self.shape, self.dtype = path, leaf.shape, np.dtype(leaf.dtype)


class _ChunkWriter(ocp.type_handlers.ArrayHandler):
    """Orbax type handler that reads an `_Unread` parameter and writes it as an array, in chunks."""

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

        # In zarr, an uncompressed chunk is a file with the array's raw bytes; the last chunk is
        # padded to full size. These files are written directly, because tensorstore would copy the
        # data once more, and allocating memory takes most of the time on some machines. For the
        # same reason two buffers are used alternately.
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
    """Converts dotted keys to nested dictionaries: {"a.b": x} → {"a": {"b": x}}."""
    tree: dict = {}
    for path, leaf in leaves.items():
        *parents, last = path.split(".")
        node = tree
        for name in parents:
            node = node.setdefault(name, {})
        node[last] = leaf
    return tree
