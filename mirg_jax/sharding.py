"""The device mesh, and which logical axis of an array lies along which of its axes."""

import collections
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Int

AXES = ("data", "fsdp", "tensor")
ROWS = ("data", "fsdp")  # the mesh axes that a batch's rows are divided over

# A logical axis: its name, or its name and how many units of it must stay whole (attention heads).
Axis = str | tuple[str, int] | None
Rules = Mapping[str, str | tuple[str, ...]]

# Learning: parameters are split over `fsdp` along the model's width and over `tensor` along the
# rest; activations over both row axes along their rows.
RULES: Rules = {
    "rows": ROWS,
    "embed": "fsdp",
    "heads": "tensor",
    "mlp": "tensor",
    "vocab": "tensor",
}
# What a layer computes with, and what sampling keeps: whole along the width.
GATHERED: Rules = {name: axes for name, axes in RULES.items() if name != "embed"}


def make_mesh(
    data: int = -1, fsdp: int = 1, tensor: int = 1, *, devices: Sequence[Any] | None = None
) -> Mesh:
    """A mesh over all devices (or those given); one size may be -1, for what the others leave.

    Raises:
      ValueError: when the sizes don't multiply to the number of devices.
    """
    count = jax.device_count() if devices is None else len(devices)
    sizes = [data, fsdp, tensor]
    if -1 in sizes:
        rest = -int(np.prod(sizes))
        sizes[sizes.index(-1)] = count // rest
    if int(np.prod(sizes)) != count:
        raise ValueError(
            f"mesh {dict(zip(AXES, sizes, strict=True))} doesn't cover the {count} devices; "
            "set config.mesh so that data × fsdp × tensor is their number"
        )
    types = (AxisType.Auto,) * 3
    if devices is None:
        return jax.make_mesh(tuple(sizes), AXES, axis_types=types)
    return Mesh(np.asarray(devices).reshape(sizes), AXES, axis_types=types)


def sampling_mesh(mesh: Mesh, tensor: int) -> Mesh:
    """The same devices, with `tensor` neighbours sharing one copy of the weights.

    Raises:
      ValueError: when `tensor` doesn't divide the number of devices.
    """
    if mesh.devices.size % tensor:
        raise ValueError(
            f"sampling.tensor={tensor} doesn't divide the {mesh.devices.size} devices; "
            "make it one of their divisors"
        )
    return make_mesh(-1, 1, tensor, devices=mesh.devices.reshape(-1))


def spec(
    axes: Sequence[Axis], shape: Sequence[int], sizes: Mapping[str, int], rules: Rules
) -> PartitionSpec:
    """Where an array's dimensions lie, by the table.

    A dimension that the mesh doesn't divide into equal parts of whole units is left whole: 4
    key/value heads are split over 2 or 4 devices, and kept whole on 8.
    """

    def one(axis: Axis, size: int):
        name, units = axis if isinstance(axis, tuple) else (axis, size)
        where = rules.get(name) if name else None
        if where is None:
            return None
        names = tuple(n for n in ((where,) if isinstance(where, str) else where) if n in sizes)
        parts = int(np.prod([sizes[n] for n in names]))
        return names if names and size % parts == 0 and units % parts == 0 else None

    return PartitionSpec(*map(one, axes, shape))


def constrain(x: jax.Array, *axes: Axis, rules: Rules = GATHERED) -> jax.Array:
    """Lays `x` out along the mesh of `jax.set_mesh`; without one, or inside `shard_map`, as it is.

    Axes that `shard_map` has taken are left alone.
    """
    mesh = jax.sharding.get_abstract_mesh()
    sizes = {n: s for n, s in mesh.shape.items() if n not in mesh.manual_axes}
    if not sizes or mesh.size == 1:
        return x
    return jax.lax.with_sharding_constraint(x, spec(axes, x.shape, sizes, rules))


def parameter_shardings(state: nnx.State, mesh: Mesh, rules: Rules = RULES) -> nnx.State:
    """A sharding for each parameter, from its `axes` metadata."""

    def one(param: nnx.Param) -> nnx.Param:
        axes = param.get_metadata().get("axes", ())
        axes = (None,) * (len(param.shape) - len(axes)) + tuple(axes)  # stacked layers lead
        return param.replace(NamedSharding(mesh, spec(axes, param.shape, mesh.shape, rules)))

    return jax.tree.map(one, state, is_leaf=lambda x: isinstance(x, nnx.Variable))


def place_parameters(state: nnx.State, mesh: Mesh) -> nnx.State:
    """Puts parameters onto the mesh."""
    return jax.device_put(state, parameter_shardings(state, mesh))


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


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
