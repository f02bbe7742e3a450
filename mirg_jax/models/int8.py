"""Dense layers with 8-bit kernels, for sampling: a decoded token reads half the bytes of bfloat16.

A kernel [in, out] is kept as integers q and a float32 scale s for each output, so that
x · kernel ≈ (x · q) · s. Embeddings, the output head, norms, biases, adapters and the vision tower
stay as they are.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int8

from mirg_jax.models.layers import Linear, abstract

_LARGEST = 127  # symmetric, and exact in bfloat16


def attach(graph: nnx.GraphDef, params: nnx.State) -> tuple[nnx.GraphDef, nnx.State]:
    """Gives the decoder's dense layers 8-bit kernels; `quantise` computes their values.

    Args:
      graph: graph of the model, with or without adapters.
      params: its parameters; arrays or shapes.

    Returns:
      The graph of the model with 8-bit kernels, and the shapes of its parameters.
    """
    model = abstract(graph, params)
    for path, layer in nnx.iter_modules(model):
        if isinstance(layer, Linear) and path[:2] == ("decoder", "layers"):
            *depth, _, columns = layer.kernel.shape
            axes = layer.kernel.get_metadata()["axes"]
            kernel = jax.ShapeDtypeStruct(layer.kernel.shape, jnp.int8)
            scale = jax.ShapeDtypeStruct((*depth, columns), jnp.float32)
            layer.kernel = nnx.Param(kernel, axes=axes)
            layer.kernel_scale = nnx.Param(scale, axes=axes[1:])
    return nnx.split(model)


def quantise(
    kernel: Float[Array, "in out"],
) -> tuple[Int8[Array, "in out"], Float[Array, " out"]]:
    """Rounds a kernel to 8 bits: q = round(kernel / s), with s = max |kernel| / 127 of each output.

    The error of a value is at most s / 2.
    """
    kernel = kernel.astype(jnp.float32)
    largest = jnp.abs(kernel).max(0)
    scale = jnp.where(largest > 0, largest, 1.0) / _LARGEST
    return jnp.round(kernel / scale).astype(jnp.int8), scale
