"""Machines that a recipe can be planned for; the machine itself is not needed."""

import importlib.util
import os
import pathlib
import re
from typing import NamedTuple

from mirg_jax.errors import ConfigError
from mirg_jax.runs.chips import CHIPS, Chip

GIB = 2**30


# Those that programs can be compiled for without one.
KINDS = {name: CHIPS[name] for name in ("v5e", "v5p", "v6e", "h100")}


class Machine(NamedTuple):
    """A machine: a TPU slice by its topology (`v5e:4x4`), or one node with GPUs (`h100:8`)."""

    name: str
    kind: Chip
    topology: str

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
                "such as v5e:4x4, v5p:2x2x2 or h100:8"
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
                sizes = [int(size) for size in self.topology.split("x")]
                options = {}
                if sizes == [1, 1]:  # by default a host has four chips
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
