"""Building blocks shared by the vision tower and the decoder."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from mirg_jax.sharding import RULES, Axis, constrain


class Precision(NamedTuple):
    """What the model computes in and what its parameters are kept in."""

    compute: Any = jnp.float32
    params: Any = jnp.float32


FLOAT32 = Precision()


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def gather(kernel: jax.Array, axes: tuple[Axis, Axis]) -> jax.Array:
    """A kernel whole along the model's width, to compute with.

    Its gradient goes the way back: summed straight into the devices' parts.
    """
    return constrain(kernel, *axes)


gather.defvjp(
    lambda kernel, axes: (constrain(kernel, *axes), None),
    lambda axes, _, g: (constrain(g, *axes, rules=RULES),),
)


@jax.custom_vjp
def _matmul(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """x [..., in] · kernel [in, out]; the kernel's gradient comes in the kernel's own layout.

    Left to itself JAX makes it [out, in] and transposes, for which XLA's CPU compiler copies the
    activations column by column: half of a small model's backward pass.
    """
    return x @ kernel


_matmul.defvjp(
    lambda x, kernel: (x @ kernel, (x, kernel)),
    lambda saved, g: (g @ saved[1].T, jnp.einsum("...m,...n->mn", saved[0], g)),
)


class Linear(nnx.Module):
    """x · kernel + bias and, once `lora.attach` has put an adapter here, (x · a) · b · scale."""

    def __init__(
        self, kernel: nnx.Param, bias: nnx.Param | None, axes: tuple[Axis, Axis], dtype: Any
    ):
        self.in_features, self.axes, self.dtype = kernel.shape[0], axes, dtype
        self.kernel, self.bias = kernel, nnx.data(bias)
        self.lora_a, self.lora_b, self.lora_scale = nnx.data(None), nnx.data(None), 0.0

    def __call__(self, x: Float[Array, "*B in"]) -> Float[Array, "*B out"]:
        def product(x, matrix, *axes):
            return _matmul(x, gather(matrix[...].astype(self.dtype), axes))

        x = x.astype(self.dtype)
        out = product(x, self.kernel, *self.axes)
        if self.bias is not None:
            out += self.bias[...].astype(self.dtype)
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
    """A dense layer whose kernel `[in_dim, out_dim]` carries the logical axes `axes`."""
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
    return nnx.RMSNorm(
        dim,
        epsilon=epsilon,
        dtype=precision.compute,
        param_dtype=precision.params,
        scale_metadata={"axes": (None,)},
        rngs=rngs,
    )


def layer_norm(dim: int, precision: Precision, rngs: nnx.Rngs) -> nnx.LayerNorm:
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


def quick_gelu(x: jax.Array) -> jax.Array:
    """x · sigmoid(1.702 x), the activation of CLIP and of Qwen2-VL's tower."""
    return x * jax.nn.sigmoid(1.702 * x)


def stack(make, depth: int, rngs: nnx.Rngs) -> nnx.Module:
    """`depth` copies of a layer in one module, parameters stacked on a leading axis.

    Args:
      make: builds one layer from its `nnx.Rngs`.
    """
    return nnx.vmap(make, in_axes=0, out_axes=0)(rngs.fork(split=depth))


def unstack(layers: nnx.Module) -> list[nnx.Module]:
    """The single layers of a stack, one after another."""
    graph, params = nnx.split(layers)
    depth = jax.tree.leaves(params)[0].shape[0]
    return [nnx.merge(graph, jax.tree.map(lambda p: p[i], params)) for i in range(depth)]  # noqa: B023


# What the backward pass of a layer finds kept, and what it recomputes.
REMAT = {
    "none": None,  # everything is kept
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,  # outputs of projections
    "full": jax.checkpoint_policies.nothing_saveable,  # a layer's input alone
}


def scan(body, carry, layers: nnx.Module, inputs: Any = None, *, remat: str):
    """Runs `body(layer, carry, layer's inputs) -> (carry, outputs)` over stacked layers.

    One traced layer, whatever the depth. `remat` is a name of `REMAT`.
    """
    graph, params = nnx.split(layers)

    def step(carry, xs):
        layer_params, layer_inputs = xs
        return body(nnx.merge(graph, layer_params), carry, layer_inputs)

    if remat != "none":
        step = jax.checkpoint(step, prevent_cse=False, policy=REMAT[remat])
    return jax.lax.scan(step, carry, (params, inputs))
