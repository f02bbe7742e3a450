"""Whether what a plan counts of a recipe's memory fits what is free on the devices at hand."""

import dataclasses
import pathlib
from typing import NamedTuple

import jax
from jax.sharding import Mesh

from mirg_jax.doctor.report import Check
from mirg_jax.planning import plans
from mirg_jax.planning.machines import GIB
from mirg_jax.planning.plans import FREE, Report
from mirg_jax.planning.programs import Program, programs
from mirg_jax.runs.settings import Settings
from mirg_jax.sharding.memory import bytes_per_device

_ROOT = pathlib.Path("/")


class Memory(NamedTuple):
    """The memory of a device in bytes."""

    free: int
    whole: int


def of_host(root: pathlib.Path = _ROOT) -> Memory:
    """Returns the memory of this machine, or of the container that this process is in.

    Args:
      root: folder that stands for the file system's root.
    """
    lines = (root / "proc/meminfo").read_text().splitlines()
    fields = {name: value for name, _, value in (line.partition(":") for line in lines)}
    free, whole = (1024 * int(fields[n].split()[0]) for n in ("MemAvailable", "MemTotal"))
    group = root / "sys/fs/cgroup"
    try:
        limit = int((group / "memory.max").read_text())
        used = int((group / "memory.current").read_text())
    except (OSError, ValueError):  # "max": no limit
        return Memory(free, whole)
    return Memory(min(free, max(limit - used, 0)), min(whole, limit))


def of_devices() -> Memory:
    """Returns the memory of the device of this process that has the least free.

    Devices of a CPU share the machine's.
    """
    found = []
    for device in jax.local_devices():
        stats = device.memory_stats() or {}
        if whole := stats.get("bytes_limit"):
            found.append(Memory(whole - stats.get("bytes_in_use", 0), whole))
    if found:
        return min(found)
    host, count = of_host(), jax.local_device_count()
    return Memory(host.free // count, host.whole // count)


def counted(program: Program) -> Report:
    """Counts the arrays of a program without compiling it; activations are left out."""
    parts = {name: bytes_per_device(tree) for name, tree in program.parts.items()}
    return Report(program.name, parts, 0)


def needed(report: Report) -> int:
    """Returns the bytes that a program needs on a device."""
    return max(report.total, report.compiler)


def fits(
    check: Check, settings: Settings, model: str, mesh: Mesh, *, compiled: bool, memory: Memory
) -> None:
    """Compares the largest program of a recipe with the free memory.

    Args:
      check: takes what is found.
      settings: the recipe.
      model: a published model's name, or a folder with the model's config.json.
      mesh: the training mesh.
      compiled: whether the programs are compiled, so that activations are counted too.
      memory: the memory of a device.

    Raises:
      ConfigError: if the rows can't be divided over the devices.
    """
    settings = dataclasses.replace(settings, model=dataclasses.replace(settings.model, path=model))
    measure = plans.measure if compiled else counted
    reports = [measure(program) for program in programs(settings, list(mesh.devices.flat))]
    worst = max(reports, key=lambda report: (bool(report.problem), needed(report)))
    advice = f"try {plans.advice(settings, worst, memory.whole)}"
    if worst.problem:
        check.problem(f"{worst.name} {worst.problem}; {advice}")
        return
    parts = ", ".join(f"{n} {v / GIB:.2f}" for n, v in worst.parts.items() if v)
    left_out = "" if compiled else "; without activations, which --compile counts"
    text = (
        f"{worst.name} needs {needed(worst) / GIB:.2f} of {memory.free / GIB:.2f} GiB free a "
        f"device ({parts}{left_out})"
    )
    if needed(worst) > memory.free:
        check.problem(f"{text}; {advice}, or end what else uses the memory")
    elif needed(worst) > memory.free - FREE * memory.whole:
        check.warning(f"{text}, and {FREE:.0%} should stay free; {advice}")
    else:
        check.ok(text)
