"""Layers and utilities shared by the vision tower and the decoder."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from mirg_jax import sharding
from mirg_jax.sharding import RULES, Axis, constrain


class Precision(NamedTuple):
    """Dtypes of the computation and of the stored parameters."""

    compute: Any = jnp.float32
    params: Any = jnp.float32


FLOAT32 = Precision()


def gather(kernel: jax.Array, axes: tuple[Axis, ...]) -> jax.Array:
    """Gathers a parameter over `fsdp` (all-gather), along the model's width, for a computation.

    Its gradient is reduce-scattered straight into the parameter's sharding.

    Args:
      kernel: a sharded parameter; under `sharding.value_and_grad` the device's part of it.
      axes: the logical axes of its dimensions.
    """
    if sharding.rows_are_manual():
        divided = jax.sharding.get_abstract_mesh().shape["fsdp"] > 1  # not for sampling
        if "embed" in axes and divided:  # JAX's gradient of this is the reduce-scatter
            kernel = jax.lax.all_gather(kernel, "fsdp", axis=axes.index("embed"), tiled=True)
        return constrain(kernel, *axes)
    return _gather(kernel, axes)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _gather(kernel: jax.Array, axes: tuple[Axis, ...]) -> jax.Array:
    return constrain(kernel, *axes)


_gather.defvjp(
    lambda kernel, axes: (constrain(kernel, *axes), None),
    lambda axes, _, g: (constrain(g, *axes, rules=RULES),),
)


@jax.custom_vjp
def in_order(x: jax.Array, param: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns both unchanged; the gradient of `x` is used only once that of `param` is complete."""
    return x, param


in_order.defvjp(lambda *both: (both, None), lambda _, g: jax.lax.optimization_barrier(g))


@jax.custom_vjp
def _matmul(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Computes x [..., in] · kernel [in, out], with the kernel's gradient computed as [in, out].

    JAX's default computes it as [out, in] and transposes, for which XLA's CPU compiler copies the
    activations column by column: half of a small model's backward pass.
    """
    return x @ kernel


_matmul.defvjp(
    lambda x, kernel: (x @ kernel, (x, kernel)),
    lambda saved, g: (g @ saved[1].T, jnp.einsum("...m,...n->mn", saved[0], g)),
)


class Linear(nnx.Module):
    """Dense layer: x · kernel + bias, plus (x · a) · b · scale where `lora.attach` was applied.

    Where `int8.attach` was, the kernel holds integers, and their product is multiplied by scales.
    """

    def __init__(
        self, kernel: nnx.Param, bias: nnx.Param | None, axes: tuple[Axis, Axis], dtype: Any
    ):
        self.in_features, self.axes, self.dtype = kernel.shape[0], axes, dtype
        self.kernel, self.bias = kernel, nnx.data(bias)
        self.kernel_scale = nnx.data(None)
        self.lora_a, self.lora_b, self.lora_scale = nnx.data(None), nnx.data(None), 0.0

    def __call__(self, x: Float[Array, "*B in"]) -> Float[Array, "*B out"]:
        def product(x, matrix, *axes):
            return _matmul(x, gather(matrix[...].astype(self.dtype), axes))

        x = x.astype(self.dtype)
        out = product(x, self.kernel, *self.axes)
        if self.kernel_scale is not None:
            out = (out * gather(self.kernel_scale[...], self.axes[1:])).astype(self.dtype)
        if self.bias is not None:
            out += gather(self.bias[...].astype(self.dtype), self.axes[1:])
        if self.lora_a is not None:
            inner = product(x, self.lora_a, self.axes[0], None)
            out += product(inner, self.lora_b, None, self.axes[1]) * self.lora_scale
        return out


def linear(
    in_dim: int,
    out_dim: int,
    axes: tuple[Axis, Axis],
    *,
    bias: bool,
    precision: Precision,
    rngs: nnx.Rngs,
) -> Linear:
    """Creates a dense layer with a randomly initialised kernel.

    Args:
      in_dim: input width.
      out_dim: output width.
      axes: the logical axes of the kernel `[in_dim, out_dim]`, kept as its metadata.
      bias: whether the layer has a bias.
      precision: dtypes of computation and parameters.
      rngs: random number generators.
    """
    init, dtype = nnx.initializers, precision.params
    kernel = init.lecun_normal()(rngs.params(), (in_dim, out_dim), dtype)
    offset = init.zeros(rngs.params(), (out_dim,), dtype) if bias else None
    return Linear(
        nnx.Param(kernel, axes=axes),
        nnx.Param(offset, axes=axes[1:]) if bias else None,
        axes,
        precision.compute,
    )


def rms_norm(dim: int, epsilon: float, precision: Precision, rngs: nnx.Rngs) -> nnx.RMSNorm:
    """Creates an RMSNorm whose scale carries its logical axes."""
    return nnx.RMSNorm(
        dim,
        epsilon=epsilon,
        dtype=precision.compute,
        param_dtype=precision.params,
        scale_metadata={"axes": (None,)},
        rngs=rngs,
    )


def layer_norm(dim: int, precision: Precision, rngs: nnx.Rngs) -> nnx.LayerNorm:
    """Creates a LayerNorm whose scale and bias carry their logical axes."""
    return nnx.LayerNorm(
        dim,
        epsilon=1e-6,
        use_fast_variance=False,
        dtype=precision.compute,
        param_dtype=precision.params,
        scale_metadata={"axes": (None,)},
        bias_metadata={"axes": (None,)},
        rngs=rngs,
    )


def tanh_gelu(x: jax.Array) -> jax.Array:
    """Computes GELU by its approximation with tanh, the activation of Qwen3-VL's vision tower."""
    return jax.nn.gelu(x, approximate=True)


def quick_gelu(x: jax.Array) -> jax.Array:
    """Computes x · sigmoid(1.702 x), the activation of CLIP and of Qwen2-VL's vision tower."""
    return x * jax.nn.sigmoid(1.702 * x)


def stack(make, depth: int, rngs: nnx.Rngs) -> nnx.Module:
    """Creates `depth` layers as one module, with parameters stacked on a leading axis.

    Args:
      make: function that creates one layer from its `nnx.Rngs`.
      depth: number of layers.
      rngs: random number generators; each layer gets its own.
    """
    return nnx.vmap(make, in_axes=0, out_axes=0)(rngs.fork(split=depth))


def abstract(graph: nnx.GraphDef, params: nnx.State) -> nnx.Module:
    """Returns the module of a graph and parameters, with shapes in place of their values."""
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), params)
    return nnx.merge(graph, shapes)


def unstack(layers: nnx.Module) -> list[nnx.Module]:
    """Returns the layers of a stack as separate modules, in order."""
    graph, params = nnx.split(layers)
    depth = jax.tree.leaves(params)[0].shape[0]
    return [nnx.merge(graph, jax.tree.map(lambda p: p[i], params)) for i in range(depth)]  # noqa: B023


# Rematerialisation policies: what a layer's forward pass saves; its backward pass recomputes the
# rest.
REMAT = {
    "none": None,  # saves everything
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,  # outputs of projections
    "full": jax.checkpoint_policies.nothing_saveable,  # only the layer's input
}


def scan(body, carry, layers: nnx.Module, inputs: Any = None, *, remat: str):
    """Applies stacked layers one after another with `jax.lax.scan`, so that one layer is compiled.

    Args:
      body: function (layer, carry, layer's inputs) -> (carry, layer's outputs).
      carry: the first layer's input carry.
      layers: a module from `stack`.
      inputs: arrays with a leading layer axis, or None.
      remat: a key of `REMAT`.

    Returns:
      The last carry, and the outputs with a leading layer axis.
    """
    graph, params = nnx.split(layers)

    def step(carry, xs):
        layer_params, layer_inputs = xs
        return body(nnx.merge(graph, layer_params), carry, layer_inputs)

    if remat != "none":
        step = jax.checkpoint(step, prevent_cse=False, policy=REMAT[remat])
    return jax.lax.scan(step, carry, (params, inputs))
