"""Checks whether a recipe fits a machine's memory, by compiling its programs for that machine."""

import math
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import jax

from mirg_jax import sharding
from mirg_jax.errors import ConfigError
from mirg_jax.models import qwen2_vl
from mirg_jax.models.layers import REMAT
from mirg_jax.planning import machines, times
from mirg_jax.planning.operations import by_phase
from mirg_jax.planning.programs import Program, programs
from mirg_jax.planning.shapes import model_config
from mirg_jax.runs.devices import training_mesh
from mirg_jax.runs.settings import Settings
from mirg_jax.sharding.memory import bytes_per_device


class Report(NamedTuple):
    """The memory of one program in bytes per device."""

    name: str
    parts: dict[str, int]  # from shapes and shardings; "activations" and "code" from the compiler
    compiler: int  # the compiler's peak of arguments, results, temporaries and code
    problem: str = ""  # the reason, if the compiler ran out of memory
    compiled: Any = None  # what it made of the program, unless it ran out of memory

    @property
    def total(self) -> int:
        """Sum of all parts."""
        return sum(self.parts.values())


def measure(program: Program) -> Report:
    """Compiles a program and reports its memory by part."""
    parts = {name: bytes_per_device(tree) for name, tree in program.parts.items()}
    with jax.set_mesh(program.mesh):
        lowered = program.function.lower(*program.arguments)
    try:
        compiled = lowered.compile()
        memory = compiled.memory_analysis()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        used = re.search(r"[Uu]sed ([\d.]+)G of ([\d.]+)G", str(error))
        problem = f"needs {used[1]} of {used[2]} GiB" if used else "runs out of memory"
        return Report(program.name, parts, 0, problem)
    made = memory.output_size_in_bytes - memory.alias_size_in_bytes
    taken = memory.argument_size_in_bytes + made
    peak = taken + memory.temp_size_in_bytes
    if program.mesh.devices.flat[0].platform == "tpu":
        # Temporaries may share memory; the compiler compares this peak with the available memory.
        peak = memory.peak_memory_in_bytes
    # The gradient sum so far is an argument; new gradients are a temporary, or the output.
    inside = parts.get("cache", 0) if program.name == "sample" else 0
    if program.name == "gradients":
        inside = parts["gradients"] // 2 if program.arguments[0] else 0
    parts["activations"] = max(peak - taken - inside, 0)
    parts["code"] = memory.generated_code_size_in_bytes
    beside = bytes_per_device(program.apart) + parts["code"]
    return Report(program.name, parts, peak + beside, compiled=compiled)


# Fraction of a device's memory that a plan must leave free, for the runtime, for programs that only
# move rows, and for fragmentation.
FREE = 0.08

_ON_HOST = "--config.optimizer.on_host=True"


def advice(settings: Settings, report: Report, memory: float) -> str:
    """Suggests a change that would make a program fit.

    Args:
      settings: the recipe's settings.
      report: the program that doesn't fit.
      memory: memory of a device in bytes.
    """
    adapters = "--config.lora.rank=64 --config.model.param_dtype=bfloat16"
    held = report.total - report.parts.get("activations", 0)
    sampling = report.name in ("weights", "tower", "sample")
    on_host = "" if settings.lora or settings.optimizer.on_host else _ON_HOST
    if held > (1 - FREE) * memory and not sampling:  # even without activations
        return "more devices" if settings.lora else f"more devices, or {adapters}"
    devices, grpo = settings.devices, settings.grpo
    if sampling:
        slots = grpo and (grpo.slots or settings.sampled_prompts)
        if report.name == "sample" and grpo and slots > settings.micro_batch:
            return f"--config.sampling.slots={slots // 2}"
        largest = model_config(settings.model.path).text.num_kv_heads
        if devices.sampling_tensor < largest:
            return f"--config.sampling.tensor={devices.sampling_tensor * 2}"
        if on_host:
            return on_host
    elif report.name in ("reference", "policy", "gradients"):
        if report.name == "gradients" and settings.model.remat != "full":
            return "--config.model.remat=full"
        if settings.logprob_chunk > 256:
            return "--config.logprob_chunk=256"
        if on_host:
            return on_host
        if devices.data == 1 and devices.fsdp == -1:
            half = f"half of {settings.micro_batch_name}"
            return f"--config.mesh.tensor={devices.tensor * 2} with {half}"
    if not settings.lora:
        return f"adapters instead: {adapters}"
    return "smaller data.shapes, or more devices"


def fits(report: Report, memory: float) -> bool:
    """Returns whether a program leaves enough of a device's `memory` (in bytes) free."""
    return not report.problem and max(report.total, report.compiler) <= (1 - FREE) * memory


def with_attention_of(
    settings: Settings, machine: machines.Machine, say: Callable[[str], object]
) -> Settings:
    """Replaces an attention implementation that can't be compiled on this computer."""
    if machine.kind.platform != "cuda" or settings.model.attention != "auto":
        return settings
    say("planned with XLA's attention, since cuDNN's can't be compiled without a GPU")
    return replace(settings, model=replace(settings.model, attention="xla"))


def plan(
    settings: Settings,
    machine: machines.Machine,
    say: Callable[[str], object],
    price: float | None = None,
) -> dict:
    """Compiles all programs of a recipe's step.

    Args:
      settings: the recipe's settings.
      machine: the machine.
      say: called with each result, a line of text, as soon as it is known.
      price: dollars per chip (or GPU) and hour, if the run's are asked for.

    Returns:
      The plan as JSON values.
    """
    devices = machine.devices()
    settings = with_attention_of(settings, machine, say)
    sizes, memory = model_config(settings.model.path), machine.kind.memory * machines.GIB
    _, params = qwen2_vl.abstract(sizes)
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    operations = {} if settings.stage == "inference" else by_phase(settings)
    fastest = sum(operations.values()) / (len(devices) * machine.kind.flops)
    say(
        f"{settings.model.path}: {count / 1e9:.2f} billion parameters on {len(devices)} × "
        f"{machine.kind.memory:g} GiB"
    )
    if operations:
        listed = ", ".join(f"{name} {value:.3g}" for name, value in operations.items())
        say(
            f"operations per step: {listed}; at least {fastest:.1f} s at "
            f"{machine.kind.flops:.3g} operations per second and device"
        )
    found = {
        "machine": machine.name,
        "memory_per_device": int(memory),
        "parameters": count,
        "operations": operations,
        "jax": jax.__version__,
        "programs": [],
    }
    reports, timed = [], []
    for program in programs(settings, devices):
        report = measure(program)
        say(_line(report, memory))
        time = report.compiled and _time(program, report.compiled, settings, machine, say)
        reports.append(report._replace(compiled=None))
        timed.append(time)
    reports = with_all_code(reports)
    code = sum(reports[0].parts.get(part, 0) for part in ("code", "other code")) / machines.GIB
    say(f"code of all programs, which stays on a device: {code:.2f} GiB")
    for report, time in zip(reports, timed, strict=True):
        row = _row(report, settings, machine)
        if time:
            row["time"] = times.values(time, settings, machine, len(devices))
        found["programs"].append(row)
    if operations and all(timed):
        found |= _whole(timed, settings, machine, len(devices), price, say)
    return found


def with_all_code(reports: list[Report]) -> list[Report]:
    """Adds to each program's memory the code of the others, which stays on the devices too."""
    whole = sum(report.parts.get("code", 0) for report in reports)
    found = []
    for report in reports:
        others = whole - report.parts.get("code", 0)
        parts = report.parts | {"other code": others}
        found.append(report._replace(parts=parts, compiler=report.compiler + others))
    return found


def _row(report: Report, settings: Settings, machine: machines.Machine) -> dict:
    """Returns a program's memory as JSON values."""
    memory = machine.kind.memory * machines.GIB
    peak = max(report.total, report.compiler)
    row = {
        "name": report.name,
        "parts": report.parts,
        "total": report.total,
        "compiler": report.compiler,
        "free_fraction": 1 - peak / memory,
        "fits": fits(report, memory),
    }
    if not row["fits"]:
        row["problem"] = report.problem or (
            f"needs {peak / machines.GIB:.1f} of {machine.kind.memory:g} GiB, and {FREE:.0%} "
            "should stay free"
        )
        row["advice"] = advice(settings, report, memory)
    return row


def _time(
    program: Program,
    compiled: Any,
    settings: Settings,
    machine: machines.Machine,
    say: Callable[[str], object],
) -> times.ProgramTime | None:
    """Predicts a program's time and says it; None if the compiler's text doesn't allow it."""
    try:
        time = times.of_program(program, compiled, settings, machine)
    except ConfigError as error:  # a newer compiler's text
        say(f"{'':10s} {error}")
        return None
    found = times.values(time, settings, machine, program.mesh.devices.size)
    for line in times.program_lines(found):
        say(f"{'':10s} {line}")
    return time


def _whole(
    timed: list[times.ProgramTime],
    settings: Settings,
    machine: machines.Machine,
    devices: int,
    price: float | None,
    say: Callable[[str], object],
) -> dict:
    """Returns and says the time of a step and of the run."""
    step = times.of_step(timed, settings, machine, devices)
    run = times.of_run(step, settings.num_steps, machine.chips, price)
    for line in times.step_lines(step, machine.kind.flops):
        say(line)
    say(times.run_line(run, step["method"]))
    return {"step": step, "run": run}


def _line(report: Report, memory: float) -> str:
    if report.problem:
        return f"{report.name:10s} does not fit: {report.problem}"
    parts = ", ".join(f"{n} {v / machines.GIB:.2f}" for n, v in report.parts.items() if v)
    peak = max(report.total, report.compiler)
    return (
        f"{report.name:10s} {peak / machines.GIB:6.2f} GiB, {1 - peak / memory:4.0%} free: {parts}"
        f" (compiler: {report.compiler / machines.GIB:.2f})"
    )


def require_fit(found: dict) -> None:
    """Checks that all programs of a plan fit.

    Raises:
      ConfigError: if one doesn't; the message suggests a change.
    """
    for row in found["programs"]:
        if not row["fits"]:
            raise ConfigError(
                f"does not fit {found['machine']}: {row['name']} {row['problem']}; "
                f"try {row['advice']}"
            )


def search(
    settings: Settings,
    machine: machines.Machine,
    say: Callable[[str], object],
    price: float | None = None,
) -> tuple[dict, Settings]:
    """Finds the `remat` and the micro-batch that fit and take the least time.

    Where no schedule says how long a program takes (on GPUs), they are the `remat` that recomputes
    least, and then the largest micro-batch.

    Args:
      settings: the recipe's settings.
      machine: the machine.
      say: called with each result, a line of text, as soon as it is known.
      price: dollars per chip (or GPU) and hour, if the run's are asked for.

    Returns:
      The plan, and the settings found.
    """
    memory = machine.kind.memory * machines.GIB
    name = settings.micro_batch_name
    smallest = sharding.row_parts(training_mesh(settings.devices, machine.devices()))

    def changed(remat: str, rows: int) -> Settings:
        model = replace(settings.model, remat=remat)
        return replace(settings, micro_batch=rows, model=model)

    def seconds(remat: str, rows: int) -> float | None:
        """All gradients of a step, infinite if no schedule says; None if they don't fit."""
        tried = f"model.remat={remat}, {name}={rows}"
        try:
            found = programs(changed(remat, rows), machine.devices())
            program = next(program for program in found if program.name == "gradients")
        except ConfigError as error:  # a run would refuse it too
            say(f"{tried}: {error}")
            return None
        report = measure(program)
        say(f"{tried}: {_line(report, memory)}")
        if not fits(report, memory):
            return None
        time = report.compiled and _time(
            program, report.compiled, changed(remat, rows), machine, say
        )
        return time.seconds if time and time.method == times.SCHEDULE else math.inf

    best = None
    for remat in REMAT:
        rows = smallest
        while rows <= settings.batch_size and (taken := seconds(remat, rows)) is not None:
            if best is None or taken < best[0] or taken == best[0] == math.inf:
                best = taken, changed(remat, rows)
            rows *= 2
        if best and best[0] == math.inf:
            break
    if best:
        settings = best[1]
        say(f"best: --config.model.remat={settings.model.remat} "
            f"--config.{name}={settings.micro_batch}")  # fmt: skip
    return plan(settings, machine, say, price), settings
