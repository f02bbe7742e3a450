"""Forward and backward pass of the attention kernels, with the sizes of the 7B recipes.

Our call of the kernel is set beside XLA's attention and, on a GPU, beside cuDNN with everything in
one mask and that mask's gradient, which is what JAX computes if it is handed the mask as it is.
"""

import functools
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.side_by_side import Variant
from mirg_jax.models import flash
from mirg_jax.models.attention import attend
from mirg_jax.runs.engines import KERNEL_OF


class Size(NamedTuple):
    """Sizes of one call of `attend`."""

    heads: int
    kv_heads: int
    head: int
    branches: int
    tokens: int
    prefix: int
    causal: bool
    packed: bool


SIZES = {
    "a packed row": Size(28, 4, 128, 1, 6144, 0, True, True),
    "a prompt": Size(28, 4, 128, 1, 3072, 0, True, False),
    "eight images": Size(16, 16, 80, 8, 2048, 0, False, False),
    "eight completions": Size(28, 4, 128, 8, 1024, 3072, True, True),
}


def _whole_mask(q, k, v, q_segments, k_segments, pattern):
    """cuDNN with a boolean mask and nothing else."""
    mask = flash.dense_mask(pattern, q_segments, k_segments)
    q, k, v = (x.transpose(0, 2, 1, 3) for x in (q, k, v))
    out = jax.nn.dot_product_attention(q, k, v, mask=mask[:, None], implementation="cudnn")
    return out.transpose(0, 2, 1, 3)


def _ways() -> dict[str, str]:
    """Names of the ways, ours first, and the engine of each."""
    kernel = KERNEL_OF.get(jax.default_backend())
    if kernel == "cudnn":
        flash.ENGINES["whole mask"] = _whole_mask
        return {"cudnn": "cudnn", "xla": "xla", "whole mask": "whole mask"}
    return {kernel: kernel, "xla": "xla"} if kernel else {"xla": "xla"}


def _work(size: Size) -> float:
    """Operations forward and backward; masked scores aren't counted."""
    own = size.tokens * (size.tokens + 1) / 2 if size.causal else size.tokens**2
    pairs = size.branches * (own + size.tokens * size.prefix)
    return 3.5 * 4 * size.heads * size.head * pairs


def _inputs(size: Size, dtype=jnp.bfloat16) -> tuple[list, dict, jax.Array]:
    """Arrays of `attend`, its other arguments, and which queries are no padding."""
    H, K, D, G, T, P = size[:6]
    rng = np.random.default_rng(0)

    def normal(*shape):
        return jnp.asarray(rng.standard_normal(shape), dtype)

    used = T - T // 16
    segments = np.where(np.arange(T) < used, 1, 0)
    if size.packed and not P:
        segments += (np.arange(T) >= T // 2) * (segments > 0)
    own = jnp.broadcast_to(jnp.asarray(segments, jnp.int32), (1, G, T))
    arrays = [normal(1, K, G, H // K, T, D), normal(1, K * G, T, D), normal(1, K * G, T, D)]
    given = {"causal": size.causal, "packed": size.packed, "q_segments": own, "k_segments": own}
    if P:
        arrays += [normal(1, K, P, D), normal(1, K, P, D)]
        given["prefix_segments"] = (jnp.arange(P) < P - P // 8).astype(jnp.int32)[None]
    return arrays, given, (own > 0)[:, None, :, None, :, None]


def gradients(size: Size, engine: str) -> tuple[Callable, list]:
    """The jitted sum of outputs with its gradients, and its arguments."""
    arrays, given, used = _inputs(size)

    def total(arrays):
        names = ("prefix_k", "prefix_v")[: len(arrays) - 3]
        shared = dict(zip(names, arrays[3:], strict=True))
        out = attend(*arrays[:3], engine=engine, **given, **shared)
        # The weights differ by place, so that gradients of keys aren't zero.
        weights = jnp.sin(jnp.arange(out.size, dtype=jnp.float32)).reshape(out.shape)
        return (jnp.where(used, out.astype(jnp.float32), 0) * weights).sum()

    return jax.jit(jax.value_and_grad(total)), arrays


class _Case:
    """The ways of one size, and what each has computed."""

    def __init__(self, size: Size, ways: dict[str, str]):
        self._functions = {way: gradients(size, engine) for way, engine in ways.items()}
        self._found: dict[str, list[jax.Array]] = {}

    def run(self, way: str) -> None:
        function, arrays = self._functions[way]
        value, grads = jax.block_until_ready(function(arrays))
        self._found[way] = [value, *grads]

    def differences(self) -> dict[str, list[float]]:
        """Of each way's value and gradients from those of XLA, over their norm."""

        def norm(x):
            return float(jnp.linalg.norm(x.astype(jnp.float32).ravel()))

        return {
            way: [norm(a - b) / norm(b) for a, b in zip(found, self._found["xla"], strict=True)]
            for way, found in self._found.items()
        }


def attention(_: str, sizes: dict[str, Size] = SIZES) -> Iterator[Variant]:
    """Each kind of call, by each engine that the backend has."""
    ways = _ways()
    for name, size in sizes.items():
        case = _Case(size, ways)
        yield Variant(
            name,
            {way: functools.partial(case.run, way) for way in ways},
            {"size": size._asdict(), "difference_from_xla": case.differences},
            counted=dict.fromkeys(ways, _work(size)),
        )


CASES = {"attention": attention}
