"""For tests: runs of several processes here, and a reward that a random model can earn."""

import json
import os
import pathlib
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence

import jax.numpy as jnp
from conftest import REPOSITORY

from configs import grpo_tiny


def get_config():
    """The small GRPO recipe with the reward below: this file serves as a recipe too."""
    config = grpo_tiny.get_config()
    config.grpo.rewards = {"together:few_tokens": 1.0}
    return config


def few_tokens(answers, targets):
    """A reward that differs among a random model's completions."""
    return 1.0 / (1.0 + answers.lengths.astype(jnp.float32))


def few_tokens_but_of(completions):
    """The same over texts; it fails for a row of which only one process knows."""
    if any(each.example.columns["id"].endswith("_00003") for each in completions):
        raise LookupError("no such row")
    return [1.0 / (1 + each.tokens) for each in completions]


def recipe(kind: str, model: pathlib.Path, scenes: pathlib.Path, **changes) -> list[str]:
    """Flags of a small run of one stage."""
    config = {"sft": "configs/sft_tiny.py", "grpo": "tests/training/together.py"}[kind]
    flags = {
        "model.path": model,
        "data.image_root": scenes,
        "data.train_json": scenes / {"sft": "sft.jsonl", "grpo": "rl.json"}[kind],
        "cpu_devices": 1,
        "batch_size": 8,
        "num_steps": 2,
        "optimizer.schedule": "constant",  # so that a run can be made longer
        "optimizer.warmup_ratio": 0.0,
    }
    if kind == "sft":
        flags["rows_per_micro_batch"] = 4
    else:
        flags |= {
            "prompts_per_micro_batch": 4,
            "sampling.prompts": 8,  # rows of a call are divided into micro-batches
            "freeze": "('visual',)",  # and visual tokens joined from them
            "grpo.group": 4,
            "grpo.max_tokens": 12,
            "grpo.completion_lengths": "(12,)",
            "grpo.log_groups_every": 1,
            "grpo.log_groups": 8,
        }
    flags |= {name.replace("__", "."): value for name, value in changes.items()}
    return [f"--config={config}"] + [f"--config.{k}={v}" for k, v in flags.items()]


def environment() -> dict[str, str]:
    path = os.pathsep.join(
        [str(REPOSITORY), str(REPOSITORY / "tests"), str(pathlib.Path(__file__).parent)]
    )
    # Little is worth compiling twice where several processes do it at once.
    return os.environ | {"PYTHONPATH": path, "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}


def launch(
    script: str,
    *flags: object,
    count: int = 1,
    last: Sequence[object] = (),
    wrapper: str = "",
) -> list[subprocess.Popen]:
    """Starts a binary in `count` processes that find each other; `last` is for the last alone.

    A `wrapper` is a file beside this one that runs the binary, such as `rings`.
    """
    wrappers = [pathlib.Path(__file__).parent / f"{wrapper}.py"] if wrapper else []
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = []
    for index in range(count):
        where = {
            "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
            "JAX_NUM_PROCESSES": str(count),
            "JAX_PROCESS_ID": str(index),
        }
        own = [*flags, *last] if index == count - 1 else flags
        processes.append(
            subprocess.Popen(
                [sys.executable, *wrappers, REPOSITORY / f"scripts/{script}.py", *map(str, own)],
                env=environment() | (where if count > 1 else {}),
                cwd=REPOSITORY,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    return processes


def wait(processes: list[subprocess.Popen], happened: Callable[[], bool]) -> None:
    """Waits until something has happened, while the first process is running."""
    end = time.monotonic() + 600
    while not happened():
        assert time.monotonic() < end and processes[0].poll() is None
        time.sleep(0.1)


def finish(processes: list[subprocess.Popen], timeout: float = 900) -> list[tuple[int, str]]:
    """Waits for all; the status and stderr of each, progress bars left out."""
    ends = []
    try:
        for process in processes:
            _, said = process.communicate(timeout=timeout)
            lines = [line for line in re.split(r"[\n\r]", said) if line.strip()]
            noise = ("step/s", "s/step", "[Gloo]")
            kept = [line for line in lines if not any(word in line for word in noise)]
            ends.append((process.returncode, "\n".join(kept)))
    finally:
        for process in processes:
            process.kill()
    return ends


def run(script: str, *flags: object, count: int = 1, wrapper: str = "") -> None:
    for status, said in finish(launch(script, *flags, count=count, wrapper=wrapper)):
        assert status == 0, said


def scalars(workdir: pathlib.Path) -> list[dict]:
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").open()]
    return [{k: v for k, v in row.items() if k not in ("seconds", "speed")} for row in rows]


def groups(workdir: pathlib.Path) -> dict[tuple[int, str], list[str]]:
    """The sampled texts by step and example, in the order of nothing but their letters."""
    found = {}
    for path in workdir.glob("groups/*.jsonl"):
        for line in path.open():
            row = json.loads(line)
            texts = sorted(completion["text"] for completion in row["completions"])
            found[int(path.stem[5:]), row["id"]] = texts
    return found
