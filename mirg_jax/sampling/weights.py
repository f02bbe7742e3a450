"""Weights for sampling: cast to the compute dtype and unsharded along the model's width."""

from collections.abc import Callable
from typing import Any

import jax
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from mirg_jax import sharding
from mirg_jax.models.qwen2_vl import computed_dtypes


def weight_shapes(params: nnx.State, compute: Any, mesh: jax.sharding.Mesh) -> nnx.State:
    """Returns shapes, dtypes and shardings of the weights for sampling; see `make_weights`."""
    return jax.tree.map(
        lambda leaf, dtype, layout: jax.ShapeDtypeStruct(leaf.shape, dtype, sharding=layout),
        params,
        computed_dtypes(params, compute),
        sharding.parameter_shardings(params, mesh, sharding.GATHERED),
    )


def taken_as_they_are(params: nnx.State, wanted: nnx.State) -> bool:
    """Returns whether the parameters already have the dtypes and shardings of `weight_shapes`."""
    same = jax.tree.map(
        lambda a, b: a.dtype == b.dtype and a.sharding.is_equivalent_to(b.sharding, a.ndim),
        params,
        wanted,
    )
    return all(jax.tree.leaves(same))


def make_weights(
    params: nnx.State, compute: Any, mesh: jax.sharding.Mesh
) -> Callable[[nnx.State], nnx.State]:
    """Creates the function that converts parameters to weights for sampling, once per step.

    Matrices are cast to the compute dtype and sharded only over the `tensor` axis of `mesh`, so
    that decoding a token needs no all-gather of weights. Parameters that already have these dtypes
    and shardings are returned unchanged, without a copy.

    Args:
      params: the parameters, or their shapes and shardings.
      compute: the model's compute dtype.
      mesh: from `sharding.sampling_mesh`.

    Returns:
      A function from parameters to weights for sampling.
    """
    wanted = weight_shapes(params, compute, mesh)
    if taken_as_they_are(params, wanted):
        return lambda params: params

    def move(leaf, dtype, layout):
        replicated = sharding.replicated(mesh)
        return jax.lax.with_sharding_constraint(
            jax.lax.with_sharding_constraint(leaf.astype(dtype), replicated), layout
        )

    def one(leaf, wanted):
        if leaf.ndim < 3:
            return move(leaf, wanted.dtype, wanted.sharding)
        # One layer at a time, since a device has no room for all layers unsharded.
        inner = NamedSharding(mesh, PartitionSpec(*wanted.sharding.spec[1:]))
        return jax.lax.map(lambda layer: move(layer, wanted.dtype, inner), leaf)

    return jax.jit(
        lambda params: jax.tree.map(one, params, wanted),
        out_shardings=jax.tree.map(lambda leaf: leaf.sharding, wanted),
    )
