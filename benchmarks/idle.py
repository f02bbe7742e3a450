"""How long the devices wait for the host, by a trace, and what a whole run compiles.

Short SFT and GRPO runs of the small recipe on drawn scenes. The last two steps are traced, as
`--config.profile=(FIRST,LAST)` does in any run, whose trace can be read instead.
"""

import contextlib
import pathlib
import tempfile
from collections.abc import Iterable, Iterator

import jax

from benchmarks import side_by_side
from configs import grpo_tiny, sft_tiny
from mirg_jax.runs import metrics
from mirg_jax.runs.settings import read
from mirg_jax.scenes import scene_tasks
from mirg_jax.training import grpo, sft

STEPS, TRACED = 6, (5, 6)
_ON_A_CPU = "ThunkExecutor::Execute"  # a program, or a part of one, in a thread of the CPU client
_COMPILED = "backend_compile_duration"


@contextlib.contextmanager
def programs() -> Iterator[list[str]]:
    """Yields the names of programs as they are compiled, or read from the cache, in the block."""
    found: list[str] = []

    def note(event: str, _: float, *, fun_name: str = "", **__) -> None:
        if event.endswith(_COMPILED):
            found.append(fun_name)

    jax.monitoring.register_event_duration_secs_listener(note)
    try:
        yield found
    finally:
        jax.monitoring.unregister_event_duration_listener(note)


def idle(intervals: Iterable[tuple[float, float]]) -> float:
    """Returns the share of the time from the first start to the last end that none covers."""
    covered, first, last = 0.0, None, None
    for start, end in sorted(intervals):
        if last is None:
            first = last = start
        covered += max(end - max(start, last), 0.0)
        last = max(last, end)
    if last is None or last == first:
        return 1.0
    return 1 - covered / (last - first)


def read_trace(folder: pathlib.Path) -> dict[str, float]:
    """Returns the idle share of each device in a trace; the devices of a CPU count as one.

    Raises:
      FileNotFoundError: if there is no trace.
    """
    found = sorted(folder.glob("**/*.xplane.pb"))
    if not found:
        raise FileNotFoundError(f"{folder}: no *.xplane.pb below it")
    planes = list(jax.profiler.ProfileData.from_file(str(found[-1])).planes)
    devices = [plane for plane in planes if plane.name.startswith("/device:")]
    shares = {}
    for plane in devices or [plane for plane in planes if plane.name == "/host:CPU"]:
        events = [event for line in plane.lines for event in line.events]
        if not devices:
            events = [event for event in events if event.name == _ON_A_CPU]
        shares[plane.name] = idle((event.start_ns, event.end_ns) for event in events)
    return shares


def measure(stage: str, folder: pathlib.Path, model: str) -> dict:
    """Trains for a few steps, and returns what was traced and counted."""
    config = {"sft": sft_tiny, "grpo": grpo_tiny}[stage].get_config()
    config.num_steps, config.profile, config.checkpoint.every = STEPS, TRACED, 0
    config.model.path, config.data.image_root = model, str(folder)
    config.data.train_json = str(folder / {"sft": "sft.json", "grpo": "rl.json"}[stage])
    work = folder / stage
    jax.clear_caches()  # as if each stage were in a process of its own
    with programs() as compiled:
        {"sft": sft, "grpo": grpo}[stage].train(read(config), work)
    rows = metrics.read(work)[TRACED[0] - 1 :]
    return {
        "steps_traced": len(rows),
        "idle": read_trace(work / "profile"),
        "data_fraction": [row["speed"]["data_fraction"] for row in rows],
        "seconds": [row["seconds"] for row in rows],
        "programs": len(compiled),
        "names": compiled,
    }


def run(model: str, trace: str, path: pathlib.Path) -> None:
    """Writes what was found as JSON.

    Args:
      model: the Hugging Face folder of the model.
      trace: the folder of a run's trace, which is read instead; "" for none.
      path: the file.
    """
    if trace:
        found = {"trace": {"idle": read_trace(pathlib.Path(trace))}}
    else:
        with tempfile.TemporaryDirectory() as name:
            folder = pathlib.Path(name)
            scene_tasks.write_dataset(folder, seed=0, sft=128, rl=128, evaluation=0)
            found = {stage: measure(stage, folder, model) for stage in ("sft", "grpo")}
    for name, row in found.items():
        told = ", ".join(f"{device} {share:.1%}" for device, share in row["idle"].items())
        compiled = f"; {row['programs']} programs" if "programs" in row else ""
        print(f"{name}: idle {told}{compiled}")
    result = {"case": "idle"} | side_by_side.environment() | found
    side_by_side.write(path, result)
