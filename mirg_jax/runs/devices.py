"""Initialisation of a run's devices, and its meshes."""

import importlib.util
import os

import jax
from jax.sharding import Mesh

from mirg_jax import sharding
from mirg_jax.errors import ConfigError
from mirg_jax.runs.settings import DeviceSettings
from mirg_jax.sharding import processes

_CUDA = ("jax_cuda12_plugin", "jax_cuda13_plugin")
_TRITON = "--xla_gpu_enable_triton_gemm"


def start(devices: DeviceSettings) -> Mesh:
    """Initialises the run's processes and creates the training mesh.

    Call it before any array is created.

    Raises:
      ConfigError: if there are no devices, the mesh doesn't match them, or other processes can't be
        reached.
    """
    if devices.cpu_devices not in (0, jax.config.jax_num_cpu_devices):
        jax.config.update("jax_num_cpu_devices", devices.cpu_devices)
    if devices.float32:
        _leave_products_to_cublas()
    processes.start()
    open_all()
    mesh = training_mesh(devices)
    try:
        sharding.data_share(mesh)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    return mesh


def open_all() -> None:
    """Opens the devices, which else happens at their first use.

    Raises:
      ConfigError: if there are none.
    """
    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:  # the latter, without words, where no GPU is
        known = ("Unable to initialize backend", "Unknown backend")
        if isinstance(error, RuntimeError) and not str(error).startswith(known):
            raise
        platforms = jax.config.jax_platforms or "any"
        reason = (str(error).splitlines() or ["JAX finds none"])[0][:200]
        raise ConfigError(
            f"no devices ({reason}); JAX_PLATFORMS={platforms} must name a platform that this "
            "machine has and jax is installed for"
        ) from None


def _leave_products_to_cublas() -> None:
    """Turns off Triton's matrix products on NVIDIA GPUs, where XLA_FLAGS doesn't ask for them.

    For each product XLA compiles dozens of Triton kernels and takes the fastest. In float32 this
    is most of the time to the first step: on an H200, 82 s on six cores for the demo's largest
    program, and 8 s on two cores without. XLA reads its flags when the first device is opened.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    if _TRITON not in flags and any(map(importlib.util.find_spec, _CUDA)):
        os.environ["XLA_FLAGS"] = f"{flags} {_TRITON}=false".strip()


def training_mesh(devices: DeviceSettings, of: list | None = None) -> Mesh:
    """Creates the mesh of `config.mesh`.

    Args:
      devices: the settings.
      of: the devices to use; None: all.

    Raises:
      ConfigError: if the mesh doesn't match the devices.
    """
    sizes = devices.data, devices.fsdp, devices.tensor
    try:
        return sharding.make_mesh(*sizes, devices=of)
    except ValueError as error:
        raise ConfigError(str(error)) from None


def sampling_mesh(devices: DeviceSettings, mesh: Mesh) -> Mesh:
    """Creates the mesh of `config.sampling` over the devices of the training mesh.

    Raises:
      ConfigError: if `sampling.tensor` doesn't divide their number.
    """
    try:
        return sharding.sampling_mesh(mesh, devices.sampling_tensor)
    except ValueError as error:
        raise ConfigError(str(error)) from None
