"""LoRA (arXiv 2106.09685): low-rank adapters on frozen dense layers.

The parameters of the base model and of the adapters are kept as two separate states. The base alone
is a plain model, which serves as GRPO's reference; base and adapters together are the policy.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
from flax import nnx

from mirg_jax.models.layers import Linear, abstract

DECODER = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
TOWER = ("qkv", "proj", "fc1", "fc2", "gate_proj", "up_proj", "down_proj")  # of all families


@dataclasses.dataclass(frozen=True)
class Lora:
    """LoRA settings: which layers have an adapter, its rank and its scale.

    Attributes:
      rank: rank of the product a · b.
      alpha: the product is scaled by alpha / rank.
      targets: names of decoder layers with an adapter, out of `DECODER`.
      tower: whether the vision blocks' layers in `TOWER` have adapters too.

    Raises:
      ValueError: if a value is invalid.
    """

    rank: int
    alpha: float = 32
    targets: tuple[str, ...] = DECODER
    tower: bool = False

    def __post_init__(self):
        unknown = [name for name in self.targets if name not in DECODER]
        if unknown:
            raise ValueError(f"targets: {unknown[0]!r} is none of {', '.join(DECODER)}")
        if not (self.targets or self.tower):
            raise ValueError("targets: empty, so nothing would be trained; name at least one layer")
        if self.rank < 1 or self.alpha <= 0:
            raise ValueError(f"rank={self.rank} and alpha={self.alpha} must be above 0")

    @property
    def scale(self) -> float:
        """Factor of the adapters' product."""
        return self.alpha / self.rank

    def adapts(self, path: tuple) -> bool:
        """Returns whether the layer at `path` in the model has an adapter."""
        if path[:2] == ("decoder", "layers"):
            return path[-1] in self.targets
        return self.tower and path[:2] == ("visual", "blocks") and path[-1] in TOWER


def attach(graph: nnx.GraphDef, params: nnx.State, lora: Lora) -> tuple[nnx.GraphDef, nnx.State]:
    """Adds adapters to a model; `init` creates their values.

    Adapters are float32 whatever the base's dtype, and are sharded like the layer they belong to.

    Args:
      graph: graph of the plain model.
      params: parameters of the plain model; arrays or shapes.
      lora: which layers get adapters.

    Returns:
      The graph of the model with adapters, and the adapters' shapes.
    """
    model = abstract(graph, params)

    def param(shape, axes):
        return nnx.LoRAParam(jax.ShapeDtypeStruct(shape, jnp.float32), axes=axes)

    for path, layer in nnx.iter_modules(model):
        if isinstance(layer, Linear) and lora.adapts(path):
            *depth, rows, columns = layer.kernel.shape
            axes = layer.kernel.get_metadata()["axes"]
            layer.lora_a = param((*depth, rows, lora.rank), (axes[0], None))
            layer.lora_b = param((*depth, lora.rank, columns), (None, axes[1]))
            layer.lora_scale = lora.scale
    graph, adapters, _ = nnx.split(model, nnx.LoRAParam, ...)
    return graph, adapters


def is_adapters(params: nnx.State) -> bool:
    """Returns whether all parameters belong to adapters, so that there is no base model."""
    variables = jax.tree.leaves(params, is_leaf=lambda x: isinstance(x, nnx.Variable))
    return all(isinstance(variable, nnx.LoRAParam) for variable in variables)


def init(adapters: nnx.State, seed: int) -> nnx.State:
    """Initialises adapters: a as PEFT does (uniform), b zero, so that outputs do not change.

    Args:
      adapters: the shapes from `attach`.
      seed: random seed.
    """
    flat = nnx.to_flat_state(adapters)
    keys = jax.random.split(jax.random.key(seed), len(flat))

    def one(path, leaf, key):
        if path[-1] == "lora_b":
            return leaf.replace(jnp.zeros(leaf.shape, leaf.dtype))
        bound = 1 / math.sqrt(leaf.shape[-2])
        return leaf.replace(jax.random.uniform(key, leaf.shape, leaf.dtype, -bound, bound))

    return nnx.from_flat_state(
        [(path, one(path, leaf, key)) for (path, leaf), key in zip(flat, keys, strict=True)]
    )


def merge(params: nnx.State, adapters: nnx.State, lora: Lora, dtype=None) -> nnx.State:
    """Merges adapters into their base: kernel + scale · a · b, computed in float32.

    Args:
      params: parameters of the plain model.
      adapters: values of the adapters.
      lora: the settings that the adapters were created with.
      dtype: dtype of the result; None keeps each parameter's dtype.

    Returns:
      The parameters of a plain model.
    """
    products = dict(nnx.to_flat_state(adapters))

    def add(layer):
        kernel, a, b = layer
        product = jnp.matmul(a, b, precision="highest")
        return (kernel.astype(jnp.float32) + lora.scale * product).astype(dtype or kernel.dtype)

    def one(path, leaf):
        value = leaf.get_value()
        a, b = (products.get((*path[:-1], name)) for name in ("lora_a", "lora_b"))
        if path[-1] != "kernel" or a is None:
            return leaf.replace(value.astype(dtype or value.dtype))
        # One layer at a time: a stacked product is as large as the kernels of all layers together.
        return leaf.replace(jax.lax.map(add, (value, a.get_value(), b.get_value())))

    return nnx.from_flat_state(
        [(path, one(path, leaf)) for path, leaf in nnx.to_flat_state(params)]
    )
