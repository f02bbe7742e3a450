"""How a model is computed on a device: attention that it can run, exact float32, XLA's options."""

import functools
import os
import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, SingleDeviceSharding

from mirg_jax.errors import ConfigError, one_line
from mirg_jax.files.streams import say
from mirg_jax.models import flash
from mirg_jax.models.config import ModelConfig
from mirg_jax.models.options import ModelOptions
from mirg_jax.runs.settings import ModelSettings
from mirg_jax.sharding import processes

KERNEL_OF = {"tpu": "splash", "gpu": "cudnn", "cuda": "cudnn"}  # by platform


class Choice(NamedTuple):
    """An attention implementation, and why it is not the platform's kernel ("" if it is)."""

    engine: str
    reason: str = ""


def choose(model: ModelSettings, sizes: ModelConfig, device: Any) -> Choice:
    """Chooses the attention implementation by what is known of a device, without running anything.

    Args:
      model: the model's settings; `attention` is "auto" or the name of an implementation.
      sizes: the model's configuration.
      device: a device, or a stand-in with its `platform` and `compute_capability`.

    Raises:
      ConfigError: if the settings name an implementation that the device can't run.
    """
    wanted = model.attention
    if wanted == "xla":
        return Choice("xla")
    kernel = KERNEL_OF.get(device.platform, "") if wanted == "auto" else wanted
    if not kernel:
        return Choice("xla")
    problem = _problem(kernel, model.precision.compute, _head_sizes(sizes), device)
    if problem and wanted != "auto":
        raise ConfigError(f"model.attention={wanted}: {problem}; use auto or xla")
    return Choice("xla", problem) if problem else Choice(kernel)


def options(model: ModelSettings, sizes: ModelConfig, mesh: Mesh) -> ModelOptions:
    """Returns the model's options on the devices of a mesh.

    The platform's attention kernel is tried once; if it can't run, and the settings leave the
    choice open, XLA's attention takes its place, with a line that says why.

    Raises:
      ConfigError: if the settings name an attention that can't run.
    """
    device, dtype = mesh.local_devices[0], jnp.dtype(model.precision.compute)
    engine, reason = choose(model, sizes, device)
    if engine != "xla":
        # All processes must run the same program.
        tried = processes.gather(_failure(engine, dtype, _head_sizes(sizes), device))
        reason = next(filter(None, tried), "")
        if reason and model.attention != "auto":
            raise ConfigError(f"model.attention={engine}: {reason}; use auto or xla")
        engine = "xla" if reason else engine
    if reason and processes.is_first():
        say(f"attention by XLA, which holds all scores in memory: {reason}")
    if device.platform != "cpu" and "JAX_DEFAULT_MATMUL_PRECISION" not in os.environ:
        # Accelerators multiply float32 in fewer bits by default (TF32, one pass of bfloat16).
        exact = "float32" if dtype == jnp.float32 else None
        jax.config.update("jax_default_matmul_precision", exact)
    return ModelOptions(model.precision, model.remat, engine)


def _head_sizes(sizes: ModelConfig) -> tuple[int, ...]:
    return sizes.text.head_dim, sizes.vision.head_dim


def _problem(kernel: str, dtype: Any, head_sizes: tuple[int, ...], device: Any) -> str:
    """Returns why a device can't run a kernel, as far as its documentation says; "" if it can."""
    if kernel == "splash":
        return "" if device.platform == "tpu" else "splash is for TPUs"
    # Devices that are only planned for have no capability.
    capability = str(getattr(device, "compute_capability", "8.0"))
    if device.platform not in ("gpu", "cuda") or not re.fullmatch(r"\d+\.\d+", capability):
        return "cuDNN is for NVIDIA GPUs"
    version = tuple(map(int, capability.split(".")))
    if version < (8, 0):
        return f"cuDNN's attention needs compute capability 8.0, this GPU has {capability}"
    if jnp.dtype(dtype).itemsize != 2:
        return f"cuDNN's attention computes in 16 bits, not in {jnp.dtype(dtype).name}"
    largest = 256 if version >= (9, 0) else 128
    for size in head_sizes:
        if size % 8 or size > largest:
            return f"cuDNN's attention takes heads of 8, 16, … {largest}, not of {size}"
    return ""


@functools.cache
def _failure(engine: str, dtype: Any, head_sizes: tuple[int, ...], device: Any) -> str:
    """Runs a kernel forward and backward, once for each kind of mask; returns what went wrong."""
    patterns = (
        flash.Pattern(1, 128, 128, 0, causal=True, packed=False),
        flash.Pattern(1, 128, 128, 0, causal=True),
        flash.Pattern(2, 64, 64, 128, causal=True),
        flash.Pattern(1, 128, 128, 0, causal=False, packed=False),
    )

    def total(q, k, v, queries, keys, pattern):
        out = flash.ENGINES[engine](q, k, v, queries, keys, pattern)
        return out.astype(jnp.float32).sum()

    try:
        with jax.default_device(device):
            for size in head_sizes:
                for pattern in patterns:
                    queries, keys = pattern.shape
                    q = jnp.ones((1, 2, queries, size), dtype)
                    k = jnp.ones((1, 1, keys, size), dtype)
                    ones = jnp.ones((1, queries), jnp.int32), jnp.ones((1, keys), jnp.int32)
                    gradient = jax.jit(jax.grad(total, (0, 1, 2)), static_argnums=5)
                    jax.block_until_ready(gradient(q, k, k, *ones, pattern))
    except Exception as error:  # of many types: missing libraries, shapes, the compiler's own
        return f"{engine} failed ({type(error).__name__}: {one_line(error)})"
    return ""


# TPU compiler options with which sums of gradients over devices run beside the core's work.
GRADIENT_OPTIONS = {
    "xla_enable_async_all_reduce": "true",
    "xla_tpu_enable_async_collective_fusion_fuse_all_reduce": "true",
}


def gradient_options(mesh: Mesh) -> dict[str, str] | None:
    """Returns the compiler options for programs that compute gradients; None for the defaults.

    They make a program faster and nothing else, so a compiler that doesn't know them goes without.
    """
    if mesh.devices.flat[0].platform != "tpu" or mesh.size == 1:
        return None
    mine = [d for d in mesh.devices.flat if d.process_index == jax.process_index()]
    if problem := _refused_options((mine or [*mesh.devices.flat])[0]):
        if processes.is_first():
            say(f"gradients are compiled without XLA options of ours: {problem}")
        return None
    return GRADIENT_OPTIONS


@functools.cache
def _refused_options(device: Any) -> str:
    """Compiles a small program with `GRADIENT_OPTIONS`; returns what went wrong, if anything."""
    number = jax.ShapeDtypeStruct((), jnp.float32, sharding=SingleDeviceSharding(device))
    try:
        jax.jit(jnp.negative, compiler_options=GRADIENT_OPTIONS).lower(number).compile()
    except (jax.errors.JaxRuntimeError, ValueError) as error:
        return one_line(error)
    return ""
