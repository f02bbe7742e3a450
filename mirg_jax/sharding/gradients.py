"""Gradients of a loss over a batch's rows, which each device computes for its own rows."""

from collections.abc import Callable
from typing import Any

import jax
from flax import nnx
from jax.sharding import PartitionSpec

from mirg_jax.sharding.mesh import ROWS, is_variable, logical_axes, parameter_specs


def value_and_grad(
    loss: Callable[..., Any], by_rows: tuple[bool, ...], *, has_aux: bool = False
) -> Callable[..., Any]:
    """Creates `jax.value_and_grad(loss)` whose gradients are summed over the devices only once.

    The compiler can't carry a sum that is still to be made over devices through a loop: left to
    itself, it sums the output head's gradient at every chunk of logits. So on the mesh of
    `jax.set_mesh` the loss is computed under a `shard_map` over the mesh axes of rows. There a
    gradient is the device's own until the transpose of `layers.gather` sums it into the shards of
    its parameter. The `tensor` axis is left to the compiler. Parameters whose width doesn't divide
    evenly over `fsdp` are not supported by that; then the compiler does it all.

    Args:
      loss: function `(params, frozen, *arguments) -> value`, or `-> (value, statistics)` with
        `has_aux`. Values and statistics must be sums over rows.
      by_rows: for each of `arguments`, whether the first axis of its arrays is the batch's rows;
        the others are the same on all devices.
      has_aux: as in `jax.value_and_grad`.
    """
    gradients = jax.value_and_grad(loss, has_aux=has_aux)

    def run(params: nnx.State, frozen: nnx.State, *arguments):
        shape = jax.sharding.get_abstract_mesh().shape
        sizes = {axis: size for axis, size in shape.items() if axis in ROWS}
        if all(size == 1 for size in sizes.values()) or not _divides((params, frozen), sizes):
            return gradients(params, frozen, *arguments)
        layout, frozen_layout = (parameter_specs(part, sizes) for part in (params, frozen))

        def on_device(params, frozen, *arguments):
            value, grads = gradients(params, frozen, *arguments)
            return jax.lax.psum(value, ROWS), jax.tree.map(_sum_replicated, grads, layout)

        others = (PartitionSpec(ROWS) if by else PartitionSpec() for by in by_rows)
        return jax.shard_map(
            on_device,
            in_specs=(layout, frozen_layout, *others),
            out_specs=(PartitionSpec(), layout),
            axis_names=set(ROWS),
            check_vma=False,
        )(params, frozen, *arguments)

    return run


def _divides(params: Any, sizes: dict[str, int]) -> bool:
    """Returns whether the width of each parameter that has it divides evenly over `fsdp`."""
    return all(
        size % sizes["fsdp"] == 0
        for param in jax.tree.leaves(params, is_leaf=is_variable)
        for size, axis in zip(param.shape, logical_axes(param), strict=True)
        if axis == "embed"
    )


def _sum_replicated(grad: jax.Array, where: PartitionSpec) -> jax.Array:
    """Sums a gradient over the mesh axes of rows that its parameter isn't divided over."""
    rest = tuple(axis for axis in ROWS if axis not in jax.tree.leaves(tuple(where)))
    return jax.lax.psum(grad, rest) if rest else grad
