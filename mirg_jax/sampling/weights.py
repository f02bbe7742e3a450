"""The weights as the sampler reads them: in the compute dtype, whole along the model's width."""

from collections.abc import Callable
from typing import Any

import jax
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from mirg_jax import sharding
from mirg_jax.models.qwen2_vl import computed_dtypes


def weight_shapes(params: nnx.State, compute: Any, mesh: jax.sharding.Mesh) -> nnx.State:
    """Shapes, dtypes and layouts of what the sampler reads; see `make_weights`."""
    return jax.tree.map(
        lambda leaf, dtype, layout: jax.ShapeDtypeStruct(leaf.shape, dtype, sharding=layout),
        params,
        computed_dtypes(params, compute),
        sharding.parameter_shardings(params, mesh, sharding.GATHERED),
    )


def taken_as_they_are(params: nnx.State, wanted: nnx.State) -> bool:
    """Whether the parameters already have the dtypes and layouts of `weight_shapes`."""
    same = jax.tree.map(
        lambda a, b: a.dtype == b.dtype and a.sharding.is_equivalent_to(b.sharding, a.ndim),
        params,
        wanted,
    )
    return all(jax.tree.leaves(same))


def make_weights(
    params: nnx.State, compute: Any, mesh: jax.sharding.Mesh
) -> Callable[[nnx.State], nnx.State]:
    """`weights(params)`: what the sampler reads, made once for all prompts of a step.

    Matrices in the precision that they are computed in, whole along the model's width and divided
    over the `tensor` axis of `mesh`, so that no token waits for another device's weights. If the
    parameters lie so already they are taken as they are, without a copy.

    Args:
      params: arrays, or their shapes and shardings.
      compute: the model's compute dtype.
      mesh: from `sharding.sampling_mesh`.
    """
    wanted = weight_shapes(params, compute, mesh)
    if taken_as_they_are(params, wanted):
        return lambda params: params

    def move(leaf, dtype, layout):
        whole = sharding.replicated(mesh)
        return jax.lax.with_sharding_constraint(
            jax.lax.with_sharding_constraint(leaf.astype(dtype), whole), layout
        )

    def one(leaf, wanted):
        if leaf.ndim < 3:
            return move(leaf, wanted.dtype, wanted.sharding)
        # A layer at a time, since no device has room for all of them whole.
        inner = NamedSharding(mesh, PartitionSpec(*wanted.sharding.spec[1:]))
        return jax.lax.map(lambda layer: move(layer, wanted.dtype, inner), leaf)

    return jax.jit(
        lambda params: jax.tree.map(one, params, wanted),
        out_shardings=jax.tree.map(lambda leaf: leaf.sharding, wanted),
    )
