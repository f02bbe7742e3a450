"""Weights & Biases, offline: one run for a folder, tables of groups, failures that cost a line."""

import importlib.util
import json
import os
import struct
import subprocess
import sys

import numpy as np
import pytest
from conftest import REPOSITORY, killed_after_step_3, train
from PIL import Image

from mirg_jax.data.examples import Example, Target
from mirg_jax.data.images import ImageRoot
from mirg_jax.errors import ConfigError
from mirg_jax.runs import metrics, wandb_run
from mirg_jax.runs.settings import read_for_training
from mirg_jax.runs.wandb_run import WandbRun, WandbSettings
from mirg_jax.training import groups

wandb = pytest.importorskip("wandb", reason="needs the wandb package")


@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp_path_factory):
    monkeypatch.setenv("WANDB_MODE", "offline")
    for name in ("WANDB_DATA_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR"):
        monkeypatch.setenv(name, str(tmp_path_factory.mktemp("wandb")))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    wandb.teardown()  # its settings are read once
    yield
    wandb.teardown()


def records(data):
    """The records of wandb's file, in blocks as LevelDB's log has them; a cut one is left out."""
    assert data[:4] == b":W&B"
    place, parts = 7, []
    while place + 7 <= len(data):
        if (left := -place % 32_768) < 7 and left:
            place += left
            continue
        _, length, kind = struct.unpack_from("<IHB", data, place)
        if not kind:
            break
        parts.append(data[place + 7 : place + 7 + length])
        place += 7 + length
        if kind in (1, 4) and place <= len(data):  # whole, or the last part of one
            yield b"".join(parts)
            parts = []


def told(workdir):
    """What wandb's own files of a folder hold: for each the run's ID, name, settings, rows."""
    from wandb.proto.wandb_internal_pb2 import Record

    found = []
    for path in sorted(workdir.glob("wandb/offline-run-*/*.wandb")):
        rows, run = [], None
        for record in map(Record.FromString, records(path.read_bytes())):
            run = record.run if record.HasField("run") and run is None else run
            items = record.history.item if record.HasField("history") else ()
            row = {each.key or "/".join(each.nested_key): each.value_json for each in items}
            rows += [{key: json.loads(value) for key, value in row.items()}] if row else []
        if run is None:  # of a killed process that had not filled a block
            continue
        settings = {each.key or each.nested_key[0]: each.value_json for each in run.config.update}
        found.append((run.run_id, run.display_name, settings, rows))
    return found


def test_a_killed_and_resumed_run_is_one_run(steady_recipe, tmp_path):
    config = steady_recipe("grpo", **{"wandb.project": "tests", "checkpoint.every": 1})
    with killed_after_step_3():
        train(config, tmp_path / "run")
    wandb.teardown()  # as when the process has ended
    train(config, tmp_path / "run")
    first, second = told(tmp_path / "run")
    identity = json.loads((tmp_path / "run/wandb.json").read_text())["id"]
    assert first[0] == second[0] == identity and first[1] == second[1] == "run"
    assert json.loads(second[2]["num_steps"]) == 4
    ours = {row["step"]: row for row in metrics.read(tmp_path / "run")}
    for rows, steps in ((first[3], [1, 2]), (second[3], [1, 2, 3, 4])):
        logged = [row for row in rows if "loss" in row]
        assert [row["_step"] for row in logged[: len(steps)]] == steps
        assert all(row["loss"] == ours[row["_step"]]["loss"] for row in logged)
        assert all(row["reward"] == ours[row["_step"]]["reward"] for row in logged)
    assert first[3][0]["groups/_type"] == "table-file" and first[3][0]["groups/nrows"] == 4 * 3
    assert {"groups/path", "loss"} <= second[3][2].keys()  # one row a step
    (path, *_) = tmp_path.glob("run/wandb/offline-run-*/files/media/table/*.json")
    table = json.loads(path.read_text())
    assert table["columns"][3:5] == ["picture", "completion"] and table["data"][0][3] == "Image"


def test_what_a_killed_process_had_logged_is_logged_again(tmp_path):
    opened = f"""
import os, pathlib
from mirg_jax.runs.metrics import Metrics
from mirg_jax.runs.wandb_run import WandbSettings
folder, shown = pathlib.Path({str(tmp_path)!r}), WandbSettings("tests")
found = Metrics(folder, step=FIRST, num_steps=4, name="sft", wandb=shown)
found.open()
for step in range(FIRST + 1, LAST + 1):
    with found.phase("train"):
        pass
    found.write(step, {{"loss": 1.0 / step}}, (), {{"mfu": 0.5}})
"""
    for first, last, end in ((0, 3, "os.kill(os.getpid(), 9)"), (2, 4, "found.close()")):
        script = opened.replace("FIRST", str(first)).replace("LAST", str(last)) + end
        ended = subprocess.run(
            [sys.executable, "-c", script],
            env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
            capture_output=True,
            text=True,
        )
        assert ended.returncode == (0 if first else -9), ended.stderr
    assert len(set(path.name for path in tmp_path.glob("wandb/offline-run-*/*.wandb"))) == 1
    rows = told(tmp_path)[-1][3]
    assert [(row["_step"], row["loss"]) for row in rows] == [(n, 1 / n) for n in (1, 2, 3, 4)]
    assert {"seconds/train", "speed/mfu"} <= rows[0].keys()
    # What is closed is not logged again.
    before = metrics.read(tmp_path)
    shown = WandbRun(tmp_path, WandbSettings("tests"), stage="sft", config="", before=before)
    shown.add(5, {"loss": 0.2})
    shown.close()
    assert [row["_step"] for row in told(tmp_path)[-1][3]] == [5]


def test_another_project_is_another_run(tmp_path):
    ids = []
    for project in ("one", "one", "two"):
        shown = WandbRun(tmp_path, WandbSettings(project), stage="sft", config='{"seed": 0}')
        shown.add(1, {"loss": float("nan")})
        shown.close()
        ids.append(json.loads((tmp_path / "wandb.json").read_text())["id"])
    assert ids[0] == ids[1] != ids[2]


def test_a_missing_package_or_key_is_told_before_anything_is_loaded(
    steady_recipe, monkeypatch, tmp_path
):
    config = steady_recipe("sft", **{"wandb.project": "tests", "model.path": "/nowhere"})
    read_for_training(config, "sft")
    with monkeypatch.context() as patch:
        patch.setattr(importlib.util, "find_spec", lambda name: None)
        with pytest.raises(ConfigError, match="needs the package wandb: pip install .wandb"):
            read_for_training(config, "sft")
    monkeypatch.setenv("WANDB_MODE", "online")
    wandb.teardown()
    with pytest.raises(ConfigError, match="set WANDB_API_KEY to your key, or WANDB_MODE=offline"):
        read_for_training(config, "sft")
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    read_for_training(config, "sft")
    monkeypatch.setenv("WANDB_MODE", "sideways")
    wandb.teardown()
    with pytest.raises(ConfigError, match="wandb can't be used.*check its WANDB_"):
        read_for_training(config, "sft")


def test_without_the_setting_wandb_is_not_even_imported(steady_recipe, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)  # importing it fails
    train(steady_recipe("sft", num_steps=1), tmp_path)
    assert not (tmp_path / "wandb").exists() and not (tmp_path / "wandb.json").exists()


@pytest.mark.parametrize("failing", ["init", "log", "finish"])
def test_wandb_that_raises_costs_a_line(failing, steady_recipe, tmp_path, monkeypatch, capsys):
    def fail(*args, **kwargs):
        raise wandb.errors.CommError("the server\nhas gone")

    owner = wandb if failing == "init" else wandb.sdk.wandb_run.Run
    monkeypatch.setattr(owner, failing, fail)
    train(steady_recipe("sft", num_steps=2, **{"wandb.project": "tests"}), tmp_path)
    assert [row["step"] for row in metrics.read(tmp_path)] == [1, 2]
    line = "Weights & Biases: cannot be written (CommError: the server has gone); the run goes on"
    assert capsys.readouterr().err.count(line) == 1
    monkeypatch.undo()


def test_tables_show_targets_and_answers(tmp_path):
    Image.new("RGB", (40, 20), "blue").save(tmp_path / "a.png")
    example = Example(
        "7", "common", ("a.png",), "Which one?", (Target((100, 100, 500, 900), 1),), None
    )
    gone = Example("8", "common", ("b.png",), "Which one?", (Target((1, 1, 5, 9), 1),), None)
    text = "<think>So.</think><answer>The cup (600,100),(900,900)</answer>"
    values = {"reward": np.array([[0.0, 1.0], [0.0, 0.0]])}
    found = groups.rows([example, gone], ["no", text, "no", "no"], values, 2)
    columns, cells = groups.table([example, gone], found, ImageRoot(tmp_path))
    assert columns == ["id", "task", "question", "picture", "completion", "reward"]
    assert [(row[0], row[4], row[5]) for row in cells] == [("7", text, 1.0), ("7", "no", 0.0)]
    colours = [{colour for _, colour in row[3].getcolors(9999)} for row in cells]
    lime, red = (0, 255, 0), (255, 0, 0)
    assert lime in colours[0] and lime in colours[1] and red not in colours[1]
    assert wandb_run.check(WandbSettings()) is None
