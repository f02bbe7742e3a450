"""Speed metrics, their warnings, traces, saving by time, and what a run compiles and reads."""

import collections
import contextlib
import shutil
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from conftest import train

from mirg_jax.errors import SaveError
from mirg_jax.models import flops
from mirg_jax.models.sizes import QWEN2_VL_7B
from mirg_jax.runs import metrics
from mirg_jax.runs.checkpoints import Checkpoints
from mirg_jax.runs.settings import read
from mirg_jax.sharding.memory import Accumulator
from mirg_jax.training import loop, speed


def device(kind, used, limit=80 * 2**30):
    stats = {"peak_bytes_in_use": used, "bytes_limit": limit}
    return SimpleNamespace(device_kind=kind, memory_stats=lambda: stats)


@pytest.fixture
def one_h100(monkeypatch):
    def place(used):
        monkeypatch.setattr(jax, "local_devices", lambda: [device("NVIDIA H100 80GB HBM3", used)])
        monkeypatch.setattr(jax, "device_count", lambda: 1)

    place(2**30)
    return place


def test_rates_are_of_a_step_without_evaluation_and_saving(recipe, one_h100):
    seconds = {"data": 1.0, "update": 3.0, "evaluate": 100.0, "checkpoint": 100.0}
    found = speed.Speed(read(recipe("sft")), warns=True).measure(seconds, 400, 989e12)
    assert found == {
        "tokens_per_second": 100,
        "data_fraction": 0.25,
        "mfu": 0.25,
        "peak_memory_gib": 1,
    }


def test_waste_is_told_once(recipe, one_h100, capsys):
    watched = speed.Speed(read(recipe("grpo")), warns=True)
    for _ in range(5):
        watched.measure({"data": 0.3, "update": 0.7}, 1, 1)
    assert capsys.readouterr().err == ""  # the first step filled the buffers
    one_h100(79 * 2**30)
    for _ in range(3):
        watched.measure({"data": 0.3, "update": 0.7}, 1, 1)
        watched.check_logprobs(0.02)
        watched.check_logprobs(0.05)
    memory, waiting, logprobs = capsys.readouterr().err.splitlines()
    assert "99% full" in memory and "plan.py" in memory
    assert "for 30% of their time" in waiting and "data.threads" in waiting
    assert "differ by 0.05" in logprobs and "model.attention=xla" in logprobs
    speed.Speed(read(recipe("grpo")), warns=False).check_logprobs(np.nan)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("changes", "decoder_passes", "tower_passes"),
    [
        # Rollout and reference are a pass each; backward is two, with adapters one.
        ({"freeze": ("visual",)}, 1 + 1 + 3, 1),
        ({"freeze": ("visual",), "grpo.beta": 0.0}, 1 + 3, 1),
        ({"freeze": ("visual",), "grpo.updates": 2}, 1 + 1 + 6, 1),
        ({"freeze": ()}, 1 + 1 + 3, 1 + 1 + 3),
        ({"lora.rank": 4}, 1 + 1 + 2, 1),
    ],
)
def test_operations_of_a_grpo_step(recipe, changes, decoder_passes, tower_passes):
    settings, config = read(recipe("grpo", **changes)), QWEN2_VL_7B
    lengths = np.array([[3, 5], [7, 2]])
    prompts = flops.forward(config, [40, 60], [16, 16])
    pairs = sum(n * 50 + n * (n + 1) / 2 for n in lengths.flat)
    decoder = prompts.decoder + flops.decoder(config, 17, pairs, 17)
    expected = decoder_passes * decoder + tower_passes * prompts.tower
    found = speed.grpo_operations(settings, config, prompts, 50, lengths)
    assert found == pytest.approx(expected)


def test_a_trace_of_some_steps_is_recorded(steady_recipe, tmp_path, capsys):
    train(steady_recipe("sft", num_steps=3, profile=(2, 3)), tmp_path)
    assert [*tmp_path.glob("profile/plugins/profile/*/*.xplane.pb")]
    assert "trace written to" in capsys.readouterr().err
    told = [row["speed"].keys() for row in metrics.read(tmp_path)]
    assert told == [{"tokens_per_second", "data_fraction"}] * 3


def test_a_trace_that_cannot_be_written_costs_a_line(tmp_path, capsys, monkeypatch):
    def fail(_):
        raise RuntimeError("no room")

    monkeypatch.setattr(jax.profiler, "start_trace", fail)
    trace = speed.Profile((1, 1), tmp_path)
    trace.between(0)
    trace.between(1)
    trace.close()
    assert capsys.readouterr().err == f"{tmp_path}/profile: no trace is recorded (no room)\n"


def test_a_save_is_due_after_some_minutes(steady_recipe, tmp_path, monkeypatch):
    clock = iter(range(0, 10_000, 60))  # a minute at each look
    monkeypatch.setattr(loop, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    saved, save = [], Checkpoints.save

    def note(self, state, *args, **kwargs):
        done = save(self, state, *args, **kwargs)
        if done:
            saved.append(int(state.step))
        return done

    monkeypatch.setattr(Checkpoints, "save", note)
    changes = {"checkpoint.every": 0, "checkpoint.minutes": 2.5, "checkpoint.keep": 0}
    train(steady_recipe("sft", num_steps=7, **changes), tmp_path)
    assert saved == [1, 4, 7]  # the first step's always; it looks once a step and once a save


def test_a_disk_too_small_for_a_checkpoint_is_told_first(recipe, tmp_path, monkeypatch):
    usage = collections.namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**6, 10**6 - 1000, 1000))
    with pytest.raises(SaveError, match="a checkpoint takes .* GB, and there are 1e-06 GB free"):
        train(recipe("sft"), tmp_path)
    assert not (tmp_path / "metrics.jsonl").exists()


@contextlib.contextmanager
def no_implicit_reads():
    """Makes every read of a device's array an error, unless `jax.device_get` asked for it."""
    array = type(jax.numpy.zeros(()))
    get, allowed = jax.device_get, []
    original = array._value

    def asked(tree):
        allowed.append(1)
        try:
            return get(tree)
        finally:
            allowed.pop()

    def value(self):
        assert allowed, "an array of the device was read without jax.device_get"
        return original.fget(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "device_get", asked)
        patch.setattr(array, "_value", property(value))
        with pytest.raises(AssertionError, match="without jax.device_get"):
            float(jax.numpy.ones(()) + 1)
        yield


@pytest.mark.parametrize("kind", ["sft", "grpo"])
def test_steps_read_nothing_from_the_devices_by_the_way(kind, recipe, tmp_path, monkeypatch):
    """A CPU's transfer guard doesn't see such reads; on an accelerator each would wait for it."""
    steps = loop.Loop.steps

    def guarded(self, divide):
        for batches in steps(self, divide):
            with no_implicit_reads():
                yield batches

    monkeypatch.setattr(loop.Loop, "steps", guarded)
    train(recipe(kind, num_steps=2), tmp_path)
    assert len(metrics.read(tmp_path)) == 2


def test_one_program_sums_all_micro_batches(recipe, tmp_path, monkeypatch):
    made, begin = [], Accumulator.__init__

    def note(self, *args, **kwargs):
        begin(self, *args, **kwargs)
        made.append(self)

    monkeypatch.setattr(Accumulator, "__init__", note)
    changes = {"batch_size": 4, "prompts_per_micro_batch": 2, "grpo.completion_lengths": (12,)}
    train(recipe("grpo", num_steps=2, **changes), tmp_path)
    (gradients,) = made
    assert gradients.add._cache_size() == 1
