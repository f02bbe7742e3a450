"""The device mesh, and the table that lays logical axes of arrays along mesh axes."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

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
