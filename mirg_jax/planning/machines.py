"""Machines that a recipe can be planned for, without having one."""

import importlib.util
import os
import pathlib
import re
from typing import NamedTuple

from mirg_jax.errors import ConfigError

GIB = 2**30


class Kind(NamedTuple):
    """A kind of device, by its maker's figures."""

    platform: str
    memory: float  # GiB that programs can use
    flops: float  # bf16 operations a second


KINDS = {
    "v5e": Kind("tpu", 15.75, 197e12),
    "v5p": Kind("tpu", 95.74, 459e12),
    "v6e": Kind("tpu", 31.25, 918e12),
    "h100": Kind("cuda", 79.1, 989e12),
}


class Machine(NamedTuple):
    """`v5e:4x4` is a TPU slice by its topology, `h100:8` one node of so many GPUs."""

    name: str
    kind: Kind
    topology: str

    @classmethod
    def parse(cls, name: str) -> "Machine":
        """Raises ConfigError for a machine that isn't known."""
        kind, _, topology = name.partition(":")
        if kind not in KINDS or not re.fullmatch(r"\d+(x\d+)*", topology):
            raise ConfigError(
                f"--machine={name}: give KIND:TOPOLOGY with a kind of {', '.join(KINDS)}, "
                "such as v5e:4x4, v5p:2x2x2 or h100:8"
            )
        return cls(name, KINDS[kind], topology)

    def devices(self) -> list:
        """Its devices, which can be compiled for, not run on.

        Raises:
          ConfigError: when the packages that know this kind aren't installed.
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
                sizes = [int(size) for size in self.topology.split("x")]
                options = {}
                if sizes == [1, 1]:  # by default a host has four chips
                    options["chips_per_host_bounds"] = (1, 1, 1)
                topology = topologies.get_topology_desc(
                    platform="tpu", topology_name=self.name, **options
                )
        except Exception as error:  # each plugin has its own
            reason = str(error).splitlines()[0]
            raise ConfigError(
                f"--machine={self.name}: can't be compiled for here ({reason}); "
                "install requirements-plan.txt, and look at the topology's name"
            ) from None
        return list(topology.devices)


def prepare_environment() -> None:
    """What must be set before JAX starts, for compiling without the machine."""
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-8")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    try:
        nvcc = importlib.util.find_spec("nvidia.cuda_nvcc")
    except ModuleNotFoundError:
        return
    if nvcc:
        (folder,) = nvcc.submodule_search_locations
        os.environ["PATH"] = f"{folder}/bin{os.pathsep}{os.environ['PATH']}"
        flags = f"--xla_gpu_autotune_level=0 --xla_gpu_cuda_data_dir={folder}"
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flags}"
