"""Machines that a recipe can be planned for; the machine itself is not needed."""

import importlib.util
import math
import os
import pathlib
import re
from typing import NamedTuple

from mirg_jax.errors import ConfigError
from mirg_jax.runs.chips import CHIPS, Chip

GIB = 2**30


# Those that programs can be compiled for without one.
KINDS = {name: CHIPS[name] for name in ("v5e", "v5p", "v6e", "tpu7x", "h100")}


class Speeds(NamedTuple):
    """What limits a device beside its operations per second (`Chip.flops`).

    Attributes:
      hbm: bytes per second of its memory.
      link: bytes per second, in one direction, of a link to a neighbour; a GPU's, of all its links.
      host: bytes per second to the host.
      clock: cycles per second of the TPU compiler's estimates.
      ring: of how many chips on a TPU slice's dimension at least is a ring.
      kernel: fraction of the bf16 peak that attention kernels reach.
      cores: devices of JAX's on a chip; they share its links, and have one more to each other.
    """

    hbm: float
    link: float
    host: float
    clock: float = 0
    ring: int = 0
    kernel: float = 0.5
    cores: int = 1


# hbm and links: cloud.google.com/tpu/docs/v5e, v5p, v6e ("HBM bandwidth", "interchip interconnect
# bandwidth" over the chip's 4, 6, 4 links, and 90 % of it). v6e's link is what an all-reduce over
# 256 chips implies, and its kernel what the published step of Llama-3.1-8B implies, where a head of
# 128 leaves half of an array of 256 × 256 idle. clock: the peak over the operations of a cycle:
# 131072, 262144, 524288. tpu7x: cloud.google.com/tpu/docs/tpu7x, half of a chip's figures for each
# of its two cores; arrays, and so kernels, as v6e's. Nothing published was compared with. H100:
# NVIDIA's data sheet of the SXM card, NVLink in one direction.
SPEEDS = {
    "v5e": Speeds(819e9, 45e9, 16e9, clock=1.5e9, ring=16),
    "v5p": Speeds(2765e9, 90e9, 16e9, clock=1.75e9, ring=4),
    "v6e": Speeds(1640e9, 59e9, 32e9, clock=1.75e9, ring=16, kernel=0.3),
    "tpu7x": Speeds(3690e9, 45e9, 32e9, clock=2.2e9, ring=4, kernel=0.3, cores=2),
    "h100": Speeds(3350e9, 450e9, 64e9),
}


class Machine(NamedTuple):
    """A machine: a TPU slice by its topology (`v5e:4x4`), or one node with GPUs (`h100:8`)."""

    name: str
    kind: Chip
    topology: str

    @property
    def speeds(self) -> Speeds:
        """What limits its devices beside their operations."""
        return SPEEDS[self.name.partition(":")[0]]

    @property
    def sizes(self) -> list[int]:
        """Numbers of devices along each dimension; a chip's cores are the last one."""
        sizes = self._chips
        return sizes if self.speeds.cores == 1 else [*sizes, self.speeds.cores]

    @property
    def chips(self) -> int:
        """Number of chips or GPUs, of which a chip may be several devices."""
        return math.prod(self._chips)

    @property
    def _chips(self) -> list[int]:
        return [int(size) for size in self.topology.split("x")]

    @classmethod
    def parse(cls, name: str) -> "Machine":
        """Parses a machine's name.

        Raises:
          ConfigError: if the machine is unknown.
        """
        kind, _, topology = name.partition(":")
        if kind not in KINDS or not re.fullmatch(r"\d+(x\d+)*", topology):
            raise ConfigError(
                f"--machine={name}: give KIND:TOPOLOGY with a kind of {', '.join(KINDS)}, "
                "such as v5e:4x4, v5p:2x2x2, tpu7x:2x2x1 or h100:8"
            )
        return cls(name, KINDS[kind], topology)

    def devices(self) -> list:
        """Returns descriptions of its devices, which programs can be compiled for but not run on.

        Raises:
          ConfigError: if the compiler for this kind is not installed, or the topology is invalid.
        """
        from jax.experimental import topologies

        kind = self.name.partition(":")[0]
        try:
            if self.kind.platform == "cuda":
                target = pathlib.Path(__file__).parent / f"{kind}.txtpb"
                topology = topologies.get_topology_desc(
                    platform="cuda",
                    topology_name=kind,
                    target_config=target.read_text(),
                    topology=f"1x1x{self.topology}",
                )
            else:
                options = {}
                if self.sizes == [1, 1]:  # by default a host has four chips
                    options["chips_per_host_bounds"] = (1, 1, 1)
                topology = topologies.get_topology_desc(
                    platform="tpu", topology_name=self.name, **options
                )
        except Exception as error:  # each plugin raises its own exception types
            reason = str(error).splitlines()[0]
            raise ConfigError(
                f"--machine={self.name}: can't compile for it on this computer ({reason}); "
                "install requirements-plan.txt, and check the topology"
            ) from None
        return list(topology.devices)


def prepare_environment() -> None:
    """Sets the environment variables needed for compiling; call it before importing JAX."""
    os.environ["JAX_PLATFORMS"] = "cpu"
    # A program for a machine that isn't there can't be read back from JAX's cache.
    os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-8")
    # Faults are raised; what XLA prints beside them is advice, as on compiling for minutes.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    try:
        nvcc = importlib.util.find_spec("nvidia.cuda_nvcc")
    except ModuleNotFoundError:
        return
    if nvcc:
        (folder,) = nvcc.submodule_search_locations
        os.environ["PATH"] = f"{folder}/bin{os.pathsep}{os.environ['PATH']}"
        flags = f"--xla_gpu_autotune_level=0 --xla_gpu_cuda_data_dir={folder}"
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flags}"
