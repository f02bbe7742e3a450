"""Timing of several implementations of the same work, interleaved so that drift affects all."""

import collections
import contextlib
import json
import os
import pathlib
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import jax
import torch
import transformers

from mirg_jax.runs import chips

Work = dict[str, float]  # floating-point operations of each implementation, by formula


class Phases:
    """Seconds of the phases of each way, measured by the way itself while it is timed."""

    def __init__(self, counted: dict[str, Work]):
        """`counted`: the work of each phase."""
        self.counted = counted
        self._seconds = {phase: collections.defaultdict(list) for phase in counted}

    @contextlib.contextmanager
    def __call__(self, phase: str, way: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self._seconds[phase][way].append(time.perf_counter() - start)

    def seconds(self, phase: str, repeats: int) -> dict[str, list[float]]:
        """Of the timed runs alone."""
        return {way: values[-repeats:] for way, values in self._seconds[phase].items()}


class Variant(NamedTuple):
    """One comparison: ways to do the same work, ours first.

    Attributes:
      facts: to be written beside the times; one that is a function is called after the timing.
      counted: the work of each way, set beside the ratios: what would be gained if all work went
        equally fast.
      ours: how many of the ways are ours; each of the others is compared with each of them.
      units: how many images or tokens a run processes, for rates.
    """

    name: str
    ways: dict[str, Callable[[], None]]
    facts: dict[str, Any]
    counted: Work = {}
    ours: int = 1
    phases: Phases | None = None
    units: dict[str, int] = {}


def _measure(
    ways: dict[str, Callable[[], None]], repeats: int, warm_ups: int
) -> tuple[dict[str, list[float]], dict[str, float]]:
    """Seconds of each way, `repeats` times in turn after warm-ups; and of its first warm-up."""
    first = {}
    for name, way in ways.items():
        for number in range(warm_ups):
            start = time.perf_counter()
            way()
            if not number:
                first[name] = time.perf_counter() - start
    seconds = {name: [] for name in ways}
    for _ in range(repeats):
        for name, way in ways.items():
            time.sleep(0.3)  # threads of the previous implementation may still be spinning
            start = time.perf_counter()
            way()
            seconds[name].append(time.perf_counter() - start)
    return seconds, first


def spread(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def _compare(seconds: dict[str, list[float]], ours: int, counted: Work) -> dict[str, Any]:
    """Seconds of each way, and how much longer others took, run by run.

    A ratio's `counted` is by how much their work is more.
    """
    ratios = {}
    for mine in list(seconds)[:ours]:
        for other in list(seconds)[ours:]:
            pairs = zip(seconds[mine], seconds[other], strict=True)
            ratio = spread([b / a for a, b in pairs])
            if mine in counted and other in counted:
                ratio["counted"] = counted[other] / counted[mine]
            ratios[f"{other}_over_{mine}"] = ratio
    found = {"seconds": {way: spread(values) for way, values in seconds.items()}} | ratios
    if counted:
        found["counted_gflops"] = {k: v / 1e9 for k, v in counted.items()}
    if counted and (peak := peak_flops()):
        medians = {way: statistics.median(seconds[way]) for way in seconds if way in counted}
        found["mfu"] = {way: counted[way] / value / peak for way, value in medians.items()}
    return found


def peak_flops() -> float | None:
    """The devices' bfloat16 operations a second by the vendor's figures; None if not known."""
    chip = chips.find(jax.devices()[0].device_kind)
    return chip.flops * jax.device_count() if chip else None


def _summary(found: dict[str, Any]) -> str:
    told = ", ".join(f"{way} {value['median']:.3f} s" for way, value in found["seconds"].items())
    for key, value in found.items():
        if "_over_" in key:
            told += f"; {key} {value['median']:.2f}"
            if "counted" in value:
                told += f", of {value['counted']:.2f} counted"
    for way, value in found.get("mfu", {}).items():
        told += f"; {way} at {value:.1%} of the peak"
    return told


def environment() -> dict[str, Any]:
    """The command, machine and versions; call it once a case has set up its devices."""
    given = [argument for argument in sys.argv[1:] if not argument.startswith("--output_dir")]
    names = "GLIBC_TUNABLES", "XLA_FLAGS", "XLA_PYTHON_CLIENT_PREALLOCATE"
    return {
        "command": f"python scripts/benchmark.py {' '.join(given)}",
        "environment": {name: os.environ[name] for name in names if name in os.environ},
        "device": f"{jax.devices()[0].device_kind}, {jax.device_count()} JAX devices, "
        f"{torch.get_num_threads()} torch threads, {platform.machine()}",
        "versions": {
            "python": platform.python_version(),
            "jax": jax.__version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
    }


def run(
    case: str,
    variants: Iterable[Variant],
    repeats: int,
    path: pathlib.Path,
    *,
    warm_ups: int = 2,
) -> None:
    """Measures, prints a line a comparison, and writes everything as JSON."""
    done = {}
    for name, ways, facts, counted, ours, phases, units in variants:
        seconds, first = _measure(ways, repeats, warm_ups)
        done[name] = _compare(seconds, ours, counted) | {"first_seconds": first}
        print(f"{case}, {name}: {_summary(done[name])}", flush=True)
        for unit, count in units.items():
            medians = {way: value["median"] for way, value in done[name]["seconds"].items()}
            rates = {way: count / seconds for way, seconds in medians.items()}
            done[name][f"{unit}_a_second"] = rates
            told = ", ".join(f"{way} {rate:.1f}" for way, rate in rates.items())
            print(f"  {unit} a second: {told}", flush=True)
        if phases:
            parts = {
                phase: _compare(phases.seconds(phase, repeats), ours, work)
                for phase, work in phases.counted.items()
            }
            done[name]["phases"] = parts
            for phase, part in parts.items():
                print(f"  {phase}: {_summary(part)}", flush=True)
        for key, fact in facts.items():
            _write(path, case, repeats, done)  # what there is, in case a fact fails
            done[name][key] = fact() if callable(fact) else fact
        _write(path, case, repeats, done)


def write(path: pathlib.Path, found: dict[str, Any]) -> None:
    """Writes what was found as JSON, and makes the file's folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found, indent=1) + "\n")


def _write(path: pathlib.Path, case: str, repeats: int, done: dict[str, Any]) -> None:
    result = {"case": case} | environment() | {"repeats": repeats, "variants": done}
    write(path, result)
