"""Tables of experiments: what their rows are, what is run, and what is said of it."""

import dataclasses
import json

import numpy as np
import pytest
from bench_rows import rows_of
from conftest import REPOSITORY, scalars
from PIL import Image

from configs import (
    studies,
    table_2,
    table_3,
    tables,
)
from mirg_jax.errors import ConfigError
from mirg_jax.experiments import figures, rows
from mirg_jax.experiments import tables as experiments
from mirg_jax.mig_bench import intervals, scoring


def test_the_rows_of_table_3():
    config = table_3.get_config("tiny")
    by_name = {row.name: row for row in rows.read(config).rows}
    trained = {name: (row.data, row.start) for name, row in by_name.items()}
    assert trained == {
        "base": ("", ""),
        "rl": ("rl", ""),
        "sft": ("bbox_caption", ""),
        "sft_rl": ("rl", "sft"),
        "reasoning": ("reasoning", ""),
        "reasoning_rl": ("rl", "reasoning"),
        "grounded": ("grounded", ""),
        "grounded_rl": ("rl", "grounded"),
        "grounded_rl_no_image": ("rl", "grounded"),
    }
    weights = {
        name: row.recipe.grpo.rewards.image for name, row in by_name.items() if row.data == "rl"
    }
    assert {name for name, weight in weights.items() if weight} == {"grounded_rl"}
    assert by_name["rl"].recipe_of(seed=3).seed == 3
    # Nothing but the data, the start and the reward differs between rows.
    first, last = (by_name[name].recipe_of(0) for name in ("rl", "grounded_rl"))
    first.grpo.rewards.image = 1.0
    assert first.to_dict() == last.to_dict()


def test_every_row_of_the_papers_tables_has_its_figures():
    for config in (table_2.get_config("7b"), table_3.get_config("qwen2_vl_7b")):
        for name, row in config.rows.items():
            assert len(row.paper) == (0 if name == "grounded_rl_no_image" else 3), name


def test_what_cannot_be_run_is_said_before_anything_is():
    config = table_3.get_config("tiny")
    config.order = ("grounded_rl",)
    with pytest.raises(ConfigError, match="'grounded' is no row before it"):
        rows.read(config)
    for order in ((), ("base", "base")):
        config.order = order
        with pytest.raises(ConfigError, match="name at least one row, and none twice"):
            rows.read(config)
    config.order = ("base", "mine")
    with pytest.raises(ConfigError, match="no row 'mine'"):
        rows.read(config)
    config.order = ("base", "rl")
    config.rows.rl.changes = {"grpo": {"more_rewards": ("none.py:f",)}}
    with pytest.raises(ConfigError, match=r"^rows.rl: rewards: 'none.py:f': there is no file"):
        rows.read(config)
    config.order = ("base",)
    config.rows.base.changes = {"no_such_field": 1}
    with pytest.raises(ConfigError, match="rows.base.changes"):
        rows.read(config)
    with pytest.raises(ConfigError, match="config.data.benchmark is not set"):
        rows.read(table_3.get_config("qwen2_vl_7b"))


def scores(hits):
    items = [
        {"task": task, "question": "Where?", "images": ["a.jpg"], "answer": [0.1, 0.1, 0.5, 0.5]}
        for task in ("diff", "region")
        for _ in hits
    ]
    found = scoring.score(rows_of(items), ["<answer>(100,100),(500,500)</answer>"] * len(items))
    marked = [
        dataclasses.replace(row, hit=bool(hit))
        for row, hit in zip(found.rows, [*hits, *hits], strict=True)
    ]
    return dataclasses.replace(found, rows=tuple(marked), average=float(np.mean(hits)))


def test_what_a_table_says():
    config = table_3.get_config("tiny")
    results = {name: {} for name in config.order}
    results["base"] = {1: scores([0, 0, 1, 1]), 2: scores([0, 0, 0, 1])}
    results["rl"] = {1: scores([0, 1, 1, 1])}
    results["sft"] = {1: scores([1, 0, 1, 1]), 2: scores([1, 1, 1, 1])}
    results["sft_rl"] = {1: scores([1, 1, 1, 1]), 2: scores([1, 1, 1, 0])}
    found = figures.to_json(config.title, rows.read(config).rows, results)
    table = json.loads(json.dumps(found))
    assert "gain" not in table["rows"]["base"]
    gains = {name: table["rows"][name]["gain"] for name in ("rl", "sft", "sft_rl")}
    assert {name: gain["over"] for name, gain in gains.items()} == {
        "rl": "base",
        "sft": "base",
        "sft_rl": "sft",
    }
    assert table["rows"]["sft_rl"]["seeds"]["2"]["hits"] == "ee"  # two tasks of four questions
    assert gains["rl"]["mean"] == pytest.approx(1 / 4)  # of the seed that it has
    assert gains["sft"]["mean"] == pytest.approx(4 / 8)
    assert gains["sft_rl"]["mean"] == pytest.approx(0)
    assert gains["sft_rl"]["low_95"] < 0 < gains["sft_rl"]["high_95"]
    for seed, rate in (("1", 0.5), ("2", 0.0)):
        table["rows"]["base"]["seeds"][seed]["by_task"] = {"region": 1.0, "diff": rate}
        table["rows"]["base"]["seeds"][seed]["hit_iou"] = rate + 0.25
    lines = figures.to_markdown(table).splitlines()
    assert len(lines) == 2 * (2 + 4) + 1  # rows that weren't run are left out
    assert "| 37.5 (25.0 to 50.0) |" in lines[2] and "34.29, 26.79, 29.04" in lines[2]
    assert "| 75.0 |" in lines[3]
    # In the benchmark's columns.
    assert lines[7] == "| | Static | Region | AVE | IoU of hits |"
    assert lines[8] == "| --- | --- | --- | --- | --- |"
    assert lines[9] == "| base | 25.0 | 100.0 | 37.5 | 50.0 |"


def test_a_gain_is_over_the_row_s_own_base():
    config = table_2.get_config("tiny")
    results = {name: {1: scores([0, 1])} for name in config.order}
    found = figures.to_json(config.title, rows.read(config).rows, results)["rows"]
    assert {name: row["gain"]["over"] for name, row in found.items() if "gain" in row} == {
        "sft_0": "base_0",
        "grpo_0": "sft_0",
        "sft_1": "base_1",
        "grpo_1": "sft_1",
    }


def test_a_gain_may_be_over_another_row():
    config = studies.get_config("options")
    results = {name: {1: scores([0, 1])} for name in config.order}
    found = figures.to_json(config.title, rows.read(config).rows, results)["rows"]
    over = {name: row["gain"]["over"] for name, row in found.items() if "gain" in row}
    options = {name: option[-1] for name, option in studies.OPTIONS.items()}
    assert over == {"sft_200": "base", "grpo": "sft_200"} | options
    assert {name for name, row in options.items() if row == "large"} == {"gspo", "cispo", "sapo"}
    config.rows.dapo.against = "mine"
    with pytest.raises(ConfigError, match="rows.dapo.against='mine' is no row"):
        rows.read(config)


def bits(seed, name):
    found = np.unpackbits(np.frombuffer(bytes.fromhex(seed[name]), np.uint8))
    return found[: seed["n"]]


@pytest.mark.parametrize(
    "path",
    sorted((REPOSITORY / "benchmarks/results").glob("*_tiny.json")),
    ids=lambda path: path.stem,
)
def test_published_figures_follow_from_the_hits(path):
    found = json.loads(path.read_text())["rows"]
    for name, row in found.items():
        if not all("hits" in seed for seed in row["seeds"].values()):
            continue  # by an earlier version
        for seed in row["seeds"].values():
            assert bits(seed, "hits").mean() == pytest.approx(seed["acc"], abs=1e-4), name
            named = bits(seed, "right_images").mean()
            assert named == pytest.approx(seed["image_acc"], abs=1e-4), name
        if gain := row.get("gain"):
            over = found[gain["over"]]["seeds"]
            after, before = (
                np.concatenate([bits(side[seed], "hits") for seed in row["seeds"]])
                for side in (row["seeds"], over)
            )
            interval = intervals.paired_bootstrap(after, before)
            wanted = gain["mean"], gain["low_95"], gain["high_95"]
            assert tuple(interval) == pytest.approx(wanted, abs=1e-4), name


@pytest.mark.parametrize("study", studies.STUDIES)
def test_rows_of_a_study_sample_equally_much_and_of_ten_tasks(study):
    config = studies.get_config(study)
    table = rows.read(config)
    assert table.tasks == "all" and table.scenes["evaluation"] == 1000
    sampled = set()
    for row in table.rows:
        recipe = row.recipe_of(0)
        if row.data == "rl":
            count = recipe.batch_size * recipe.grpo.pool * recipe.num_steps
            if recipe.grpo.max_rounds > 1:  # of as many, if some steps sample again
                assert count < studies.PROMPTS < count * recipe.grpo.max_rounds
                count = studies.PROMPTS
            if row.name == "pool_steps":
                assert recipe.num_steps == config.recipes.grpo.num_steps
                count //= recipe.grpo.pool
            sampled.add((count, recipe.grpo.group))
        assert row.annotator in table.annotators
    assert len(sampled) == 1
    if study == "data":
        starts = {row.name: row.start for row in table.rows if row.start}
        assert starts == {f"rl_{size}": f"sft_{size}" for size in studies.SIZES}
        for size in studies.SIZES:
            annotator = table.annotators[f"first_{size}"]
            assert (annotator.select.sft, annotator.scenes.error) == (size, 0.1)
    if study == "image":
        over = {row.name: row.against for row in table.rows if row.against}
        assert over == {"with": "without", "gated_with": "gated_without"}


def small(recipe):
    """Table 3 on a random model and a few scenes."""
    stages = {kind: recipe(kind, num_steps=2) for kind in ("sft", "grpo")}
    for stage in stages.values():
        stage.evaluation.max_tokens = 12
        stage.evaluation.batch_size = 8
    config = tables.scenes(table_3.rows_of(**stages), sft=14, rl=14, evaluation=14)
    config.order = ("base", "grounded", "grounded_rl_no_image")
    return config


@pytest.mark.slow
def test_rows_are_trained_one_from_the_other_and_not_again(recipe, tmp_path, monkeypatch, capsys):
    config = small(recipe)
    table_of = rows.read(config)
    first = experiments.run(table_of, tmp_path, [4])
    assert capsys.readouterr().err.count("the annotator is imprecise on purpose") == 1
    run = tmp_path / "seed_4"
    trained = {
        name: json.loads((run / name / "config.json").read_text()) for name in config.order[1:]
    }
    assert trained["grounded"]["data"]["train_json"].endswith("annotated/grounded.jsonl")
    assert trained["grounded"]["seed"] == 4 and not trained["grounded"]["init_from"]
    assert trained["grounded_rl_no_image"]["init_from"] == str(run / "grounded")
    assert trained["grounded_rl_no_image"]["grpo"]["rewards"]["image"] == 0
    assert (
        json.loads((run / "base/eval/run.json").read_text())["model"]
        == config.recipes.sft.model.path
    )
    table = json.loads((tmp_path / "table.json").read_text())
    assert [name for name, row in table["rows"].items() if row["seeds"]] == list(config.order)
    learned = {
        name: row["seeds"]["4"].get("training")
        for name, row in table["rows"].items()
        if row["seeds"]
    }
    steps = scalars(run / "grounded_rl_no_image")
    assert learned["base"] is learned["grounded"] is None
    for name in ("zero_spread_fraction", "clip_fraction", "cut_fraction", "logprob_diff"):
        mean = np.mean([step[name] for step in steps])
        assert learned["grounded_rl_no_image"][name] == pytest.approx(mean, rel=1e-6), name

    def never(*args, **kwargs):
        raise AssertionError("it was done before")

    for what in ("sft.train", "grpo.train", "write_dataset", "build.build"):
        monkeypatch.setattr(f"mirg_jax.experiments.tables.{what}", never)
    monkeypatch.setattr("mirg_jax.evaluation.answering.Predictor.open", never)
    again = experiments.run(table_of, tmp_path, [4])
    assert again == first

    # Nothing is kept that was made with other settings.
    def refused(message, **changes):
        other = config.copy_and_resolve_references()
        other.update_from_flattened_dict(changes)
        with pytest.raises(ConfigError, match=message):
            experiments.run(rows.read(other), tmp_path, [4])

    refused("learning_rate was", **{"recipes.sft.optimizer.learning_rate": 0.5})
    refused("grpo.beta was", **{"recipes.grpo.grpo.beta": 0.5})
    refused("num_steps was 2, is 3", **{"recipes.grpo.num_steps": 3})
    refused("evaluation was 14, is 21", **{"scenes.evaluation": 21})
    refused('tasks was "training", is "all"', **{"scenes.tasks": "all"})
    refused("scenes.error was", **{"annotators.annotated.scenes.error": 0.9})
    same = config.copy_and_resolve_references()
    same.update_from_flattened_dict({"recipes.sft.checkpoint.every": 7})
    assert experiments.run(rows.read(same), tmp_path, [4]) == first
    data = run / "scenes/rl.json"
    whole = data.read_text()
    data.write_text(whole + "\n")
    refused("train_json_sha256 was")
    data.write_text(whole)
    refused("grpo.rewards.object_gated was null", **{"recipes.grpo.grpo.rewards.object_gated": 1.0})
    # Evaluations tell other images, as those of evaluate.py do.
    picture = next((run / "scenes/images").glob("eval_*"))
    whole = picture.read_bytes()
    Image.new("RGB", (56, 56)).save(picture)
    refused("the images of . answered rows have changed")
    picture.write_bytes(whole)
    # As an earlier version left it, too.
    for record in run.rglob("made_with.json"):
        record.unlink()
    assert experiments.run(table_of, tmp_path, [4]) == first
    refused("learning_rate was", **{"recipes.sft.optimizer.learning_rate": 0.5})
    refused("evaluation was 14, is 21", **{"scenes.evaluation": 21})


def test_table_as_a_user_runs_it(tmp_path, refusal):
    recipe, folder = f"--config={REPOSITORY}/configs/table_3.py", f"--workdir={tmp_path}"
    assert "--seeds=x: give integers" in refusal("table", f"{recipe}:tiny", folder, "--seeds=x")
    twice = refusal("table", f"{recipe}:tiny", folder, "--seeds=1,1")
    assert "--seeds=1,1: give each seed once" in twice
    line = refusal("table", f"{recipe}:qwen2_vl_7b", folder)
    assert "is not set" in line and "\n" not in line


def test_a_wrong_model_is_told_before_anything_is_made(tmp_path, refusal):
    (tmp_path / "empty").mkdir()
    options = (f"--base={tmp_path / 'empty'}", f"--workdir={tmp_path / 'demo'}")
    assert "no config.json" in refusal("demo", *options)
    assert not (tmp_path / "demo").exists()


def test_table_2_has_three_rows_a_model():
    config = table_2.get_config("tiny")
    assert list(config.order) == ["base_0", "sft_0", "grpo_0", "base_1", "sft_1", "grpo_1"]
    assert list(config.rows.grpo_1.paper) == [56.15, 60.22, 59.00]
    assert config.rows.grpo_1.start == "sft_1" and config.rows.sft_1.data == "reasoning"
    paths = [row.recipe.model.path for row in rows.read(config).rows]
    assert paths == 3 * ["assets/small_base"] + 3 * ["assets/small_base_qwen2_5_vl"]
    large = table_2.get_config("7b")
    speaks = {row.name: row.recipe.evaluation.coordinates for row in rows.read_rows(large)}
    assert [name for name, how in speaks.items() if how == "pixels"] == ["base_1"]
