"""Runs with several processes: initialisation, exchange of values, and signals to stop."""

import contextlib
import functools
import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from mirg_jax.errors import ConfigError, UserError
from mirg_jax.files.locks import lock_of
from mirg_jax.files.places import Place
from mirg_jax.files.streams import say

_STOPS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)  # the last: the terminal has gone
_REPEATED = 1.0  # seconds; who stops a whole group of processes may send a signal twice
_MEETING = 300  # seconds in which all processes must have started
_MESSAGE = 2048  # bytes per process in the first exchange; longer messages need a second one


def start() -> None:
    """Initialises JAX's distributed runtime if the environment describes several processes.

    Three kinds of environment do: the variables `JAX_COORDINATOR_ADDRESS`, `JAX_NUM_PROCESSES` and
    `JAX_PROCESS_ID`; a SLURM step of several tasks (`srun`); the hosts of a TPU slice. Call this
    before any device is used; further calls do nothing.

    Raises:
      ConfigError: if the environment is incomplete, or the other processes can't be reached.
    """
    if jax.distributed.is_initialized() or (where := _environment(os.environ)) is None:
        return
    if where.get("cluster_detection_method") == "gcetpu" and not _in_a_slice():
        return
    try:
        # Where JAX asks a TPU's metadata for the address, it may wait as long for that before.
        with _meeting(_MEETING * (1 + ("tpu" in where.get("cluster_detection_method", "")))):
            jax.distributed.initialize(**where, initialization_timeout=_MEETING)
    except (RuntimeError, ValueError, OSError) as error:
        raise ConfigError(_unmet(str(error).splitlines()[0])) from None
    # JAX installs a SIGTERM handler for its preemption service; we use `Signals` instead.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


@contextlib.contextmanager
def _meeting(seconds: float) -> Iterator[None]:
    """Says if the others aren't there soon, and ends the process before JAX aborts it."""

    def give_up():
        say(_unmet("they did not all start in time"))
        os._exit(2)

    waiting = "waiting for the other processes of this run to start"
    told = threading.Timer(seconds / 15, say, [waiting])
    ended = threading.Timer(0.95 * seconds, give_up)
    for timer in (told, ended):
        timer.daemon = True
        timer.start()
    try:
        yield
    finally:
        for timer in (told, ended):
            timer.cancel()


def _unmet(reason: str) -> str:
    return (
        f"the processes of this run did not find each other ({reason}); start all of them, "
        "and make sure that each can reach the coordinator's address and port"
    )


def _environment(env: os._Environ | dict[str, str]) -> dict[str, Any] | None:
    """Returns the arguments of `jax.distributed.initialize`; None for a run with one process."""
    own = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
    if given := [name for name in own if name in env]:
        if missing := [name for name in own if name not in env]:
            raise ConfigError(
                f"{given[0]} is set, but not {missing[0]}; set all of {', '.join(own)}"
            )
        address, count, index = (env[name] for name in own)
        if not address.rpartition(":")[2].isdigit():
            raise ConfigError(
                f"{own[0]}={address!r}: give the first process's host and a port, as HOST:PORT"
            )
        if not (count.isdigit() and index.isdigit() and int(index) < int(count)):
            raise ConfigError(
                f"{own[1]}={count} and {own[2]}={index}: both must be integers, and the process ID "
                "must be at least 0 and below the number of processes"
            )
        return {
            "coordinator_address": address,
            "num_processes": int(count),
            "process_id": int(index),
            "cluster_detection_method": "deactivate",
        }
    if int(env.get("SLURM_STEP_NUM_TASKS", 1)) > 1 and "SLURM_PROCID" in env:
        # By default JAX gives each task on a node one device, by the task's local index. A task
        # that is alone on its node should have all of the node's devices.
        where: dict[str, Any] = {"cluster_detection_method": "slurm"}
        alone = env["SLURM_STEP_NUM_TASKS"] == env.get("SLURM_STEP_NUM_NODES")
        if alone and "JAX_LOCAL_DEVICE_IDS" not in env:
            where["local_device_ids"] = list(range(int(env.get("SLURM_GPUS_ON_NODE") or 1)))
        return where
    hosts = env.get("TPU_PROCESS_ADDRESSES") or env.get("TPU_WORKER_HOSTNAMES") or ""
    if "," in hosts and env.get("JAX_PLATFORMS") != "cpu":
        return {"cluster_detection_method": "gketpu"}
    # JAX sets TPU_ML_PLATFORM on machines with TPU chips, TPU_SKIP_MDS_QUERY on all others.
    if "TPU_ML_PLATFORM" in env and "TPU_SKIP_MDS_QUERY" not in env and not hosts:
        return {"cluster_detection_method": "gcetpu"}
    return None


@functools.cache
def _in_a_slice() -> bool:
    """Returns whether Google's metadata know of a TPU slice that this host belongs to.

    Colab's and Kaggle's hosts have TPU chips and no such metadata; JAX would wait for minutes.
    """
    try:
        from jax._src.clusters.cloud_tpu_cluster import GceTpuCluster

        return GceTpuCluster.is_env_present()
    except (ImportError, RuntimeError, OSError):
        return False


def is_first() -> bool:
    """Returns whether this is the process that writes metrics, logs and the model folder."""
    return jax.process_index() == 0


def gather(value: Any) -> list[Any]:
    """Gathers a value from every process on every process; all processes must call it.

    Args:
      value: anything that JSON can represent.

    Returns:
      The values, by process index.
    """
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
        room = -(-max(sizes) // _MESSAGE) * _MESSAGE  # multiples of _MESSAGE: few compilations
        rows = exchange(data, room)
    return [json.loads(row[8 : 8 + n].tobytes()) for row, n in zip(rows, sizes, strict=True)]


@contextlib.contextmanager
def locked(path: Place) -> Iterator[None]:
    """Keeps a folder to this run while the `with` block runs; all processes must enter it.

    The first process holds the lock, for all of them.

    Args:
      path: the lock's file.

    Raises:
      ConfigError: in all processes, if another run holds the lock.
    """
    lock, problem = lock_of(path), ""
    if is_first():
        try:
            lock.acquire()
        except UserError as error:
            problem = str(error)
    try:
        if problem := gather(problem)[0]:
            raise ConfigError(problem)
        yield
    finally:
        lock.release()


class Signals:
    """Context manager that records the first SIGTERM, SIGINT or SIGHUP instead of acting on it.

    The first process says so at once, in a line. The previous handlers are then restored, so that a
    second signal has its usual effect; while the devices keep Python from them, it ends the process
    at once. It can be entered several times; once a signal is recorded, it records no other.

    Attributes:
      received: number of the recorded signal; 0: none.
    """

    def __init__(self, reaction: str, *, leave: bool = False):
        """
        Args:
          reaction: what the process does about the signal, for the line.
          leave: whether the signal ends the process, by a SystemExit wherever it is at work.
        """
        self.received = 0
        self._reaction, self._leave = reaction, leave
        self._before = {}
        self._teller: _Teller | None = None

    def __enter__(self):
        if not self.received and threading.current_thread() is threading.main_thread():
            for number in _STOPS:
                if signal.getsignal(number) is signal.SIG_IGN and number == signal.SIGHUP:
                    continue  # under nohup
                self._before[number] = signal.signal(number, self._note)
            self._teller = _Teller(self._reaction, tells=is_first())
        return self

    def _note(self, number, _frame):
        self.received = number
        self._restore()
        if self._leave:
            raise SystemExit(128 + number)

    def leave_if_received(self) -> None:
        """Ends the process if a signal has come, for work in turns; else the block's end does.

        Python swallows the handler's own exit if the signal comes in a callback of its memory
        management, such as that of a weak reference.
        """
        if self.received:
            raise SystemExit(128 + self.received)

    def _restore(self):
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def __exit__(self, kind, *_):
        self._restore()
        if self._teller:
            self._teller.close()
            self._teller = None
        if self._leave and kind is None:
            self.leave_if_received()


class _Teller:
    """Says at once, from a thread, that a signal has come, and ends the process at a second one.

    Python's own handlers wait until the main thread comes back from the devices, perhaps a minute
    later. The number of a signal is written to the pipe by the interpreter when it comes.
    """

    def __init__(self, reaction: str, *, tells: bool):
        self._reaction, self._tells = reaction, tells
        self._out, self._into = os.pipe()
        os.set_blocking(self._into, False)
        self._before = signal.set_wakeup_fd(self._into, warn_on_full_buffer=False)
        self._thread = threading.Thread(target=self._tell, daemon=True)
        self._thread.start()

    def _tell(self) -> None:
        first = None
        while numbers := os.read(self._out, 64):
            for number in set(numbers) & set(_STOPS):
                now, name = time.monotonic(), signal.Signals(number).name
                if first is None:
                    first = now
                    if self._tells:
                        say(f"{name}: {self._reaction}; a second one ends at once")
                elif now - first > _REPEATED:
                    say(f"ended by a second {name}")
                    os._exit(128 + number)

    def close(self) -> None:
        signal.set_wakeup_fd(self._before)
        os.close(self._into)
        self._thread.join(timeout=5.0)
        os.close(self._out)
