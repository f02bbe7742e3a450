"""Initialisation of a run's devices, and its meshes."""

import jax
from jax.sharding import Mesh

from mirg_jax import sharding
from mirg_jax.errors import ConfigError
from mirg_jax.runs.settings import DeviceSettings
from mirg_jax.sharding import processes


def start(devices: DeviceSettings) -> Mesh:
    """Initialises the run's processes and creates the training mesh.

    Call it before any array is created.

    Raises:
      ConfigError: if the mesh doesn't match the devices, or other processes can't be reached.
    """
    if devices.cpu_devices not in (0, jax.config.jax_num_cpu_devices):
        jax.config.update("jax_num_cpu_devices", devices.cpu_devices)
    try:
        processes.start()
        mesh = training_mesh(devices)
    except RuntimeError as error:
        if not str(error).startswith(("Unable to initialize backend", "Unknown backend")):
            raise
        platforms = jax.config.jax_platforms or "any"
        reason = str(error).splitlines()[0][:200]
        raise ConfigError(
            f"no devices ({reason}); JAX_PLATFORMS={platforms} must name a platform that this "
            "machine has and jax is installed for"
        ) from None
    try:
        sharding.data_share(mesh)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    return mesh


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
