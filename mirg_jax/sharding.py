"""The device mesh, and which logical axis of a parameter lies along which of its axes."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

AXES = ("data", "fsdp", "tensor")
ROWS = ("data", "fsdp")  # the mesh axes that a batch's rows are divided over

# Parameters are split over `fsdp` along the model's width and over `tensor` along the rest.
RULES: Mapping[str, str] = {
    "embed": "fsdp",
    "heads": "tensor",
    "kv_heads": "tensor",
    "mlp": "tensor",
    "vocab": "tensor",
}


def make_mesh(data: int = -1, fsdp: int = 1, tensor: int = 1) -> Mesh:
    """A mesh over all devices; one size may be -1, for what the others leave.

    Raises:
      ValueError: when the sizes don't multiply to the number of devices.
    """
    sizes, count = [data, fsdp, tensor], jax.device_count()
    if -1 in sizes:
        rest = -int(np.prod(sizes))
        sizes[sizes.index(-1)] = count // rest
    if int(np.prod(sizes)) != count:
        raise ValueError(
            f"mesh {dict(zip(AXES, sizes, strict=True))} doesn't cover the {count} devices; "
            "set config.mesh so that data × fsdp × tensor is their number"
        )
    return jax.make_mesh(tuple(sizes), AXES, axis_types=(AxisType.Auto,) * 3)


def parameter_shardings(
    state: nnx.State, mesh: Mesh, rules: Mapping[str, str] = RULES
) -> nnx.State:
    """A sharding for each parameter, from its `axes` metadata.

    An axis whose size the mesh axis doesn't divide is left whole.
    """

    def one(param: nnx.Param) -> nnx.Param:
        axes = param.get_metadata().get("axes", ())
        axes = (None,) * (len(param.shape) - len(axes)) + tuple(axes)  # stacked layers lead
        spec = [
            rules.get(axis) if axis and size % mesh.shape[rules.get(axis)] == 0 else None
            for axis, size in zip(axes, param.shape, strict=True)
        ]
        return param.replace(NamedSharding(mesh, PartitionSpec(*spec)))

    return jax.tree.map(one, state, is_leaf=lambda x: isinstance(x, nnx.Variable))


def place_parameters(state: nnx.State, mesh: Mesh) -> nnx.State:
    """Puts parameters onto the mesh."""
    return jax.device_put(state, parameter_shardings(state, mesh))


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def row_parts(mesh: Mesh) -> int:
    """In how many parts a batch's rows are divided."""
    return int(np.prod([mesh.shape[axis] for axis in ROWS]))


def whole_rows(count: int, mesh: Mesh) -> int:
    """`count` rounded up to what the mesh divides evenly."""
    return -(-count // row_parts(mesh)) * row_parts(mesh)


def place_rows(batch: Any, mesh: Mesh) -> Any:
    """Puts a batch onto the mesh, its rows divided where their number allows."""
    ways = row_parts(mesh)

    def one(array):
        spec = PartitionSpec(ROWS) if array.ndim and array.shape[0] % ways == 0 else PartitionSpec()
        return jax.device_put(array, NamedSharding(mesh, spec))

    return jax.tree.map(one, batch)
