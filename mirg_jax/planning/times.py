"""How long a recipe's programs, steps and run take, and where the time goes.

For TPUs the times follow from the compiled programs' schedules (`schedule.py`). For GPUs, where the
compiler states no times, they are a roofline by formula: a device at its peak, or its memory at its
full bandwidth, whichever takes longer; no device gets there.
"""

import dataclasses
from typing import Any

import jax

from mirg_jax.planning import operations, schedule
from mirg_jax.planning.machines import Machine
from mirg_jax.planning.programs import Program
from mirg_jax.planning.schedule import Account, Place
from mirg_jax.runs.settings import Settings
from mirg_jax.sharding.memory import bytes_per_device

SCHEDULE, ROOFLINE = "schedule", "roofline"
DEAREST = 10  # places that are listed


@dataclasses.dataclass(frozen=True)
class ProgramTime:
    """A program's predicted time.

    Attributes:
      name: the program's.
      calls: how often it runs in a step.
      account: of one call.
      operations: the model's in all calls of a step, by formula, over all devices.
      method: `schedule` or `roofline`.
    """

    name: str
    calls: int
    account: Account
    operations: float
    method: str

    @property
    def seconds(self) -> float:
        """All calls of a step."""
        return self.calls * self.account.seconds


def of_program(
    program: Program, compiled: Any, settings: Settings, machine: Machine
) -> ProgramTime:
    """Predicts a program's time.

    Args:
      program: the program.
      compiled: what the compiler made of it.
      settings: the recipe's settings.
      machine: the machine.

    Raises:
      ConfigError: if the compiler's text has no times.
    """
    counted = operations.by_program(settings).get(program.name, 0.0)
    if machine.kind.platform == "tpu":
        found, method = schedule.account(compiled.as_text(), machine, program.trips), SCHEDULE
    else:
        found, method = _roofline(program, compiled, counted, settings, machine), ROOFLINE
    return ProgramTime(program.name, program.calls, found, counted, method)


# Rooflines ----------------------------------------------------------------------------------------


def _roofline(
    program: Program, compiled: Any, counted: float, settings: Settings, machine: Machine
) -> Account:
    speed = program.mesh.devices.size * machine.kind.flops * program.calls
    if program.name == "sample":
        before = operations.prefilling(settings) if settings.grpo else 0.0
        found = _decoding(program, max(counted - before, 0.0) / speed, settings, machine)
        found.seconds += before / speed
    else:
        again = 0.0
        if program.name == "gradients" and settings.model.remat == "full":
            again = counted / (2 if settings.lora else 3)  # the forward pass
        found = Account(seconds=(counted + again) / speed)
        if not counted:  # it only reads its arguments and writes its results
            memory = compiled.memory_analysis()
            found.traffic = memory.argument_size_in_bytes + memory.output_size_in_bytes
            found.seconds = found.traffic / machine.speeds.hbm
    found.least = found.most = found.seconds
    return found


def _decoding(program: Program, compute: float, settings: Settings, machine: Machine) -> Account:
    """Returns the time of decoding, in which each step reads the weights and the cache.

    Args:
      program: the sampling program.
      compute: seconds that decoding's operations take at the peak.
      settings: the recipe's settings.
      machine: the machine.
    """
    weights = program.arguments[1]
    unread = ("visual",) if "lm_head" not in weights else ("visual", "embed_tokens")
    read = {name: part for name, part in weights.items() if name not in unread}
    steps, cache = settings.evaluation.max_tokens, program.parts.get("slots", ())
    filled = 1.0
    if grpo := settings.grpo:
        prompts = settings.sampled_prompts
        steps = grpo.max_tokens * -(-prompts // (grpo.slots or prompts))
        cache = program.parts["cache"]
        prompt, new = settings.data.shapes.lengths[-1], grpo.group * grpo.max_tokens
        filled = (prompt + new / 2) / (prompt + new)  # on average
    traffic = steps * (bytes_per_device(read) + filled * bytes_per_device(cache))
    seconds = max(compute, traffic / machine.speeds.hbm)
    return Account(seconds, traffic=traffic, decoding=seconds, decoding_traffic=traffic)


# Results ------------------------------------------------------------------------------------------


def kinds(account: Account) -> dict[str, float]:
    """Returns a program's seconds by kind; hidden ones overlap with those on the core."""
    found = {name: account.core.get(name, 0.0) for name in ("products", "kernels", "rest")}
    for name in ("collectives", "copies"):
        chosen = [m for kind, m in account.moved.items() if ("copy" in kind) == (name == "copies")]
        found[f"{name}_open"] = sum(moved.open for moved in chosen)
        found[f"{name}_hidden"] = sum(moved.hidden for moved in chosen)
    return found


def values(time: ProgramTime, settings: Settings, machine: Machine, devices: int) -> dict:
    """Returns a program's time as JSON values.

    Args:
      time: the program's time.
      settings: the recipe's settings.
      machine: the machine.
      devices: number of devices.
    """
    account = time.account
    found: dict[str, Any] = {"method": time.method, "seconds": account.seconds, "calls": time.calls}
    found["step_seconds"] = time.seconds
    if time.operations:
        found["mfu"] = _mfu(time.operations, time.seconds, machine, devices)
    if time.method == SCHEDULE:
        found |= {"least": account.least, "most": account.most, "kinds": kinds(account)}
        found["moved"] = {kind: dataclasses.asdict(m) for kind, m in account.moved.items()}
        found["dearest"] = [dataclasses.asdict(place) for place in account.places[:DEAREST]]
        found["unknown"] = account.unknown
    if account.decoding:
        share = account.decoding_traffic / account.decoding / machine.speeds.hbm
        found["decoding"] = {"seconds": account.decoding, "hbm_fraction": share}
        if sampled := operations.sampled_tokens(settings):
            rate = sampled / time.calls / account.seconds / devices
            found["decoding"]["tokens_per_second_per_device"] = rate
    return found


def _mfu(counted: float, seconds: float, machine: Machine, devices: int) -> float:
    return counted / (seconds * devices * machine.kind.flops)


def of_step(
    times: list[ProgramTime], settings: Settings, machine: Machine, devices: int
) -> dict[str, Any]:
    """Returns the time of a whole step as JSON values.

    Args:
      times: of all its programs.
      settings: the recipe's settings.
      machine: the machine.
      devices: number of devices.
    """
    seconds = sum(time.seconds for time in times)
    counted = sum(time.operations for time in times)
    found: dict[str, Any] = {
        "method": times[0].method,
        "seconds": seconds,
        "programs": {time.name: time.seconds for time in times},
        "mfu": _mfu(counted, seconds, machine, devices),
        "tokens_per_second_per_device": operations.tokens(settings) / seconds / devices,
    }
    if times[0].method == SCHEDULE:
        found["least"] = sum(time.calls * time.account.least for time in times)
        found["most"] = sum(time.calls * time.account.most for time in times)
        parts = [jax.tree.map(lambda s, n=time.calls: s * n, kinds(time.account)) for time in times]
        found["kinds"] = {kind: sum(part[kind] for part in parts) for kind in parts[0]}
        found["dearest"] = [
            {"program": name} | dataclasses.asdict(place) for name, place in _dearest(times)
        ]
    return found


def _dearest(times: list[ProgramTime]) -> list[tuple[str, Place]]:
    """Returns the places of a step that take longest, each with its program's name."""
    found = []
    for time in times:
        for place in time.account.places[:DEAREST]:
            more = {
                name: time.calls * getattr(place, name) for name in ("seconds", "flops", "times")
            }
            found.append((time.name, dataclasses.replace(place, **more)))
    return sorted(found, key=lambda pair: -pair[1].seconds)[:DEAREST]


def of_run(step: dict, steps: int, chips: int, price: float | None) -> dict[str, float]:
    """Returns what a whole run takes: its hours, and with a price its dollars.

    Args:
      step: from `of_step`.
      steps: number of steps.
      chips: number of chips or GPUs.
      price: dollars per chip and hour.
    """
    hours = steps * step["seconds"] / 3600
    found = {"steps": steps, "hours": hours}
    return found if price is None else found | {"price": price, "dollars": price * hours * chips}


# As text ------------------------------------------------------------------------------------------


def program_lines(found: dict) -> list[str]:
    """Returns lines of text about a program's time.

    Args:
      found: from `values`.
    """
    calls = f" × {found['calls']} a step" if found["calls"] > 1 else ""
    mfu = f", MFU {found['mfu']:.0%}" if "mfu" in found else ""
    lines = [f"{_seconds(found)}{calls}{mfu}{_shares(found)}"]
    if decoding := found.get("decoding"):
        rate = decoding.get("tokens_per_second_per_device")
        rate = f", {rate:,.0f} tokens/s a device" if rate else ""
        lines.append(
            f"decoding {_number(decoding['seconds'])} s at {decoding['hbm_fraction']:.0%} of the "
            f"memory's bandwidth{rate}"
        )
    if unknown := found.get("unknown"):
        lines.append(f"not known: {'; '.join(unknown)}")
    return lines


def step_lines(found: dict, peak: float) -> list[str]:
    """Returns lines of text about a step's time, with the places that take longest.

    Args:
      found: from `of_step`.
      peak: a device's operations per second.
    """
    rate = found["tokens_per_second_per_device"]
    lines = [
        f"a step: {_seconds(found)}, MFU {found['mfu']:.0%}, {rate:,.0f} tokens/s a device"
        f"{_shares(found)}"
    ]
    for place in found.get("dearest", ()):
        share = place["seconds"] / found["seconds"]
        of_peak = ""
        if place["flops"]:
            of_peak = f", {place['flops'] / place['seconds'] / peak:.0%} of the peak"
        lines.append(
            f"  {place['seconds']:8.3f} s {share:4.0%}  {place['program']}: {place['kind']}"
            f"{of_peak}, {place['source']}"
        )
    return lines


def run_line(found: dict, method: str) -> str:
    """Returns a line of text about a run.

    Args:
      found: from `of_run`.
      method: of its steps' time, `schedule` or `roofline`.
    """
    cost = ""
    if "dollars" in found:
        cost = f", {_number(found['dollars'])} dollars at {found['price']:g} a chip and hour"
    least = "at least " if method == ROOFLINE else ""
    return (
        f"a run of {found['steps']} steps: {least}{_number(found['hours'])} hours{cost}; without "
        "starting, reading data, evaluation and checkpoints"
    )


def _number(seconds: float) -> str:
    return f"{seconds:,.0f}" if seconds >= 100 else f"{seconds:.3g}"


def _seconds(found: dict) -> str:
    seconds, *limits = (
        _number(found[name]) for name in ("seconds", "least", "most") if name in found
    )
    if found["method"] == ROOFLINE:
        return f"at least {seconds} s by a roofline"
    return f"{seconds} s ({' to '.join(limits)})"


def _shares(found: dict) -> str:
    if "kinds" not in found:
        return ""
    # A program's kinds are of one call, as its seconds are.
    spent, whole = found["kinds"], found["seconds"] or 1.0
    core = ("products", "kernels", "rest")
    told = [f"{name} {spent[name] / whole:.0%}" for name in core if spent[name]]
    for name in ("collectives", "copies"):
        opened, hidden = spent[f"{name}_open"], spent[f"{name}_hidden"]
        if opened + hidden >= 0.001 * whole:
            told.append(f"{name} {opened / whole:.0%} open ({_number(hidden)} s hidden)")
    return f"; {', '.join(told)}"
