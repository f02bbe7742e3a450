"""The doctor's whole examination, in this process: what it prints, and that it leaves nothing."""

import threading

import pytest
import small_families

from mirg_jax.doctor import examine, hardware, report
from mirg_jax.errors import ConfigError
from mirg_jax.files import places
from mirg_jax.models.config import ModelConfig
from mirg_jax.runs.settings import read
from mirg_jax.sharding import processes

CHECKS = [
    *("machine", "devices", "rows", "workdir", "model", "data", "images", "attention"),
    *("checkpoints", "memory", "steps", "steps"),
]


@pytest.fixture(autouse=True)
def no_accelerator(monkeypatch):
    """Not even one that the tests leave alone."""
    monkeypatch.setattr(hardware, "present", lambda root: None)


def examined(config, workdir, capsys) -> tuple[bool, list[str]]:
    stops = examine.examine(read(config), workdir, patience=1200.0)
    return stops, capsys.readouterr().out.splitlines()


def test_the_checks_come_in_order(recipe, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(examine.steps, "run", lambda check, *_: check.warning("one is slow"))
    stops, lines = examined(recipe("grpo"), tmp_path / "run", capsys)
    assert not stops, lines
    assert [line.split(":")[0].split()[1] for line in lines[:-1]] == CHECKS[:-1]
    assert {line.split()[0] for line in lines[:-2]} == {"ok"}, lines
    assert lines[-2:] == [
        "warning  steps: one is slow",
        "problems: 0, warnings: 1; ready to run",
    ]
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("grpo", {}),
        ("sft", {"lora.rank": 2}),
        ("grpo", {"sampling.slots": 2, "grpo.beta": 0.0}),
    ],
)
def test_a_machine_that_is_ready(kind, changes, recipe, tmp_path, capsys):
    stops, lines = examined(recipe(kind, **changes), tmp_path / "run", capsys)
    assert not stops, lines
    assert [line.split(":")[0].split()[1] for line in lines[:-1]] == CHECKS
    assert {line.split()[0] for line in lines[:-1]} == {"ok"}, lines
    assert "sft of a tiny model: loss" in lines[-3]
    assert "sampled and learned log-probs differ by" in lines[-2]
    assert lines[-1] == "problems: 0, warnings: 0; ready to run"
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize("family", small_families.LATER)
def test_the_other_families(family, recipe, tiny_model_of, tmp_path, capsys):
    config = recipe("grpo")
    config.model.path, config.data.max_pixels = str(tiny_model_of(family)), 64 * 64
    assert ModelConfig.from_folder(config.model.path).model_type == family
    stops, lines = examined(config, tmp_path / "run", capsys)
    assert not stops, lines


def test_all_that_can_be_looked_at_is(recipe, tmp_path, capsys):
    """Neither mesh, workdir nor data; the model is there."""
    (tmp_path / "file").touch()
    changes = {"mesh.data": 1, "mesh.fsdp": 77, "data.train_json": str(tmp_path / "nowhere.json")}
    stops, lines = examined(recipe("grpo", **changes), tmp_path / "file", capsys)
    assert stops and lines[-1].startswith("problems: 3, warnings: 2; the run would stop")
    told = {line.split(":")[0].split(maxsplit=1)[1]: line for line in lines[:-1]}
    assert "doesn't cover" in [line for line in lines if " devices:" in line][-1]
    assert "not a folder" in told["workdir"] and "nowhere.json" in told["data"]
    assert told["model"].startswith("ok ")
    assert "not looked at" in told["images"]
    assert "not looked at" in told["checkpoints, memory and steps"]


def test_rows_that_cannot_be_divided_are_told(recipe, tmp_path, capsys, monkeypatch):
    def refuse(*_, **__):
        raise ConfigError("prompts_per_micro_batch=2 can't be divided evenly")

    monkeypatch.setattr(examine.checks, "rows", refuse)
    monkeypatch.setattr(examine, "_compute", lambda *_: None)
    stops, lines = examined(recipe("grpo"), tmp_path / "run", capsys)
    assert stops and "problem  rows: prompts_per_micro_batch=2 can't be divided evenly" in lines


def test_processes_that_do_not_meet_are_told_in_time(recipe, tmp_path, capsys, monkeypatch):
    ended = threading.Event()

    def start():
        assert ended.wait(60)
        raise ConfigError("the end")

    monkeypatch.setattr(report, "_end", ended.set)  # where a process would end
    monkeypatch.setattr(processes, "start", start)
    assert examine.examine(read(recipe("sft")), tmp_path, patience=4.0)
    machine, late = capsys.readouterr().out.splitlines()[:2]
    assert " machine: " in machine
    assert late.startswith("problem  processes: no end after 4 s on ")
    assert "did not find each other; start the same command on all hosts" in late


def test_a_recipe_for_inference_is_refused(refusal, tmp_path):
    flags = ["--config=configs/inference.py:qwen2_vl_72b,v5p_8", f"--workdir={tmp_path}"]
    assert "give one for sft or grpo" in refusal("doctor", *flags)


def test_a_run_in_a_bucket_is_examined_and_the_bucket_left_as_it_was(
    recipe, tiny_model, scenes, bucket, capsys
):
    for folder, name in ((tiny_model, "model"), (scenes, "data")):
        for path in folder.rglob("*"):
            if path.is_file():
                bucket.objects[f"bucket/{name}/{path.relative_to(folder)}"] = path.read_bytes()
    before = set(bucket.objects)
    config = recipe("grpo")
    config.model.path = "gs://bucket/model"
    config.data.image_root = "gs://bucket/data"
    config.data.train_json = "gs://bucket/data/rl.json"
    stops, lines = examined(config, places.of("gs://bucket/runs/grpo"), capsys)
    assert not stops, lines
    assert [line.split(":")[0].split()[1] for line in lines[:-1]] == CHECKS
    assert {line.split()[0] for line in lines[:-1]} == {"ok"}, lines
    assert "gs://bucket/runs/grpo: a new run" in lines[3] and "in a store" in lines[-5]
    assert set(bucket.objects) == before
    posted = [name for method, name in bucket.requests if method == "POST"]
    assert any("/grpo/checkpoints/1/" in name for name in posted)  # it saved there

    bucket.broken = {"POST"}
    stops, lines = examined(config, places.of("gs://bucket/runs/grpo"), capsys)
    (line,) = [line for line in lines if " workdir: " in line]
    assert stops and line.startswith("problem ") and "HTTP status 403" in line
