"""Sharding of a batch's rows over devices and processes."""

import collections
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Int

from mirg_jax.sharding.mesh import ROWS, replicated


def by_rows(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of an array whose first axis is a batch's rows."""
    return NamedSharding(mesh, PartitionSpec(ROWS))


def row_parts(mesh: Mesh) -> int:
    """Returns the number of shards that a batch's rows are split into."""
    return int(np.prod([mesh.shape[axis] for axis in ROWS]))


def whole_rows(count: int, *meshes: Mesh) -> int:
    """Rounds `count` up to the next number of rows that can be sharded evenly on all meshes."""
    parts = math.lcm(*map(row_parts, meshes))
    return -(-count // parts) * parts


@functools.cache
def mover(mesh: Mesh) -> Callable[[Any], Any]:
    """Returns the jitted function that shards rows on `mesh`, from a mesh of the same devices.

    `device_put` can't do this for arrays that other processes hold parts of.
    """
    return jax.jit(lambda batch: batch, out_shardings=by_rows(mesh))


class Share(NamedTuple):
    """The part of the data that a process reads: number `index` of `count` equal parts."""

    index: int
    count: int


def _row_blocks(mesh: Mesh) -> dict[int, frozenset[int]]:
    """Returns the row shards that each process holds, by process index."""
    held = collections.defaultdict(set)
    for block, devices in enumerate(mesh.devices.reshape(row_parts(mesh), -1)):
        for device in devices:
            held[device.process_index].add(block)
    return {process: frozenset(blocks) for process, blocks in held.items()}


def data_share(mesh: Mesh) -> Share:
    """Returns the share of the data that this process reads.

    Processes that hold the same rows (a `tensor` axis across processes) read the same share.

    Raises:
      ValueError: if the rows of two processes overlap without being the same.
    """
    held = _row_blocks(mesh)
    shares = sorted(set(held.values()), key=min)
    if sum(map(len, shares)) != row_parts(mesh) or len(set(map(len, shares))) > 1:
        raise ValueError(
            f"mesh {dict(mesh.shape)} divides rows unevenly over {len(held)} processes; set "
            "config.mesh so that tensor divides a process's devices, or is a multiple of them"
        )
    return Share(shares.index(held[jax.process_index()]), len(shares))


def local_row_numbers(count: int, mesh: Mesh) -> Int[np.ndarray, " rows"]:
    """Returns the indices of this process's rows in the global batch of `count` rows."""
    blocks = sorted(_row_blocks(mesh)[jax.process_index()])
    return np.arange(count).reshape(row_parts(mesh), -1)[blocks].reshape(-1)


def _assemble(
    shape: tuple[int, ...], where: NamedSharding, part: Callable[..., np.ndarray]
) -> jax.Array:
    """Creates a global array from the shards of this process's devices.

    Args:
      shape: shape of the global array.
      where: its sharding.
      part: function from an index into the global array to that shard's values.
    """
    at = where.addressable_devices_indices_map(shape)
    pieces = [jax.device_put(part(index), device) for device, index in at.items()]
    return jax.make_array_from_single_device_arrays(shape, where, pieces)


def place_rows(batch: Any, mesh: Mesh) -> Any:
    """Places a batch on the mesh, sharded by rows where their number is divisible, else replicated.

    With several processes, each passes the rows of its share, and their number must be divisible.

    Args:
      batch: tree of host arrays.
      mesh: the mesh.
    """
    ways, shares = row_parts(mesh), data_share(mesh).count
    rows = by_rows(mesh)

    def one(array):
        if jax.process_count() == 1:
            divided = array.ndim and array.shape[0] % ways == 0
            return jax.device_put(array, rows if divided else replicated(mesh))
        count = array.shape[0] * shares
        first = {number: i for i, number in enumerate(local_row_numbers(count, mesh))}

        def part(index):
            at = first[index[0].start or 0]
            return array[at : at + count // ways]

        return _assemble((count, *array.shape[1:]), rows, part)

    return jax.tree.map(one, batch)


def place_everywhere(values: Any, mesh: Mesh) -> Any:
    """Places values on the mesh, replicated; all processes must pass the same values."""

    def one(value):
        value = np.asarray(value)
        if jax.process_count() == 1:
            return jax.device_put(value, replicated(mesh))
        return _assemble(value.shape, replicated(mesh), lambda at: value[at])

    return jax.tree.map(one, values)


def _on_own_rows(function: Callable, mesh: Mesh) -> Callable:
    """Jits `function` of trees of rows so that each device applies it to its own rows only."""
    rows = PartitionSpec(ROWS)
    run = jax.shard_map(
        function, mesh=mesh, in_specs=rows, out_specs=rows, axis_names=set(ROWS), check_vma=False
    )
    return jax.jit(run)


@functools.cache
def _splitter(parts: int, mesh: Mesh) -> Callable:
    def part(x, i):
        return x.reshape(parts, -1, *x.shape[1:])[i]

    def split(tree):
        return [jax.tree.map(functools.partial(part, i=i), tree) for i in range(parts)]

    return _on_own_rows(split, mesh)


@functools.cache
def _joiner(mesh: Mesh) -> Callable:
    def join(trees):
        return jax.tree.map(lambda *rows: jnp.concatenate(rows), *trees)

    return _on_own_rows(join, mesh)


def split_rows(batch: Any, parts: int, mesh: Mesh) -> list[Any]:
    """Splits a batch into `parts` equal batches, each with a part of every device's rows.

    No rows move between devices, so the order of rows changes; `join_rows` restores it.
    """
    return [batch] if parts == 1 else _splitter(parts, mesh)(batch)


def join_rows(batches: list[Any], mesh: Mesh) -> Any:
    """Concatenates batches on each device; the inverse of `split_rows`."""
    return batches[0] if len(batches) == 1 else _joiner(mesh)(batches)


@functools.cache
def _taker(mesh: Mesh) -> Callable:
    sharded, everywhere = PartitionSpec(ROWS), PartitionSpec()

    def take(batch, rows):
        def one(block):
            at = rows - jax.lax.axis_index(ROWS) * len(block)
            here = ((at >= 0) & (at < len(block))).reshape(-1, *(1,) * (block.ndim - 1))
            found = jnp.where(here, block[jnp.clip(at, 0, len(block) - 1)], 0)
            kind = jnp.uint8 if block.dtype == bool else block.dtype
            # Each row is on one device alone: the sum moves it to where it is wanted.
            moved = jax.lax.psum_scatter(found.astype(kind), ROWS, tiled=True)
            return moved.astype(block.dtype)

        return jax.tree.map(one, batch)

    return jax.jit(
        jax.shard_map(
            take,
            mesh=mesh,
            in_specs=(sharded, everywhere),
            out_specs=sharded,
            axis_names=set(ROWS),
            check_vma=False,
        )
    )


def take_rows(batch: Any, rows: Int[Array, " rows"], mesh: Mesh) -> Any:
    """Returns some of a batch's rows as a new batch, sharded by rows; rows move between devices.

    Args:
      batch: tree of arrays, sharded by rows.
      rows: the wanted rows' numbers in the batch, the same in all processes, as many as can be
        sharded evenly. A number outside the batch gives a row of zeros.
      mesh: the mesh.
    """
    return _taker(mesh)(batch, rows)


def local_rows(array: jax.Array) -> np.ndarray:
    """Returns this process's rows of an array that is sharded by rows, as a host array."""
    if array.is_fully_addressable:
        return jax.device_get(array)
    parts = {shard.index[0].start or 0: shard.data for shard in array.addressable_shards}
    return np.concatenate([jax.device_get(parts[start]) for start in sorted(parts)])
