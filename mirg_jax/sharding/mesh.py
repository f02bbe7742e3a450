"""The device mesh, and the rules that map logical axes of arrays to mesh axes."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

AXES = ("data", "fsdp", "tensor")
ROWS = ("data", "fsdp")  # the mesh axes that a batch's rows are sharded over

# A logical axis: its name, or its name and the number of indivisible units (attention heads) in it.
Axis = str | tuple[str, int] | None
Rules = Mapping[str, str | tuple[str, ...]]

# Training: parameters are sharded over `fsdp` along the model's width and over `tensor` along their
# other axis; activations are sharded over both row axes along the batch.
RULES: Rules = {
    "rows": ROWS,
    "embed": "fsdp",
    "heads": "tensor",
    "mlp": "tensor",
    "vocab": "tensor",
}
# Weights inside a layer's computation, and during sampling: unsharded along the model's width.
GATHERED: Rules = {name: axes for name, axes in RULES.items() if name != "embed"}


def make_mesh(
    data: int = -1, fsdp: int = 1, tensor: int = 1, *, devices: Sequence[Any] | None = None
) -> Mesh:
    """Creates a mesh over all devices, or over those given.

    Args:
      data: size of the `data` axis. One of the three sizes may be -1: all remaining devices.
      fsdp: size of the `fsdp` axis.
      tensor: size of the `tensor` axis.
      devices: the devices to use; None: all.

    Raises:
      ValueError: if the product of the sizes is not the number of devices.
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
    """Creates the mesh for sampling: `tensor` adjacent devices share one copy of the weights.

    Args:
      mesh: the training mesh, whose devices are used.
      tensor: devices per copy of the weights.

    Raises:
      ValueError: if `tensor` doesn't divide the number of devices.
    """
    if mesh.devices.size % tensor:
        raise ValueError(
            f"sampling.tensor={tensor} doesn't divide the {mesh.devices.size} devices; "
            "set it to a divisor of that number, or take a recipe for this machine"
        )
    return make_mesh(-1, 1, tensor, devices=list(mesh.devices.flat))


def spec(
    axes: Sequence[Axis], shape: Sequence[int], sizes: Mapping[str, int], rules: Rules
) -> PartitionSpec:
    """Returns the partition spec of an array with the given logical axes.

    A dimension stays unsharded if it can't be split into equal parts of whole units: 4 key/value
    heads are sharded over 2 or 4 devices, but not over 8.

    Args:
      axes: logical axes of the array's dimensions.
      shape: shape of the array.
      sizes: sizes of the mesh axes.
      rules: mesh axes of each logical axis.
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
    """Constrains the sharding of `x` on the mesh of `jax.set_mesh`; without a mesh, returns `x`.

    Mesh axes that are manual (inside `shard_map`) are not used.

    Args:
      x: the array.
      *axes: logical axes of its dimensions.
      rules: mesh axes of each logical axis.
    """
    mesh = jax.sharding.get_abstract_mesh()
    sizes = {n: s for n, s in mesh.shape.items() if n not in mesh.manual_axes}
    if not sizes or mesh.size == 1:
        return x
    return jax.lax.with_sharding_constraint(x, spec(axes, x.shape, sizes, rules))


def rows_are_manual() -> bool:
    """Returns whether this is traced under a `shard_map` over the rows' mesh axes."""
    return set(ROWS) <= set(jax.sharding.get_abstract_mesh().manual_axes)


def logical_axes(param: nnx.Variable) -> tuple[Axis, ...]:
    """Returns the logical axes of a parameter's dimensions, from its `axes` metadata."""
    axes = tuple(param.get_metadata().get("axes", ()))
    return (None,) * (len(param.shape) - len(axes)) + axes  # stacked layers lead


def is_variable(x: Any) -> bool:
    """Returns whether a node of a state is a parameter with its metadata."""
    return isinstance(x, nnx.Variable)


def parameter_specs(state: nnx.State, sizes: Mapping[str, int], rules: Rules = RULES) -> nnx.State:
    """Returns the partition spec of each parameter over mesh axes of these sizes."""
    return jax.tree.map(
        lambda param: param.replace(spec(logical_axes(param), param.shape, sizes, rules)),
        state,
        is_leaf=is_variable,
    )


def parameter_shardings(state: nnx.State, mesh: Mesh, rules: Rules = RULES) -> nnx.State:
    """Returns the sharding of each parameter, from its `axes` metadata."""
    return jax.tree.map(
        lambda where: NamedSharding(mesh, where),
        parameter_specs(state, mesh.shape, rules),
        is_leaf=lambda x: isinstance(x, PartitionSpec),
    )


def place_parameters(state: nnx.State, mesh: Mesh) -> nnx.State:
    """Places parameters on the mesh, sharded by `parameter_shardings`."""
    return jax.device_put(state, parameter_shardings(state, mesh))


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the sharding that replicates an array on all devices of the mesh."""
    return NamedSharding(mesh, PartitionSpec())
