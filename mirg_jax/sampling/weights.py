"""Weights for sampling: cast to the compute dtype and unsharded along the model's width."""

from collections.abc import Callable
from typing import Any

import jax
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from mirg_jax import sharding
from mirg_jax.models import int8
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
    params: nnx.State,
    compute: Any,
    mesh: jax.sharding.Mesh,
    kinds: nnx.State | None = None,
) -> Callable[[nnx.State], nnx.State]:
    """Creates the function that converts parameters to weights for sampling, once per step.

    Matrices are cast to the compute dtype and sharded only over the `tensor` axis of `mesh`, so
    that decoding a token needs no all-gather of weights. Parameters that already have these dtypes
    and shardings are returned unchanged, without a copy.

    Args:
      params: the parameters, or their shapes and shardings.
      compute: the model's compute dtype.
      mesh: from `sharding.sampling_mesh`.
      kinds: the shapes from `int8.attach`, for 8-bit kernels.

    Returns:
      A function from parameters to weights for sampling.
    """
    wanted = weight_shapes(params if kinds is None else kinds, compute, mesh)
    if kinds is None and taken_as_they_are(params, wanted):
        return lambda params: params
    replicated = sharding.replicated(mesh)

    def move(leaf, wanted, *, of_layer=False):
        layout = wanted.sharding
        if of_layer:
            layout = NamedSharding(mesh, PartitionSpec(*layout.spec[1:]))
        whole = jax.lax.with_sharding_constraint(leaf.astype(wanted.dtype), replicated)
        return jax.lax.with_sharding_constraint(whole, layout)

    def one(leaf, wanted):
        if leaf.ndim < 3:
            return move(leaf, wanted)
        # One layer at a time, since a device has no room for all layers unsharded.
        return jax.lax.map(lambda layer: move(layer, wanted, of_layer=True), leaf)

    def rounded(leaf, *wanted):
        def of_layer(kernel):
            pair = zip(int8.quantise(kernel), wanted, strict=True)
            return tuple(move(part, each, of_layer=True) for part, each in pair)

        return jax.lax.map(of_layer, leaf)

    made = dict(nnx.to_flat_state(wanted))
    shapes = {path: jax.tree.leaves(param)[0] for path, param in made.items()}

    def convert(params):
        values = {}
        for path, param in nnx.to_flat_state(params):
            *layer, name = path
            scale = (*layer, "kernel_scale")
            if name == "kernel" and scale in shapes:
                both = rounded(param[...], shapes[path], shapes[scale])
                values[path], values[scale] = both
            else:
                values[path] = one(param[...], shapes[path])
        return nnx.from_flat_state(
            {path: made[path].replace(value) for path, value in values.items()}
        )

    return jax.jit(convert, out_shardings=jax.tree.map(lambda leaf: leaf.sharding, wanted))
