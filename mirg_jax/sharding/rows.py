"""A batch's rows over devices and processes: which lie where, and how they are moved."""

import collections
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Int

from mirg_jax.sharding.mesh import ROWS, replicated


def by_rows(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec(ROWS))


def row_parts(mesh: Mesh) -> int:
    """In how many parts a batch's rows are divided."""
    return int(np.prod([mesh.shape[axis] for axis in ROWS]))


def whole_rows(count: int, mesh: Mesh) -> int:
    """`count` rounded up to what the mesh divides evenly."""
    return -(-count // row_parts(mesh)) * row_parts(mesh)


class Share(NamedTuple):
    """Which part of a batch's rows a process holds: number `index` of `count` equal ones."""

    index: int
    count: int


def _row_blocks(mesh: Mesh) -> dict[int, frozenset[int]]:
    """The parts of a batch's rows that each process holds."""
    held = collections.defaultdict(set)
    for block, devices in enumerate(mesh.devices.reshape(row_parts(mesh), -1)):
        for device in devices:
            held[device.process_index].add(block)
    return {process: frozenset(blocks) for process, blocks in held.items()}


def data_share(mesh: Mesh) -> Share:
    """The share of the data that this process reads.

    Processes that hold the same rows (a `tensor` axis across processes) read the same share.

    Raises:
      ValueError: where the mesh lets processes hold rows that overlap in part.
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
    """Where this process's rows lie among the `count` rows of all."""
    blocks = sorted(_row_blocks(mesh)[jax.process_index()])
    return np.arange(count).reshape(row_parts(mesh), -1)[blocks].reshape(-1)


def _assemble(
    shape: tuple[int, ...], where: NamedSharding, part: Callable[..., np.ndarray]
) -> jax.Array:
    """An array of all processes, from what this one's devices hold; put there explicitly."""
    at = where.addressable_devices_indices_map(shape)
    pieces = [jax.device_put(part(index), device) for device, index in at.items()]
    return jax.make_array_from_single_device_arrays(shape, where, pieces)


def place_rows(batch: Any, mesh: Mesh) -> Any:
    """Puts a batch onto the mesh, its rows divided where their number allows.

    With several processes, each gives the rows of its share, and their number must be divisible.
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
    """Puts values onto every device, each whole; all processes give the same."""

    def one(value):
        value = np.asarray(value)
        if jax.process_count() == 1:
            return jax.device_put(value, replicated(mesh))
        return _assemble(value.shape, replicated(mesh), lambda at: value[at])

    return jax.tree.map(one, values)


def _on_own_rows(function: Callable, mesh: Mesh) -> Callable:
    """`function` of trees of rows, by each device for its own: no row moves."""
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
    """A batch as `parts` equal ones, each with a part of every device's rows."""
    return [batch] if parts == 1 else _splitter(parts, mesh)(batch)


def join_rows(batches: list[Any], mesh: Mesh) -> Any:
    """The inverse of `split_rows`."""
    return batches[0] if len(batches) == 1 else _joiner(mesh)(batches)


def local_rows(array: jax.Array) -> np.ndarray:
    """This process's rows of an array whose rows are divided over the mesh."""
    if array.is_fully_addressable:
        return jax.device_get(array)
    parts = {shard.index[0].start or 0: shard.data for shard in array.addressable_shards}
    return np.concatenate([jax.device_get(parts[start]) for start in sorted(parts)])
