"""Timing ways of doing the same work in one run, in turn, so that drift hits all of them."""

import json
import os
import pathlib
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import torch
import transformers


class Variant(NamedTuple):
    """One comparison: ways to do the same work, ours first, and what is to be known beside it.

    A fact that is a function is asked after the timing.
    """

    name: str
    ways: dict[str, Callable[[], None]]
    facts: dict[str, Any]


def _measure(ways: dict[str, Callable[[], None]], repeats: int) -> dict[str, list[float]]:
    """Seconds of each way, `repeats` times in turn after two warm-ups each."""
    for way in ways.values():
        way()
        way()
    seconds = {name: [] for name in ways}
    for _ in range(repeats):
        for name, way in ways.items():
            time.sleep(0.3)  # the other way's threads may still be spinning for work
            start = time.perf_counter()
            way()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def spread(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def circumstances() -> dict[str, Any]:
    """Asked only once a case has set up its devices."""
    return {
        "command": f"python scripts/benchmark.py {' '.join(sys.argv[1:])}",
        "environment": {
            name: os.environ[name] for name in ("GLIBC_TUNABLES", "XLA_FLAGS") if name in os.environ
        },
        "device": f"{jax.devices()[0].device_kind}, {jax.device_count()} JAX devices, "
        f"{torch.get_num_threads()} torch threads, {platform.machine()}",
        "versions": {
            "python": platform.python_version(),
            "jax": jax.__version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
    }


def run(case: str, variants: Iterable[Variant], repeats: int, path: pathlib.Path) -> None:
    """Measures, prints a line a comparison, and writes everything as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    done = {}
    for name, ways, facts in variants:
        seconds = _measure(ways, repeats)
        ours, *others = seconds
        ratios = {
            f"{other}_over_{ours}": spread(
                [b / a for a, b in zip(seconds[ours], seconds[other], strict=True)]
            )
            for other in others
        }
        facts = {key: fact() if callable(fact) else fact for key, fact in facts.items()}
        times = {way: spread(values) for way, values in seconds.items()}
        done[name] = {"seconds": times} | ratios | facts
        told = ", ".join(f"{way} {value['median']:.3f} s" for way, value in times.items())
        told += "".join(f"; {key} {value['median']:.2f}" for key, value in ratios.items())
        print(f"{case}, {name}: {told}", flush=True)
        result = {"case": case} | circumstances() | {"repeats": repeats, "variants": done}
        path.write_text(json.dumps(result, indent=1) + "\n")
