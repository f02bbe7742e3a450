"""Will it fit? Compiles a recipe's real programs for a machine that isn't there."""

import re
from collections.abc import Callable
from typing import NamedTuple

import jax
from ml_collections import ConfigDict

from mirg_jax import sharding
from mirg_jax.errors import ConfigError
from mirg_jax.models import qwen2_vl
from mirg_jax.models.layers import REMAT
from mirg_jax.planning import flops, machines
from mirg_jax.planning.programs import Program, bytes_per_device, model_config, programs
from mirg_jax.training import setup


class Report(NamedTuple):
    """One program's bytes per device."""

    name: str
    parts: dict[str, int]  # counted from shapes and shardings; "activations" are the compiler's
    compiler: int  # the compiler's own peak of arguments, results and temporaries
    problem: str = ""  # why the compiler refused it

    @property
    def total(self) -> int:
        return sum(self.parts.values())


def measure(program: Program) -> Report:
    """Compiles a program and says where the memory goes."""
    parts = {name: bytes_per_device(tree) for name, tree in program.parts.items()}
    with jax.set_mesh(program.mesh):
        lowered = program.function.lower(*program.arguments)
    try:
        memory = lowered.compile().memory_analysis()
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
        # Some temporaries share one place; this is what its compiler holds against the memory.
        peak = memory.peak_memory_in_bytes
    # Gradients summed so far are an argument; the new ones are temporary, or the output.
    inside = parts.get("cache", 0) if program.name == "sample" else 0
    if program.name == "gradients":
        inside = parts["gradients"] // 2 if program.arguments[0] else 0
    parts["activations"] = max(peak - taken - inside, 0)
    return Report(program.name, parts, peak + bytes_per_device(program.apart))


# The share of a device's memory that a plan leaves free: for the runtime, and for fragmentation.
FREE = 0.1


def advice(config: ConfigDict, report: Report, memory: float) -> str:
    """Which change would make a program fit that doesn't."""
    adapters = "--config.lora.rank=64 --config.model.param_dtype=bfloat16"
    held = report.total - report.parts.get("activations", 0)
    if held > (1 - FREE) * memory and report.name != "sample":  # whatever is computed with it
        return "more devices" if config.lora.rank else f"more devices, or {adapters}"
    grpo_run = "grpo" in config
    rows_name = "prompts_per_micro_batch" if grpo_run else "rows_per_micro_batch"
    if report.name == "sample":
        slots = config.sampling.slots or config.sampling.prompts
        if grpo_run and slots > config.prompts_per_micro_batch:
            return f"--config.sampling.slots={slots // 2}"
        largest = model_config(config).text.num_kv_heads
        if config.sampling.tensor < largest:
            return f"--config.sampling.tensor={config.sampling.tensor * 2}"
    elif report.name == "gradients":
        if config.model.remat != "full":
            return "--config.model.remat=full"
        if config.logprob_chunk > 256:
            return "--config.logprob_chunk=256"
        if config.mesh.data == 1 and config.mesh.fsdp == -1:
            return f"--config.mesh.tensor={config.mesh.tensor * 2} with half of {rows_name}"
    if not config.lora.rank:
        return f"adapters instead: {adapters}"
    return "smaller data.shapes, or more devices"


def step_flops(config: ConfigDict) -> dict[str, float]:
    """Operations of one step of the recipe at its largest shapes, by what they are for."""
    sizes = model_config(config)
    T, S, P = (config.data.shapes[name][-1] for name in ("lengths", "slots", "patches"))
    backward = 1.0 if config.lora.rank else 2.0  # frozen matrices need no gradient
    frozen = setup.tower_is_frozen(config)
    vision_backward = 0.0 if frozen else 2.0
    images = flops.tower(sizes, S, P)
    if "grpo" not in config:
        rows = config.batch_size
        forward = flops.decoder(sizes, T, flops.causal(T), T)
        return {"update": rows * ((1 + backward) * forward + (1 + vision_backward) * images)}
    settings = config.grpo
    new = settings.group * settings.max_tokens
    pairs = settings.group * flops.causal(settings.max_tokens) + new * T
    prompt = flops.decoder(sizes, T, flops.causal(T), 0)
    forward = prompt + flops.decoder(sizes, new, pairs, new)
    again = 0.0 if frozen else images  # a frozen tower's visual tokens are kept for the whole step
    reference = forward + again if settings.beta else 0.0
    update = (1 + backward) * forward + (1 + vision_backward) * again
    return {
        "rollout": config.batch_size * (forward + images),
        "reference": config.batch_size * reference,
        "update": config.batch_size * settings.updates * update,
    }


def fits(report: Report, memory: float) -> bool:
    """Whether a program leaves enough of a device's `memory` (bytes) free."""
    return not report.problem and max(report.total, report.compiler) <= (1 - FREE) * memory


def choose_attention(
    config: ConfigDict, machine: machines.Machine, say: Callable[[str], object]
) -> None:
    """Changes `config` to attention that can be compiled here."""
    if machine.kind.platform == "cuda" and config.model.attention == "auto":
        config.model.attention = "xla"
        say("planned with plain attention, as cuDNN's can't be compiled without its card")


def plan(config: ConfigDict, machine: machines.Machine, say: Callable[[str], object]) -> dict:
    """Compiles all programs of a recipe's step; the plan as JSON values, `say`ing it on the way."""
    devices = machine.devices()
    choose_attention(config, machine, say)
    sizes, memory = model_config(config), machine.kind.memory * machines.GIB
    _, params = qwen2_vl.abstract(sizes)
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    operations = step_flops(config) if "rows_per_micro_batch" in config or "grpo" in config else {}
    fastest = sum(operations.values()) / (len(devices) * machine.kind.flops)
    say(
        f"{config.model.path}: {count / 1e9:.2f} billion parameters on {len(devices)} × "
        f"{machine.kind.memory:g} GiB"
    )
    if operations:
        told = ", ".join(f"{name} {value:.3g}" for name, value in operations.items())
        say(f"operations a step: {told}; {fastest:.1f} s at {machine.kind.flops:.3g}/s a device")
    found = {
        "machine": machine.name,
        "memory_per_device": int(memory),
        "parameters": count,
        "operations": operations,
        "jax": jax.__version__,
        "programs": [],
    }
    for program in programs(config, devices):
        report = measure(program)
        say(_line(report, memory))
        row = {
            "name": report.name,
            "parts": report.parts,
            "total": report.total,
            "compiler": report.compiler,
            "free_fraction": 1 - max(report.total, report.compiler) / memory,
            "fits": fits(report, memory),
        }
        if not row["fits"]:
            row["problem"] = report.problem or (
                f"needs {max(report.total, report.compiler) / machines.GIB:.1f} of "
                f"{machine.kind.memory:g} GiB, and {FREE:.0%} should stay free"
            )
            row["advice"] = advice(config, report, memory)
        found["programs"].append(row)
    return found


def _line(report: Report, memory: float) -> str:
    if report.problem:
        return f"{report.name:10s} does not fit: {report.problem}"
    parts = ", ".join(f"{n} {v / machines.GIB:.2f}" for n, v in report.parts.items() if v)
    peak = max(report.total, report.compiler)
    return (
        f"{report.name:10s} {peak / machines.GIB:6.2f} GiB, {1 - peak / memory:4.0%} free: {parts}"
        f" (the compiler's count: {report.compiler / machines.GIB:.2f})"
    )


def require_fit(found: dict) -> None:
    """Raises ConfigError, in a line, for a plan that doesn't fit."""
    for row in found["programs"]:
        if not row["fits"]:
            raise ConfigError(
                f"does not fit {found['machine']}: {row['name']} {row['problem']}; "
                f"try {row['advice']}"
            )


def search(config: ConfigDict, machine: machines.Machine, say: Callable[[str], object]) -> dict:
    """Plans with the remat that recomputes least, and then the largest micro-batch, that fit."""
    memory = machine.kind.memory * machines.GIB
    name = "prompts_per_micro_batch" if "grpo" in config else "rows_per_micro_batch"
    smallest = sharding.row_parts(sharding.make_mesh(**config.mesh, devices=machine.devices()))

    def possible(remat: str, rows: int) -> bool:
        config.model.remat, config[name] = remat, rows
        gradients = [p for p in programs(config, machine.devices()) if p.name == "gradients"]
        report = measure(gradients[0])
        say(f"model.remat={remat}, {name}={rows}: {_line(report, memory)}")
        return fits(report, memory)

    for remat in REMAT:
        rows = smallest
        if not possible(remat, rows):
            continue
        while 2 * rows <= config.batch_size and possible(remat, 2 * rows):
            rows *= 2
        config.model.remat, config[name] = remat, rows
        say(f"best: --config.model.remat={remat} --config.{name}={rows}")
        break
    return plan(config, machine, say)
