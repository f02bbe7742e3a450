"""Runs that survive: bad updates, signals, full disks, damaged checkpoints, and being killed."""

import contextlib
import json
import os
import random
import resource
import shutil
import signal
import threading
import time
from threading import Event, Lock

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import together
from conftest import train
from flax import nnx

from configs import sft_tiny
from mirg_jax.data import pipeline
from mirg_jax.data.examples import Rejected
from mirg_jax.data.pipeline import RejectedLog, position, positions
from mirg_jax.errors import CheckpointError, SaveError, UserError
from mirg_jax.runs import devices, metrics
from mirg_jax.runs.checkpoints import Checkpoints
from mirg_jax.runs.loading import load_model
from mirg_jax.runs.settings import read
from mirg_jax.runs.train_state import init_state
from mirg_jax.training import sft
from mirg_jax.training.optimizer import apply_gradients


@pytest.fixture
def recipe(tiny_model, scenes):
    def make(**changes):
        config = sft_tiny.get_config()
        config.model.path = str(tiny_model)
        config.data.image_root = str(scenes)
        config.data.train_json = str(scenes / "sft.jsonl")
        config.cpu_devices = 0
        config.data.shapes.lengths = (156,)
        config.num_steps = 6
        config.batch_size = 4
        config.rows_per_micro_batch = 4
        config.checkpoint.every = 1
        config.checkpoint.keep = 9
        config.optimizer.schedule = "constant"
        config.optimizer.warmup_ratio = 0.0
        config.update_from_flattened_dict(changes)
        return config

    return make


@pytest.fixture(scope="module")
def whole(tiny_model, scenes, tmp_path_factory):
    """The numbers of an uninterrupted run."""
    workdir = tmp_path_factory.mktemp("whole")
    train(recipe.__wrapped__(tiny_model, scenes)(), workdir)
    return together.scalars(workdir)


@contextlib.contextmanager
def at_step(wanted, act, monkeypatch):
    """Does something as soon as a step's metrics are written, before its checkpoint."""
    write = metrics.Metrics.write

    def write_and_act(self, step, *args, **kwargs):
        write(self, step, *args, **kwargs)
        if step == wanted:
            act()

    with monkeypatch.context() as patch:
        patch.setattr(metrics.Metrics, "write", write_and_act)
        yield


def fill_up(size):
    """Lets no file grow beyond a size; returns what lifts the limit."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def steps_in(workdir):
    return sorted(path.name for path in (workdir / "checkpoints").iterdir())


@pytest.mark.parametrize("bad", ["loss", "gradient"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_an_update_that_is_not_finite_changes_nothing_but_the_counts(bad, value):
    params = nnx.State({"kernel": nnx.Param(jnp.arange(6.0).reshape(2, 3))})
    optimizer = optax.adamw(0.1)
    grads = jax.tree.map(jnp.ones_like, params)
    apply = jax.jit(lambda *args: apply_gradients(*args, optimizer=optimizer))
    good, norm = apply(init_state(params, optimizer, 0), grads, jnp.float32(1))
    assert norm == pytest.approx(np.sqrt(6))
    updates, moments = optimizer.update(grads, optimizer.init(params), params)
    expected = optax.apply_updates(params, updates), moments
    jax.tree.map(np.testing.assert_allclose, (good.params, good.opt_state), expected)

    wrong = jax.tree.map(lambda g: g.at[0, 1].set(value), grads)
    worse = (wrong, jnp.float32(1)) if bad == "gradient" else (grads, jnp.float32(value))
    after, _ = apply(good, *worse)
    again, _ = apply(after, *worse)
    jax.tree.map(
        np.testing.assert_array_equal,
        (again.params, again.opt_state),
        (good.params, good.opt_state),
    )
    assert [int(s.skipped) for s in (good, after, again)] == [0, 1, 2]
    recovered, _ = apply(again, grads, jnp.float32(1))
    assert (int(recovered.skipped), int(recovered.skipped_in_a_row)) == (2, 0)
    assert all(
        (a != b).all()
        for a, b in zip(*map(jax.tree.leaves, (recovered, good)), strict=True)
        if a.ndim == 2
    )


def spoil(monkeypatch, bad_steps):
    """Makes the loss of some steps NaN."""
    make_step = sft.make_step

    def make(*args):
        step = make_step(*args)

        def spoilt(state, frozen, batches, count):
            bad = int(state.step) + 1 in bad_steps
            return step(state, frozen, batches, np.nan if bad else count)

        return spoilt

    monkeypatch.setattr(sft, "make_step", make)


def test_a_bad_step_is_counted_and_the_run_goes_on(recipe, tmp_path, monkeypatch):
    spoil(monkeypatch, {2, 3, 5})
    train(recipe(num_steps=4), tmp_path)
    train(recipe(), tmp_path)
    rows = together.scalars(tmp_path)
    assert [row["loss"] is None for row in rows] == [False, True, True, False, True, False]
    assert [row["skipped"] for row in rows] == [0, 1, 2, 2, 3, 3]


def test_after_several_bad_steps_the_run_stops_with_the_last_good_state(
    recipe, tmp_path, monkeypatch
):
    spoil(monkeypatch, {3, 4})
    with pytest.raises(UserError, match="stopped at step 4: 2 updates in a row"):
        train(recipe(max_skipped=2, **{"checkpoint.every": 2}), tmp_path)
    mesh = devices.start(read(recipe()).devices)
    good, last = (load_model(tmp_path / "checkpoints" / n, mesh).params for n in ("2", "4"))
    jax.tree.map(np.testing.assert_array_equal, good, last)
    monkeypatch.undo()
    train(recipe(max_skipped=2), tmp_path)
    assert [row["skipped"] for row in together.scalars(tmp_path)] == [0, 0, 1, 2, 2, 2]


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)]
)
def test_a_signal_saves_the_state_after_the_step(
    number, recipe, whole, tmp_path, monkeypatch, capsys
):
    handler = signal.getsignal(number)
    with at_step(3, lambda: os.kill(os.getpid(), number), monkeypatch):
        with pytest.raises(SystemExit) as stopped:
            train(recipe(**{"checkpoint.every": 100}), tmp_path)
    assert stopped.value.code == 128 + number
    said = capsys.readouterr().err
    assert said.count(f"{number.name}: finishing this step and saving; a second one ends at") == 1
    said = said.splitlines()[-1]
    assert number.name in said and "after step 3" in said and "run the same command" in said
    assert steps_in(tmp_path) == ["1", "3"]  # the first one is always saved
    assert signal.getsignal(number) is handler
    train(recipe(), tmp_path)
    assert together.scalars(tmp_path) == whole


def test_a_signal_is_not_kept_waiting_by_images_that_never_come(
    recipe, whole, tmp_path, monkeypatch
):
    load, count, lock, released = pipeline.load_image, iter(range(10**6)), Lock(), Event()

    def hang(root, path):
        with lock:
            number = next(count)
        if number == 40:
            threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGTERM)).start()
        if number >= 40:
            assert released.wait(300)
        return load(root, path)

    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "load_image", hang)
        try:
            with pytest.raises(SystemExit) as stopped:
                train(recipe(**{"checkpoint.every": 100}), tmp_path)
        finally:
            released.set()
    assert stopped.value.code == 143
    last = together.scalars(tmp_path)[-1]["step"]
    assert 1 <= last < 6 and str(last) in steps_in(tmp_path)
    train(recipe(), tmp_path)
    assert together.scalars(tmp_path) == whole


def test_a_stopped_run_is_saved_before_its_trace_is_written(recipe, tmp_path, monkeypatch):
    events, save = [], Checkpoints.save

    def note(self, state, *args, **kwargs):
        done = save(self, state, *args, **kwargs)
        events.extend(["saved"] * done)
        return done

    monkeypatch.setattr(Checkpoints, "save", note)
    monkeypatch.setattr(jax.profiler, "start_trace", lambda _: events.append("started"))
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: events.append("written"))
    changes = {"profile": (2, 3), "checkpoint.every": 100}
    with at_step(3, lambda: os.kill(os.getpid(), signal.SIGTERM), monkeypatch):
        with pytest.raises(SystemExit):
            train(recipe(**changes), tmp_path / "stopped")
    assert events == ["saved", "started", "saved", "written"]
    events.clear()
    train(recipe(num_steps=4, **changes), tmp_path / "whole")
    assert events == ["saved", "started", "written", "saved"]


def test_a_full_disk_costs_no_checkpoint(recipe, whole, tmp_path, monkeypatch):
    undo = []
    full = at_step(4, lambda: undo.append(fill_up(30_000)), monkeypatch)
    try:  # what was compiled so far is enough
        with full, pytest.raises(SaveError) as caught:
            train(recipe(**{"checkpoint.keep": 1}), tmp_path)
    finally:
        for lift in undo:
            lift()
    (line,) = str(caught.value).splitlines()
    (kept,) = (name for name in steps_in(tmp_path) if name.isdigit())
    assert int(kept) < 4 and f"goes on from step {kept}" in line
    assert f"{tmp_path}/checkpoints" in line and "File too large" in line
    train(recipe(), tmp_path)
    assert together.scalars(tmp_path) == whole
    assert all(name.isdigit() for name in steps_in(tmp_path))  # what was half written is gone


def test_a_first_checkpoint_that_fails_is_told_at_the_next_step(recipe, tmp_path, monkeypatch):
    undo = []

    def wait():
        while any(thread.name == "save_finalize" for thread in threading.enumerate()):
            time.sleep(0.05)

    full = at_step(1, lambda: undo.append(fill_up(30_000)), monkeypatch)
    try:
        with full, at_step(2, wait, monkeypatch):
            with pytest.raises(SaveError, match="File too large"):
                train(recipe(**{"checkpoint.every": 0}), tmp_path)
    finally:
        for lift in undo:
            lift()
    assert [row["step"] for row in metrics.read(tmp_path)] == [1, 2]


@pytest.mark.parametrize(
    "part",
    ["params", *(pytest.param(part, marks=pytest.mark.slow) for part in ("train", "data"))],
)
def test_a_damaged_checkpoint_is_named_with_the_one_before(part, recipe, whole, tmp_path):
    train(recipe(num_steps=4), tmp_path)
    newest = tmp_path / "checkpoints/4"
    for file in (newest / part).rglob("*"):
        if file.is_file() and not file.name.startswith("_"):
            os.truncate(file, file.stat().st_size // 2)
    with pytest.raises(CheckpointError) as caught:
        train(recipe(), tmp_path)
    (line,) = str(caught.value).splitlines()
    assert str(newest) in line and "damaged" in line and "delete it to use step 3" in line
    if part == "params":
        with pytest.raises(CheckpointError, match="damaged"):
            load_model(tmp_path, devices.start(read(recipe()).devices))
    shutil.rmtree(newest)
    train(recipe(), tmp_path)
    assert together.scalars(tmp_path) == whole


def test_a_torn_line_of_rejected_rows_is_cut(tmp_path):
    path = tmp_path / "rejected.jsonl"
    log = RejectedLog(path, step=0)
    first, second = Rejected("a row 1", "1", "bad"), Rejected("a row 2", "2", "worse")
    log.add(first)
    path.write_text(path.read_text() + '{"source": "a r')
    log = RejectedLog(path, step=0)
    log.add(first)
    log.add(second, step=3)
    assert [json.loads(line)["id"] for line in path.open()] == ["1", "2"] and len(log) == 2
    for step, count in ((3, 2), (2, 1), (3, 1)):  # the steps behind 2 are taken again
        assert len(RejectedLog(path, step=step)) == count
    assert not len(RejectedLog(path)) and not path.exists()


def test_a_resumed_run_counts_the_same_rows_as_left_out(recipe, tmp_path):
    """Those that its steps met: not those that were read ahead of the last one."""
    made = recipe()
    rows = [json.loads(line) for line in open(made.data.train_json)]
    for row in rows[::3]:
        row["images"][0] = "nowhere.png"
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def run(name, *ends):
        for end in ends:
            train(recipe(num_steps=end, **{"data.train_json": str(data)}), tmp_path / name)
        listed = [json.loads(line) for line in (tmp_path / name / "rejected.jsonl").open()]
        return together.scalars(tmp_path / name), listed

    (at_once, listed), (resumed, again) = run("at_once", 6), run("resumed", 2, 3, 6)
    counts = [row["rejected"] for row in at_once]
    assert resumed == at_once and again == listed
    assert counts == [sum(row["step"] <= step for row in listed) for step in range(1, 7)]
    assert counts[0] < counts[2] < counts[5] == len(listed)


def test_another_number_of_shares_goes_on_behind_what_was_read():
    for shares in (1, 2, 4):
        for others in (1, 2, 4):
            saved = positions([24 // shares] * shares)  # 24 examples read
            starts = [position(saved, i, others)["next_index"] for i in range(others)]
            assert [i + others * start for i, start in enumerate(starts)] == [
                *range(24, 24 + others)
            ]
    # One share left rows out and is further: exact for two, behind both for others.
    saved = positions([12, 15])
    assert [position(saved, i, 2)["next_index"] for i in (0, 1)] == [12, 15]
    assert position(saved, 0, 1) == {"next_index": 30}
    assert [position(saved, i, 4)["next_index"] for i in range(4)] == [8, 8, 7, 7]


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "pool"), [("sft", 1), ("grpo", 1), ("grpo", 3)])
def test_twenty_kills_do_not_change_a_bit(kind, pool, tiny_model, scenes, tmp_path):
    """Many of them hit a checkpoint: one is written at every step."""
    steps, kills = (120, 20)
    flags = together.recipe(
        kind,
        tiny_model,
        scenes,
        num_steps=steps,
        batch_size=4,
        checkpoint__every=1,
        optimizer__learning_rate=1e-3,
    )
    if kind == "grpo":
        flags += ["--config.sampling.prompts=4", "--config.grpo.log_groups_every=10"]
    if pool > 1:  # with as many rounds as a step needs
        flags += [f"--config.grpo.pool={pool}", "--config.grpo.gate=(0.02,0.0)"]
        flags += ["--config.grpo.order=reward", "--config.grpo.max_rounds=2"]
    together.run(f"train_{kind}", *flags, f"--workdir={tmp_path}/whole")

    killed, rng = tmp_path / "killed", random.Random(0)
    saving = 0
    for _ in range(kills):
        before = together.scalars(killed)[-1]["step"] if killed.exists() else 0
        (process,) = together.launch(f"train_{kind}", *flags, f"--workdir={killed}")
        deadline = time.monotonic() + 300
        while not _newest_step(killed) > before and time.monotonic() < deadline:
            assert process.poll() is None, process.communicate()
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.6))
        process.kill()
        assert together.finish([process])[0][0] == -signal.SIGKILL
        saving += any(not name.isdigit() for name in steps_in(killed))
    print(f"{saving} of {kills} kills left a half-written checkpoint")
    assert saving > (kills // 4 if pool == 1 else 0)  # the share of a step that saving takes
    together.run(f"train_{kind}", *flags, f"--workdir={killed}")
    assert together.scalars(killed) == together.scalars(tmp_path / "whole")
    assert together.groups(killed) == together.groups(tmp_path / "whole")


def _newest_step(workdir):
    """The last whole line's step of a run that may be writing just now; 0 for none."""
    path = workdir / "metrics.jsonl"
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    return json.loads(lines[-1])["step"] if lines else 0
