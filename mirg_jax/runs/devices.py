"""The devices of a run: how they are started and divided."""

import jax
from jax.sharding import Mesh

from mirg_jax import sharding
from mirg_jax.errors import ConfigError
from mirg_jax.runs.settings import DeviceSettings
from mirg_jax.sharding import processes


def start(devices: DeviceSettings) -> Mesh:
    """Joins the run's processes and makes the training mesh; call it before any array is made.

    Raises:
      ConfigError: if the mesh doesn't fit the devices, or other processes can't be reached.
    """
    if devices.cpu_devices not in (0, jax.config.jax_num_cpu_devices):
        jax.config.update("jax_num_cpu_devices", devices.cpu_devices)
    processes.start()
    mesh = training_mesh(devices)
    try:
        sharding.data_share(mesh)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    return mesh


def training_mesh(devices: DeviceSettings, of: list | None = None) -> Mesh:
    """The mesh of `config.mesh` over all devices, or those given.

    Raises:
      ConfigError: if it doesn't fit them.
    """
    sizes = devices.data, devices.fsdp, devices.tensor
    try:
        return sharding.make_mesh(*sizes, devices=of)
    except ValueError as error:
        raise ConfigError(str(error)) from None


def sampling_mesh(devices: DeviceSettings, mesh: Mesh) -> Mesh:
    """The same devices, divided as `config.sampling.tensor` says.

    Raises:
      ConfigError: if they can't be.
    """
    try:
        return sharding.sampling_mesh(mesh, devices.sampling_tensor)
    except ValueError as error:
        raise ConfigError(str(error)) from None
