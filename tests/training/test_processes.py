"""Several processes are one run: the same losses, gradients, samples and checkpoints."""

import json
import os
import shutil
import signal
import time
from threading import Event
from types import SimpleNamespace

import jax
import numpy as np
import pytest
import together

from mirg_jax import sharding
from mirg_jax.errors import ConfigError
from mirg_jax.runs import run_folder
from mirg_jax.sharding import processes


def mesh_of(*processes):
    """What is looked at of a mesh: which process has the device at [data, fsdp, tensor]."""
    devices = np.vectorize(lambda p: SimpleNamespace(process_index=p))(np.array(processes))
    return SimpleNamespace(
        devices=devices, shape=dict(zip(sharding.AXES, devices.shape, strict=True))
    )


@pytest.mark.parametrize(
    ("mesh", "shares", "rows"),
    [
        (mesh_of([[0], [0]], [[1], [1]]), [(0, 2), (1, 2)], [[0, 1, 2, 3], [4, 5, 6, 7]]),
        (mesh_of([[0], [1]], [[0], [1]]), [(0, 2), (1, 2)], [[0, 1, 4, 5], [2, 3, 6, 7]]),
        (mesh_of([[0, 0], [1, 1]]), [(0, 2), (1, 2)], [[0, 1, 2, 3], [4, 5, 6, 7]]),
        # The tensor axis crosses processes: both of a pair hold the same rows.
        (mesh_of([[0, 1], [2, 3]]), [(0, 2), (0, 2), (1, 2), (1, 2)], [[0, 1, 2, 3]] * 2),
        (mesh_of([[0, 1]]), [(0, 1), (0, 1)], [[*range(8)]] * 2),
    ],
)
def test_each_process_reads_the_share_of_its_rows(mesh, shares, rows, monkeypatch):
    for process, share in enumerate(shares):
        monkeypatch.setattr(jax, "process_index", lambda process=process: process)
        assert sharding.data_share(mesh) == share
        if process < len(rows):
            assert sharding.local_row_numbers(8, mesh).tolist() == rows[process]


def test_rows_that_processes_hold_in_part_are_refused(monkeypatch):
    with pytest.raises(ValueError, match="unevenly"):
        sharding.data_share(mesh_of([[0, 0, 1], [1, 2, 2]]))


PLAIN = {"JAX_COORDINATOR_ADDRESS": "a:1", "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "1"}
SLURM = {"SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "0", "SLURM_STEP_NUM_NODES": "2"}


@pytest.mark.parametrize(
    ("env", "expected"),
    [
        ({}, None),
        ({"SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"}, None),
        ({"SLURM_NTASKS": "4", "SLURM_PROCID": "0"}, None),  # a batch script, not a step of it
        ({"TPU_ML_PLATFORM": "JAX", "TPU_SKIP_MDS_QUERY": "1"}, None),
        ({"TPU_WORKER_HOSTNAMES": "localhost", "TPU_ML_PLATFORM": "JAX"}, None),
        (PLAIN, {"coordinator_address": "a:1", "num_processes": 2, "process_id": 1,
                 "cluster_detection_method": "deactivate"}),
        (SLURM, {"cluster_detection_method": "slurm"}),
        (SLURM | {"SLURM_STEP_NUM_NODES": "4", "SLURM_GPUS_ON_NODE": "8"},
         {"cluster_detection_method": "slurm", "local_device_ids": [*range(8)]}),
        ({"TPU_WORKER_HOSTNAMES": "a,b"}, {"cluster_detection_method": "gketpu"}),
        ({"TPU_ML_PLATFORM": "JAX"}, {"cluster_detection_method": "gcetpu"}),
    ],
)  # fmt: skip
def test_the_environment_says_whether_there_are_others(env, expected):
    assert processes._environment(env) == expected


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"JAX_PROCESS_ID": None}, "JAX_PROCESS_ID"),
        ({"JAX_PROCESS_ID": "2"}, "below"),
        ({"JAX_COORDINATOR_ADDRESS": "host"}, "ADDRESS='host': .* HOST:PORT"),
        ({"JAX_COORDINATOR_ADDRESS": ""}, "ADDRESS='': .* HOST:PORT"),
    ],
)
def test_half_an_environment_is_refused(changes, message):
    env = {name: value for name, value in (PLAIN | changes).items() if value is not None}
    with pytest.raises(ConfigError, match=message):
        processes._environment(env)


def test_processes_that_do_not_meet_are_told_before_jax_aborts(monkeypatch, capsys):
    ended = Event()

    def wait(**where):
        assert ended.wait(60) and where["initialization_timeout"] == 1

    monkeypatch.setattr(processes, "_MEETING", 1)
    monkeypatch.setattr(jax.distributed, "initialize", wait)
    monkeypatch.setattr(processes, "_environment", lambda env: {"process_id": 0})
    monkeypatch.setattr(os, "_exit", lambda status: status == 2 and ended.set())
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    processes.start()
    first, last = capsys.readouterr().err.splitlines()
    assert first == "waiting for the other processes of this run to start"
    assert "did not find each other" in last and "start all of them" in last


def same_numbers(workdir, expected):
    """Equal but for the order in which float32 numbers are added."""
    found = together.scalars(workdir)
    assert [row["step"] for row in found] == [row["step"] for row in expected]
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.keys() == theirs.keys()
        assert {k: v for k, v in ours.items() if k != "padding_fraction"} == {
            k: pytest.approx(v, rel=1e-4, abs=1e-6)
            for k, v in theirs.items()
            if k != "padding_fraction"  # each process packs for itself
        }


def test_two_processes_make_the_run_of_one(tiny_model, scenes, tmp_path, refusal):
    flags = together.recipe("sft", tiny_model, scenes, data__shapes__lengths="(156,)")
    here = [*flags, "--config.cpu_devices=0", f"--workdir={tmp_path / '1'}"]
    assert refusal("train_sft", *here) == ""
    together.run("train_sft", *flags, f"--workdir={tmp_path / '2'}", count=2)
    same_numbers(tmp_path / "2", together.scalars(tmp_path / "1"))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sft", "grpo"])
def test_two_processes_and_their_checkpoints(kind, tiny_model, scenes, tmp_path):
    """The run of one process, made by two, gone on with by one again."""

    def train(name, steps, count):
        flags = together.recipe(kind, tiny_model, scenes, num_steps=steps)
        together.run(f"train_{kind}", *flags, f"--workdir={tmp_path / name}", count=count)

    train("one", 4, 1)
    train("two", 2, 2)
    expected = together.scalars(tmp_path / "one")
    assert kind == "sft" or all(row["grad_norm"] > 1e-3 for row in expected)
    same_numbers(tmp_path / "two", expected[:2])
    train("two", 4, 1)
    same_numbers(tmp_path / "two", expected)

    one, two = (together.groups(tmp_path / name) for name in ("one", "two"))
    assert bool(one) == (kind == "grpo")
    # The first process writes the groups of its own share.
    assert sum(step <= 2 for step, _ in two) == (8 if kind == "grpo" else 0)
    assert all(one[key] == texts for key, texts in two.items())


@pytest.mark.slow
def test_two_processes_take_statistics_over_the_whole_step(tiny_model, scenes, tmp_path):
    """Of the groups of both, in two calls of the sampler each."""
    more = {"grpo.advantage_scale": "gdpo", "grpo.difficulty_weight": True, "sampling.prompts": 4}
    more |= {"grpo.more_rewards": "('overlong=0.5',)", "grpo.objective": "sapo"}
    flags = together.recipe("grpo", tiny_model, scenes, num_steps=2, **more)
    for count in (1, 2):
        together.run("train_grpo", *flags, f"--workdir={tmp_path / str(count)}", count=count)
    expected = together.scalars(tmp_path / "1")
    assert all(row["grad_norm"] > 1e-3 for row in expected)
    same_numbers(tmp_path / "2", expected)


@pytest.mark.slow
def test_two_processes_end_at_a_reward_that_fails_in_one(tiny_model, scenes, tmp_path):
    more = {"grpo.more_rewards": "('text:together:few_tokens_but_of',)"}
    flags = together.recipe("grpo", tiny_model, scenes, num_steps=4, **more)
    for count in (1, 2):
        workdir = tmp_path / str(count)
        ends = together.finish(
            together.launch("train_grpo", *flags, f"--workdir={workdir}", count=count), timeout=300
        )
        assert [status for status, _ in ends] == [2] * count, ends
        last = ends[0][1].splitlines()[-1]
        assert "few_tokens_but_of' fails for a completion of rl.json row 3 with LookupE" in last
    expected = together.scalars(tmp_path / "1")
    same_numbers(tmp_path / "2", expected)
    assert run_folder.find_run(tmp_path / "2").step == len(expected)


@pytest.mark.slow
@pytest.mark.parametrize("scale", ["std", "gdpo"])
def test_two_processes_choose_the_groups_of_one(scale, tiny_model, scenes, tmp_path):
    """From a pool that both have sampled: rows move to the process that learns from them. With
    GDPO statistics are over the groups that are chosen."""
    more = {"grpo.pool": 2, "grpo.gate": "(0.0,)", "grpo.order": "reward", "grpo.mini_batches": 2}
    more |= {"sampling.prompts": 4, "grpo.max_rounds": 2, "grpo.advantage_scale": scale}
    more |= {"grpo.more_rewards": "('overlong=0.5',)"} if scale == "gdpo" else {}
    flags = together.recipe("grpo", tiny_model, scenes, num_steps=2, **more)
    for count in (1, 2):
        together.run("train_grpo", *flags, f"--workdir={tmp_path / str(count)}", count=count)
    expected = together.scalars(tmp_path / "1")
    assert all(row["grad_norm"] > 1e-3 and row["left_over"] > 0 for row in expected)
    same_numbers(tmp_path / "2", expected)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sft", "grpo"])
def test_four_processes_go_on_where_two_stopped(kind, tiny_model, scenes, tmp_path):
    """On other meshes too: 2 × 2 devices, then 4 × 1, with weights divided."""

    def train(name, steps, count, **changes):
        flags = together.recipe(kind, tiny_model, scenes, num_steps=steps, **changes)
        together.run(f"train_{kind}", *flags, f"--workdir={tmp_path / name}", count=count)

    train("one", 4, 1)
    train("many", 2, 2, cpu_devices=2, mesh__data=1, mesh__fsdp=2, mesh__tensor=2)
    train("many", 3, 4, mesh__data=2, mesh__fsdp=2)
    train("many", 4, 4, mesh__data=1, mesh__fsdp=2, mesh__tensor=2)  # tensor across processes
    same_numbers(tmp_path / "many", together.scalars(tmp_path / "one"))


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 4])
@pytest.mark.parametrize("kind", ["sft", "grpo"])
def test_devices_of_a_slice_in_rings(kind, count, tiny_model, scenes, tmp_path):
    """The groups of devices that sample together lie across processes, as on a v5e-16."""
    held_out = {
        "evaluation__every": 1,
        "evaluation__benchmark": scenes / "eval.json",
        "evaluation__image_root": scenes,
        "evaluation__batch_size": 4,
        "evaluation__max_tokens": 8,
        "prompts_per_micro_batch" if kind == "grpo" else "rows_per_micro_batch": 8,
    }
    many = {"cpu_devices": 8 // count, "sampling__tensor": 2}
    for name, processes_, changes in (("one", 1, {}), ("many", count, many)):
        flags = together.recipe(kind, tiny_model, scenes, num_steps=2, **held_out, **changes)
        workdir = f"--workdir={tmp_path / name}"
        wrapper = "rings" if processes_ > 1 else ""
        together.run(f"train_{kind}", *flags, workdir, count=processes_, wrapper=wrapper)
    same_numbers(tmp_path / "many", together.scalars(tmp_path / "one"))

    for name, processes_, changes in (("one", 1, {"cpu_devices": 1}), ("many", count, many)):
        flags = {"evaluation.batch_size": 8, "evaluation.max_tokens": 8}
        flags |= {key.replace("__", "."): value for key, value in changes.items()}
        together.run(
            "evaluate",
            "--config=configs/grpo_tiny.py",
            f"--checkpoint={tmp_path}/one",
            f"--benchmark={scenes}/eval.json",
            f"--image_root={scenes}",
            f"--output_dir={tmp_path}/answers_{name}",
            *[f"--config.{key}={value}" for key, value in flags.items()],
            count=processes_,
            wrapper="rings" if processes_ > 1 else "",
        )
    one, many = (
        sorted((tmp_path / f"answers_{name}/predictions.jsonl").read_text().splitlines())
        for name in ("one", "many")
    )
    assert one == many
    assert len(one) == len(json.loads((scenes / "eval.json").read_text()))


@pytest.mark.parametrize(("answer", "expected"), [(False, []), (True, ["gcetpu"])])
def test_a_slice_is_asked_for_once(answer, expected, monkeypatch):
    """Colab's hosts have chips and no slice: nothing is waited for."""
    from jax._src.clusters.cloud_tpu_cluster import GceTpuCluster

    asked, started = [], []
    monkeypatch.setattr(GceTpuCluster, "is_env_present", lambda: asked.append(1) or answer)
    monkeypatch.setattr(
        jax.distributed,
        "initialize",
        lambda **where: started.append(where["cluster_detection_method"]),
    )
    monkeypatch.setattr(processes, "os", SimpleNamespace(environ={"TPU_ML_PLATFORM": "JAX"}))
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    processes._in_a_slice.cache_clear()
    processes.start()
    processes.start()
    processes._in_a_slice.cache_clear()
    assert asked == [1] and started == expected * 2


@pytest.mark.slow
def test_sigterm_to_one_process_saves_and_ends_all(tiny_model, scenes, tmp_path):
    flags = together.recipe("sft", tiny_model, scenes, num_steps=500)
    started = together.launch("train_sft", *flags, f"--workdir={tmp_path}", count=2)
    metrics = tmp_path / "metrics.jsonl"
    together.wait(started, lambda: metrics.exists() and metrics.read_text().count("\n") > 2)
    started[1].send_signal(signal.SIGTERM)
    (status, said), (other, _) = together.finish(started)
    assert (status, other) == (143, 143)
    last = together.scalars(tmp_path)[-1]["step"]
    assert said.splitlines()[-1] == (
        f"stopped by SIGTERM after step {last}, which is saved; run the same command again to go on"
    )
    assert max(int(p.name) for p in (tmp_path / "checkpoints").iterdir()) == last


@pytest.mark.slow
def test_sigterm_ends_all_where_one_waits_for_an_image(tiny_model, scenes, tmp_path):
    flags = together.recipe("sft", tiny_model, scenes, num_steps=500)
    workdir = f"--workdir={tmp_path}"
    started = together.launch("train_sft", *flags, workdir, count=2, wrapper="hanging")
    together.wait(started, (tmp_path / "hanging").exists)
    for process in started:
        process.send_signal(signal.SIGTERM)
    assert [status for status, _ in together.finish(started, timeout=120)] == [143, 143]
    last = together.scalars(tmp_path)[-1]["step"]
    assert 1 <= last < 500
    assert max(int(p.name) for p in (tmp_path / "checkpoints").iterdir()) == last


@pytest.mark.slow
def test_two_processes_list_a_bad_row_once_and_answer_for_one_another(tiny_model, scenes, tmp_path):
    rows = [json.loads(line) for line in (scenes / "sft.jsonl").open()]
    bad = {0, 3, 5, 8, 13, 21}
    for i in bad:
        rows[i]["images"][0] = f"nowhere_{i}.png"
    data, run = tmp_path / "rows.jsonl", tmp_path / "run"
    unreadable = {"id": "unreadable"}  # told by every process that reads the file
    data.write_text("".join(json.dumps(row) + "\n" for row in [*rows, unreadable]))
    flags = together.recipe("sft", tiny_model, scenes, num_steps=12, data__train_json=data)
    together.run("train_sft", *flags, f"--workdir={run}", count=2)
    rejected = [json.loads(line)["id"] for line in (run / "rejected.jsonl").open()]
    assert len(rejected) == len(bad) + 1
    assert {rows[i]["id"] for i in bad} < set(rejected)

    answers = []
    shutil.copytree(scenes, tmp_path / "scenes")
    questions = json.loads((tmp_path / "scenes/eval.json").read_text())
    questions[4]["images"][0] = "nowhere.png"
    (tmp_path / "scenes/eval.json").write_text(json.dumps(questions))
    for count in (1, 2):
        output = tmp_path / str(count)
        together.run(
            "evaluate",
            "--config=configs/grpo_tiny.py",
            f"--checkpoint={run}",
            f"--benchmark={tmp_path}/scenes/eval.json",
            f"--image_root={scenes}",
            f"--output_dir={output}",
            "--config.cpu_devices=1",
            "--config.evaluation.batch_size=4",
            "--config.evaluation.max_tokens=24",
            count=count,
        )
        lines = [json.loads(line) for line in (output / "predictions.jsonl").open()]
        assert len(lines) == 20 and len((output / "rejected.jsonl").read_text().splitlines()) == 1
        answers.append({line["index"]: line["response"] for line in lines})
    assert answers[0] == answers[1] and len(set(answers[0].values())) > 1


@pytest.mark.slow
def test_a_process_that_fails_does_not_leave_the_others_waiting(tiny_model, scenes, tmp_path):
    flags = together.recipe("sft", tiny_model, scenes)
    started = together.launch(
        "train_sft",
        *flags,
        f"--workdir={tmp_path}",
        count=2,
        last=["--config.data.train_json=nowhere.jsonl"],
    )
    begin = time.monotonic()
    (first, _), (last, said) = together.finish(started)
    assert first != 0 and last == 2 and "nowhere.jsonl" in said
    # At once if the others wait for a collective, else after JAX has missed its heartbeat.
    assert time.monotonic() - begin < 300
