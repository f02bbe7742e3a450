"""Recipes by argument: what they are put together from, and that each is sound."""

import importlib
import json

import pytest
from conftest import REPOSITORY, call
from ml_collections import ConfigDict

from benchmarks import planned
from configs import (
    grpo,
    grpo_tiny,
    inference,
    lead,
    sft,
    sft_tiny,
    table_2,
    table_3,
    trajectories,
)
from configs.machines import MACHINES, PLANNED
from configs.models import MODELS
from mirg_jax.errors import ConfigError
from mirg_jax.experiments.rows import read_rows
from mirg_jax.models.sizes import PUBLISHED
from mirg_jax.runs.settings import read

STAGES = {"sft": sft, "grpo": grpo, "inference": inference}
PLANNED_RECIPES = [(stage, argument) for stage in STAGES for argument in PLANNED[stage]]


def sound(config):
    """Whether a recipe can be run, as far as it can be told without a model."""
    settings = read(config)
    assert settings.model.attention == "auto"
    shapes = settings.data.shapes
    for sizes in (shapes.lengths, shapes.slots, shapes.patches):
        assert list(sizes) == sorted(sizes)
    return True


@pytest.mark.parametrize("config", [sft_tiny, grpo_tiny], ids=lambda config: config.__name__)
def test_tiny_recipes_are_sound(config):
    assert sound(config.get_config())


@pytest.mark.parametrize(("stage", "argument"), PLANNED_RECIPES)
def test_planned_recipes_are_sound_and_say_nothing(stage, argument, capsys):
    config = STAGES[stage].get_config(argument)
    assert capsys.readouterr().err == ""
    assert sound(config)
    model, machine = argument.split(",")[:2]
    assert config.model.path == MODELS[model]
    heads = PUBLISHED[config.model.path].text.num_kv_heads
    assert heads % config.sampling.tensor == 0
    assert MACHINES[machine].devices % config.sampling.tensor == 0
    assert bool(config.lora.rank) == argument.endswith(",lora")
    if stage != "inference":
        # The paper's figures, whatever the machine.
        rate = {"sft": 2e-5, "grpo": 5e-6}[stage] * (10 if config.lora.rank else 1)
        assert config.optimizer.learning_rate == pytest.approx(rate)
        completions = config.batch_size * config.get("grpo", {"group": 1})["group"]
        assert completions == 128


@pytest.mark.parametrize("model", ["qwen2_vl_7b", "qwen2_5_vl_7b"])
@pytest.mark.parametrize("machine", ["gpu_8", "v6e_8", "gpu_1,lora"])
def test_recipes_of_those_who_lead_are_sound(model, machine, capsys):
    config = lead.get_config(f"{model},{machine}")
    assert sound(config)
    said = capsys.readouterr().err
    assert ("was never planned" in said) == (f"{model},{machine}" not in PLANNED["lead"])
    plain = grpo.get_config(f"{model},{machine}")
    assert config.model.path == plain.model.path
    assert config.optimizer.learning_rate == pytest.approx(plain.optimizer.learning_rate / 5)
    settings = read(config)
    assert settings.examples_at_once == 48 and settings.grpo.group == 16
    assert settings.num_steps * 48 >= 7000 > (settings.num_steps - 1) * 48


def test_planned_recipes_are_those_with_a_plan():
    plans = json.loads(planned.PLANS.read_text())["plans"]
    found = {name.partition("@")[0] for name in plans}
    told = [(stage, argument) for stage, chosen in PLANNED.items() for argument in chosen]
    assert found == {f"{stage}.py:{argument}" for stage, argument in told}
    for stage, argument in told:
        plan = plans[f"{stage}.py:{argument}@{MACHINES[argument.split(',')[1]].plan}"]
        assert all(program["fits"] for program in plan["programs"])


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("model", MODELS)
def test_any_model_and_machine_compose(model, machine, stage, capsys):
    argument = f"{model},{machine}"
    config = STAGES[stage].get_config(argument)
    assert sound(config)
    assert config.sampling.tensor <= PUBLISHED[config.model.path].text.num_kv_heads
    said = capsys.readouterr().err
    if argument in PLANNED[stage]:
        assert not said
    else:
        plan = f"make plan CONFIG=configs/{stage}.py:{argument} MACHINE={MACHINES[machine].plan}\n"
        assert plan in said and said.count("\n") == 1


def test_what_is_left_out_is_the_papers(capsys):
    for stage in ("sft", "grpo"):
        whole = STAGES[stage].get_config("qwen2_vl_7b,gpu_8").to_dict()
        assert STAGES[stage].get_config().to_dict() == whole
        assert STAGES[stage].get_config("qwen2_vl_7b").to_dict() == whole
        named = importlib.import_module(f"configs.{stage}_qwen2_vl_7b")
        assert named.get_config().to_dict() == whole
    assert inference.get_config().model.path == MODELS["qwen2_vl_72b"]
    assert not capsys.readouterr().err


def fields(config, prefix=""):
    for name, value in config.items():
        if isinstance(value, ConfigDict):
            yield from fields(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def changed(one: str, other: str) -> set[str]:
    one, other = (dict(fields(grpo.get_config(argument))) for argument in (one, other))
    return {name for name in one | other if one.get(name) != other.get(name)}


def test_a_word_changes_only_what_is_its():
    assert changed("qwen2_vl_7b,gpu_8", "qwen2_5_vl_7b,gpu_8") == {"model.path"}
    # Weights are shared by no more chips than there are key/value heads.
    two = {"model.path", "sampling.tensor"}
    assert changed("qwen2_vl_7b,v5e_16", "qwen2_5_vl_3b,v5e_16") == two
    rows = {"logprob_chunk", "prompts_per_micro_batch"}
    assert changed("qwen2_vl_7b,gpu_8", "qwen2_vl_7b,gpu_1") == rows
    adapters = {"model.param_dtype", "optimizer.learning_rate", "lora.rank", "lora.alpha"}
    assert changed("qwen2_vl_7b,gpu_1", "qwen2_vl_7b,gpu_1,lora") == adapters


@pytest.mark.parametrize(
    ("stage", "argument", "message"),
    [
        ("sft", "qwen2_vl_8b,gpu_8", "configs/sft.py: no model 'qwen2_vl_8b'; there are qwen2_vl"),
        ("grpo", "qwen2_vl_7b,v5e_17", "configs/grpo.py: no machine 'v5e_17'; there are gpu_8, "),
        ("grpo", "qwen2_vl_7b,gpu_1,qlora", "no 'qlora' after the machine; give MODEL,MACHINE"),
        ("sft", "qwen2_vl_7b,gpu_1,lora,x", "no 'lora,x' after the machine"),
        ("inference", "qwen2_vl_72b,v5p_8,lora", "no 'lora' after the machine"),
        ("sft", "", "no model ''"),
    ],
)
def test_other_names_are_refused(stage, argument, message):
    with pytest.raises(ConfigError) as refused:
        STAGES[stage].get_config(argument)
    assert message in str(refused.value)


def test_a_binary_answers_a_wrong_name_in_one_line(tmp_path):
    flags = (f"--workdir={tmp_path}", "--config.num_steps=3")
    result = call("train_grpo", "--config=configs/grpo.py:qwen2_vl_7b,v5e_17", *flags)
    assert result.returncode == 2
    assert result.stderr == (
        f"train_grpo.py: configs/grpo.py: no machine 'v5e_17'; there are {', '.join(MACHINES)}\n"
    )


def test_a_binary_says_once_that_a_recipe_was_never_planned(tmp_path, refusal, capsys):
    flags = (f"--workdir={tmp_path}", "--config.num_steps=3")
    recipe = f"{REPOSITORY}/configs/grpo.py:qwen2_vl_2b,v5p_8"
    assert "data.train_json is not set" in refusal("train_grpo", f"--config={recipe}", *flags)
    (said,) = capsys.readouterr().err.splitlines()
    assert "make plan CONFIG=configs/grpo.py:qwen2_vl_2b,v5p_8 MACHINE=v5p:2x2x2" in said


@pytest.mark.parametrize(
    ("table", "scale"), [(table, scale) for table in (table_2, table_3) for scale in table.SCALES]
)
def test_rows_of_tables_are_sound(table, scale, capsys):
    config = table.get_config(scale)
    assert all(sound(row.recipe) for row in read_rows(config))
    assert not capsys.readouterr().err


@pytest.mark.parametrize("source", trajectories.SOURCES)
def test_trajectories_have_a_teacher_for_each_stage(source):
    config = trajectories.get_config(source)
    teachers = {name: stage.teacher for name, stage in config.stages.items()}
    others = "scenes" if source == "scenes" else "openai"
    second = "model" if source == "local" else others
    assert teachers == {"reasoning": others, "mapping": second, "reassembly": others}
    if source == "local":
        assert sound(config.stages.mapping.recipe)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (table_2, "configs/table_2.py: no scale 'x'; there are 7b, tiny"),
        (table_3, "configs/table_3.py: no scale 'x'; there are qwen2_vl_7b, tiny"),
        (trajectories, "trajectories.py: no source 'x'; there are mgrounding, local, scenes"),
    ],
)
def test_other_tables_and_trajectories_are_refused(config, message):
    with pytest.raises(ConfigError, match=message):
        config.get_config("x")
