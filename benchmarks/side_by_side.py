"""Timing two ways of doing the same work in one run, alternately, so that drift hits both."""

import json
import pathlib
import platform
import statistics
import time
from collections.abc import Callable

import jax
import torch
import transformers


def measure(ways: dict[str, Callable[[], None]], repeats: int) -> dict[str, list[float]]:
    """Seconds of each way, `repeats` times in turn after one warm-up each."""
    for way in ways.values():
        way()
    seconds = {name: [] for name in ways}
    for _ in range(repeats):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def write_result(path: pathlib.Path, case: str, seconds: dict[str, list[float]], **facts) -> dict:
    """Writes and returns medians, spreads and the paired ratio of the second way to the first."""
    first, second = seconds
    ratios = sorted(b / a for a, b in zip(seconds[first], seconds[second], strict=True))
    result = {
        "case": case,
        "device": f"{jax.devices()[0].device_kind}, {jax.device_count()} JAX devices, "
        f"{torch.get_num_threads()} torch threads, {platform.machine()}",
        "versions": {
            "python": platform.python_version(),
            "jax": jax.__version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
        "seconds": {
            name: {
                "median": statistics.median(values),
                "min": min(values),
                "max": max(values),
            }
            for name, values in seconds.items()
        },
        f"{second}_over_{first}": {
            "median": statistics.median(ratios),
            "min": ratios[0],
            "max": ratios[-1],
        },
        **facts,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")
    return result
