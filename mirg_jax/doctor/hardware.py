"""What accelerators the machine has, whether JAX sees them, and the attention they compute."""

import contextlib
import importlib.metadata
import io
import os
import pathlib
import platform
import re
import shutil
import subprocess
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from mirg_jax.doctor.report import Check
from mirg_jax.errors import ConfigError
from mirg_jax.models.config import ModelConfig
from mirg_jax.runs import devices, engines
from mirg_jax.runs.settings import ModelSettings, Settings
from mirg_jax.sharding import processes

_ROOT = pathlib.Path("/")
_NVIDIA, _GOOGLE = "0x10de", "0x1ae0"  # vendors on the PCI bus
_DISPLAY = "0x03"  # begins the PCI class of graphics processors
# PCI devices of Google's that are TPUs: v2 and v3, v4, v5p, v5e, v6e, 7x.
_TPUS = ("0x0027", "0x005e", "0x0062", "0x0063", "0x006f", "0x0076")
# The oldest driver of each plugin.
_DRIVERS = {"jax-cuda12-plugin": 525, "jax-cuda13-plugin": 580}
_PLUGINS = {"gpu": tuple(_DRIVERS), "tpu": ("libtpu",)}
_NAMES = {"gpu": ("gpu", "cuda"), "tpu": ("tpu",)}  # of the platforms in JAX_PLATFORMS
_INSTALL = {"gpu": "make venv ACCEL=cuda12 (or cuda13, with driver 580 or later)",
            "tpu": "make venv ACCEL=tpu"}  # fmt: skip


class Accelerators(NamedTuple):
    """The accelerators in the machine, whether JAX can use them or not."""

    platform: str  # "gpu" or "tpu"
    count: int
    driver: str  # version; "" if none is loaded, and for TPUs

    def __str__(self) -> str:
        unit = "NVIDIA GPU" if self.platform == "gpu" else "TPU chip"
        return f"{self.count} {unit}{'' if self.count == 1 else 's'}"


def present(root: pathlib.Path = _ROOT) -> Accelerators | None:
    """Returns the machine's accelerators, by its PCI bus and device files; None: there are none.

    Args:
      root: folder that stands for the file system's root.
    """
    bus = [_pci(device) for device in sorted(root.glob("sys/bus/pci/devices/*"))]
    if chips := sum(vendor == _GOOGLE and device in _TPUS for vendor, device, _ in bus):
        return Accelerators("tpu", chips, "")
    files = len(list(root.glob("dev/nvidia[0-9]*"))) or (root / "dev/dxg").exists()
    cards = sum(vendor == _NVIDIA and kind.startswith(_DISPLAY) for vendor, _, kind in bus)
    if files or cards:
        return Accelerators("gpu", int(files) or cards, _driver(root) if files else "")
    return None


def _pci(folder: pathlib.Path) -> tuple[str, str, str]:
    """Returns vendor, device and class of a PCI device; empty where they can't be read."""
    found = []
    for name in ("vendor", "device", "class"):
        try:
            found.append((folder / name).read_text().strip())
        except OSError:
            found.append("")
    return found[0], found[1], found[2]


def _driver(root: pathlib.Path) -> str:
    """Returns the version of NVIDIA's driver; "" if none is loaded."""
    with contextlib.suppress(OSError):
        text = (root / "proc/driver/nvidia/version").read_text()
        if found := re.search(r"Kernel Module.*?(\d+(?:\.\d+)+)", text):
            return found[1]
    if program := shutil.which("nvidia-smi"):  # where /proc doesn't say: WSL
        query = [program, "--query-gpu=driver_version", "--format=csv,noheader"]
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            said = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True)
            return (said.stdout.split() or [""])[0]
    return ""


def installed(names: tuple[str, ...]) -> dict[str, str]:
    """Returns the versions of those packages that are installed."""
    found = {}
    for name in names:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def machine(check: Check, root: pathlib.Path = _ROOT) -> Accelerators | None:
    """Looks at accelerators, drivers and packages; starts no backend.

    Args:
      check: takes what is found.
      root: folder that stands for the file system's root.

    Returns:
      The accelerators that JAX should see; None if there are none or something keeps it from them.
    """
    found = present(root)
    packages = installed(("jax", "jaxlib", "libtpu", *_DRIVERS))
    versions = ", ".join(f"{name} {version}" for name, version in packages.items())
    driver = f", driver {found.driver}" if found and found.driver else ""
    check.ok(f"{found or 'no accelerator'}, Python {platform.python_version()}, {versions}{driver}")
    check.same("versions", versions, "make venv with the same ACCEL on all hosts")
    if found is None:
        return None
    wanted = _wanted()
    if wanted and not set(wanted) & set(_NAMES[found.platform]):
        check.warning(
            f"JAX_PLATFORMS={','.join(wanted)} keeps JAX from {found}; unset it to use them"
        )
        return None
    if problem := _unusable(found, packages):
        check.problem(f"{problem}; or JAX_PLATFORMS=cpu, to use the CPU")
        return None
    if found.platform == "gpu" and os.environ.get("LD_LIBRARY_PATH"):
        check.warning("LD_LIBRARY_PATH is set and may lead to other CUDA libraries; unset it")
    return found


def _wanted() -> list[str]:
    """Returns the platforms that JAX is restricted to; empty: none."""
    return [name.strip() for name in (jax.config.jax_platforms or "").split(",") if name.strip()]


def _unusable(found: Accelerators, packages: dict[str, str]) -> str:
    """Returns why JAX can't use accelerators and what to do; "" if nothing is in its way."""
    plugins = [name for name in _PLUGINS[found.platform] if name in packages]
    if found.platform == "gpu" and not found.driver:
        return (
            f"{found}, but no driver is loaded (/dev/nvidia0 and /proc/driver/nvidia): install "
            "NVIDIA's driver, or start the container with --gpus=all"
        )
    if not plugins:
        names = " or ".join(_PLUGINS[found.platform])
        return f"{found}, but no {names}, so JAX can't see them: {_INSTALL[found.platform]}"
    if found.platform == "tpu":
        return ""
    plugin = plugins[0]
    if int(found.driver.partition(".")[0]) < _DRIVERS[plugin]:
        return f"driver {found.driver} is too old for {plugin}: install {_DRIVERS[plugin]} or later"
    if _release(packages[plugin]) != _release(packages.get("jaxlib", "")):
        return (
            f"{plugin} {packages[plugin]} is not of jaxlib's version, {packages.get('jaxlib')}, so "
            f"JAX can't see {found}: {_INSTALL['gpu']}"
        )
    return ""


def _release(version: str) -> str:
    found = re.match(r"\d+(\.\d+)*", version)
    return found[0] if found else version


def start(check: Check, settings: Settings, expected: Accelerators | None) -> Mesh | None:
    """Starts JAX's devices and creates the recipe's mesh.

    Args:
      check: takes what is found.
      settings: the recipe.
      expected: the accelerators that JAX should see.

    Returns:
      The mesh; None if it doesn't match the devices.

    Raises:
      ConfigError: if there are no devices.
      RuntimeError: if they can't be started.
    """
    mesh, problem = None, ""
    try:
        mesh = devices.start(settings.devices)
    except ConfigError as error:
        problem = str(error)
        if problem.startswith("no devices"):
            raise
    local = jax.local_devices()
    kind, where = local[0].device_kind, local[0].platform
    shared = f" in {jax.process_count()} processes" if jax.process_count() > 1 else ""
    found = f"{jax.device_count()} × {kind} ({where}){shared}"
    if where == "cpu" and settings.model.precision.compute == jnp.bfloat16:
        check.warning(
            f"{found}, and the recipe is for GPUs or TPUs: it computes in bfloat16; enough to look "
            "at the data and the folders, too slow for the run"
        )
    else:
        check.ok(found)
    check.same("devices", f"{len(local)} × {kind}", "give all hosts the same accelerators")
    if expected and where == "cpu":
        name = _NAMES[expected.platform][-1]
        check.problem(
            f"JAX sees the CPU alone, though there are {expected}; JAX_PLATFORMS={name} "
            '.venv/bin/python -c "import jax; jax.devices()" says why'
        )
    if problem:
        check.problem(problem)
    return mesh


def attention(check: Check, model: ModelSettings, sizes: ModelConfig, mesh: Mesh) -> None:
    """Chooses the attention implementation as a run does, and tries it.

    Raises:
      ConfigError: if the settings name one that can't run.
    """
    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        engine = engines.options(model, sizes, mesh).attention
    if not processes.is_first():  # it speaks for all
        return
    if reason := said.getvalue().strip():
        check.warning(f"{reason}; the run goes on, with more memory and time")
    else:
        check.ok(f"{engine}, in {model.precision.compute} with heads of {sizes.text.head_dim}")
