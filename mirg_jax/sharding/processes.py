"""Many processes as one run: how they start, what they tell each other, signals to stop."""

import json
import os
import signal
import threading
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from mirg_jax.errors import ConfigError

_MESSAGE = 2048  # bytes that a process tells in one round; longer messages take a second


def start() -> None:
    """Joins the other processes where the environment names any; call before devices are touched.

    Three environments do: `JAX_COORDINATOR_ADDRESS`, `JAX_NUM_PROCESSES` and `JAX_PROCESS_ID`; a
    SLURM step of several tasks (`srun`); the hosts of a TPU slice. Once joined, it does nothing.

    Raises:
      ConfigError: where the environment is incomplete, or the others are not to be reached.
    """
    if jax.distributed.is_initialized() or (where := _environment(os.environ)) is None:
        return
    try:
        jax.distributed.initialize(**where)
    except (RuntimeError, ValueError, OSError) as error:
        if where.get("cluster_detection_method") == "gcetpu":
            return  # no metadata about a slice: a machine by itself
        reason = str(error).splitlines()[0]
        raise ConfigError(
            f"the processes of this run did not find each other ({reason}); start all of them, "
            "and let each reach the coordinator's address and port"
        ) from None
    # JAX keeps SIGTERM for a service of its own; `Signals` is ours.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _environment(env: os._Environ | dict[str, str]) -> dict[str, Any] | None:
    """What `jax.distributed.initialize` needs to be told; None for a run of one process."""
    own = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
    if given := [name for name in own if name in env]:
        if missing := [name for name in own if name not in env]:
            raise ConfigError(
                f"{given[0]} is set, but not {missing[0]}; set all of {', '.join(own)}"
            )
        address, count, index = (env[name] for name in own)
        if not (count.isdigit() and index.isdigit() and int(index) < int(count)):
            raise ConfigError(
                f"{own[1]}={count} and {own[2]}={index}: give a number from 0 below it"
            )
        return {
            "coordinator_address": address,
            "num_processes": int(count),
            "process_id": int(index),
            "cluster_detection_method": "deactivate",
        }
    if int(env.get("SLURM_STEP_NUM_TASKS", 1)) > 1 and "SLURM_PROCID" in env:
        # JAX gives each task of a node the one device of its number. A task alone on its node
        # should have them all.
        where = {"cluster_detection_method": "slurm"}
        alone = env["SLURM_STEP_NUM_TASKS"] == env.get("SLURM_STEP_NUM_NODES")
        if alone and "JAX_LOCAL_DEVICE_IDS" not in env:
            where["local_device_ids"] = list(range(int(env.get("SLURM_GPUS_ON_NODE") or 1)))
        return where
    hosts = env.get("TPU_PROCESS_ADDRESSES") or env.get("TPU_WORKER_HOSTNAMES") or ""
    if "," in hosts and env.get("JAX_PLATFORMS") != "cpu":
        return {"cluster_detection_method": "gketpu"}
    # JAX sets the first on a machine with TPU chips, the second on any other.
    if "TPU_ML_PLATFORM" in env and "TPU_SKIP_MDS_QUERY" not in env and not hosts:
        return {"cluster_detection_method": "gcetpu"}
    return None


def is_first() -> bool:
    """Whether this process writes what a run writes once: metrics, logs, the model's folder."""
    return jax.process_index() == 0


def gather(value: Any) -> list[Any]:
    """What each process gives, at every process; all must call it. JSON values only."""
    if jax.process_count() == 1:
        return [value]
    data = json.dumps(value).encode()
    size = np.frombuffer(np.int64(len(data)).tobytes(), np.uint8)

    def exchange(data: bytes, room: int) -> np.ndarray:
        padded = np.frombuffer(data.ljust(room, b"\0"), np.uint8)
        return multihost_utils.process_allgather(np.concatenate([size, padded]))

    rows = exchange(data[:_MESSAGE], _MESSAGE)
    sizes = [int(np.frombuffer(row[:8].tobytes(), np.int64)[0]) for row in rows]
    if max(sizes) > _MESSAGE:
        room = -(-max(sizes) // _MESSAGE) * _MESSAGE  # few sizes, so few compilations
        rows = exchange(data, room)
    return [json.loads(row[8 : 8 + n].tobytes()) for row, n in zip(rows, sizes, strict=True)]


class Signals:
    """While entered, the first SIGTERM or SIGINT is only noted; a second one acts as ever."""

    def __init__(self):
        self.received = 0  # the signal's number
        self._before = {}

    def __enter__(self):
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._note)
        return self

    def _note(self, number, _frame):
        self.received = number
        self._restore()

    def _restore(self):
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def __exit__(self, *_):
        self._restore()
