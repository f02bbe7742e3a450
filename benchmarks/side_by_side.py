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
import numpy as np
import torch
import transformers

from mirg_jax.data.batching import Item
from mirg_jax.models.vision import MEAN, STD


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


def _spread(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def _circumstances() -> dict[str, Any]:
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
            f"{other}_over_{ours}": _spread(
                [b / a for a, b in zip(seconds[ours], seconds[other], strict=True)]
            )
            for other in others
        }
        facts = {key: fact() if callable(fact) else fact for key, fact in facts.items()}
        times = {way: _spread(values) for way, values in seconds.items()}
        done[name] = {"seconds": times} | ratios | facts
        told = ", ".join(f"{way} {value['median']:.3f} s" for way, value in times.items())
        told += "".join(f"; {key} {value['median']:.2f}" for key, value in ratios.items())
        print(f"{case}, {name}: {told}", flush=True)
        result = {"case": case} | _circumstances() | {"repeats": repeats, "variants": done}
        path.write_text(json.dumps(result, indent=1) + "\n")


def torch_inputs(items: list[Item], model, *, left: bool) -> dict[str, torch.Tensor]:
    """What transformers' processor would give for the same prompts and images."""
    longest = max(len(item.encoded.tokens) for item in items)
    ids = np.zeros((len(items), longest), np.int64)
    held = np.zeros_like(ids)
    for row, item in enumerate(items):
        tokens = item.encoded.tokens
        span = slice(longest - len(tokens), None) if left else slice(len(tokens))
        ids[row, span], held[row, span] = tokens, 1
    images = [image for item in items for image in item.images]
    pixels = np.concatenate([image.patches for image in images]).reshape(-1, 3, 196) / 255
    pixels = np.repeat(((pixels - MEAN[:, None]) / STD[:, None])[:, :, None], 2, axis=2)
    return {
        "input_ids": torch.tensor(ids),
        "attention_mask": torch.tensor(held),
        "pixel_values": torch.tensor(pixels.reshape(-1, 1176), dtype=torch.float32),
        "image_grid_thw": torch.tensor([[1, *image.grid] for image in images]),
        "mm_token_type_ids": torch.tensor((ids == model.config.image_token_id).astype(np.int64)),
    }
