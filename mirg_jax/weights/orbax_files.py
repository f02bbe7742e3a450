"""Parameters in Orbax's files, written and read by parts, so that a model is never held whole.

What is written is an ordinary Orbax checkpoint of a dictionary of arrays, in chunks of a layer or
a few, each a file that gets its name when it is whole. Not compressed: weights hardly shrink.
"""

import math
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

_CHUNK_BYTES = 2**26


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
    """Reads a checkpoint of parameters, one whole (stacked) parameter at a time."""
    folder = pathlib.Path(folder).absolute()
    held: dict[str, np.ndarray] = {}

    def read(path: str, index: Index, out: np.ndarray) -> None:
        if path not in held:
            held.clear()  # before the next takes memory
            handler = ocp.PyTreeCheckpointHandler()
            restored = handler.restore(
                folder,
                args=ocp.args.PyTreeRestore(
                    item=_nested({path: 0}),
                    restore_args=_nested({path: ocp.RestoreArgs(restore_type=np.ndarray)}),
                    partial_restore=True,
                ),
            )
            (held[path],) = jax.tree.leaves(restored)
        copy(out, held[path][index])

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
        row = math.prod(value.shape[1:]) * value.dtype.itemsize
        rows = min(value.shape[0], max(1, _CHUNK_BYTES // row))
        store = ts.open(
            {
                "driver": "zarr",
                "kvstore": {"driver": "file", "path": str(path)},
                "dtype": value.dtype.name,
                "metadata": {
                    "shape": value.shape,
                    "chunks": (rows, *value.shape[1:]),
                    "compressor": None,
                    "dimension_separator": ".",
                },
                "store_data_equal_to_fill_value": True,
            },
            open=True,
            create=True,
            # A process may be killed at any time and nothing is lost; waiting for the disk as well
            # would guard against the machine's own end, at thrice the time.
            context=ts.Context({"file_io_sync": False}),
        ).result()

        def chunk(start: int) -> tuple[Index, np.ndarray]:
            index = (slice(start, min(start + rows, value.shape[0])),)
            index += (slice(None),) * (len(value.shape) - 1)
            out = np.empty((index[0].stop - start, *value.shape[1:]), value.dtype)
            self._read(value.path, index, out)
            return index, out

        missing = []
        for start in range(0, value.shape[0], rows):
            name = ".".join(str(i) for i in (start // rows, *(0,) * (len(value.shape) - 1)))
            if (path / name).exists():
                self._progress(min(rows, value.shape[0] - start) * row)
            else:
                missing.append(start)
        for index, out in ahead(chunk, missing):
            try:
                store[index].write(out, can_reference_source_data_indefinitely=True).result()
            except ValueError as error:  # how tensorstore tells of a full disk
                reason = str(error).rsplit(": ", 1)[-1]
                raise OSError(f"{value.path} can't be written: {reason}") from error
            self._progress(out.nbytes)


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
