"""Plans: what they count, and what they refuse. The machine here is this computer's CPU."""

import importlib.util
import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import call
from jax.extend.core import jaxprs_in_params

from benchmarks import planned_prefix
from configs import grpo_tiny, sft_tiny
from mirg_jax import defaults
from mirg_jax.errors import ConfigError
from mirg_jax.inference import rows as inference_rows
from mirg_jax.models import flops, qwen2_vl, windows
from mirg_jax.models.config import ModelConfig, TextConfig, VisionConfig
from mirg_jax.planning import machines, plans, programs
from mirg_jax.runs.chips import Chip
from mirg_jax.runs.settings import read
from mirg_jax.sharding.memory import bytes_per_device
from mirg_jax.types import Images, Text

RECIPES = {"sft": sft_tiny, "grpo": grpo_tiny}


@pytest.fixture
def here(monkeypatch):
    """A machine of one device, this CPU, with as much memory as is asked for."""

    def make(gib):
        monkeypatch.setattr(machines.Machine, "devices", lambda _: jax.devices()[:1])
        return machines.Machine("here:1", Chip("cpu", gib, 1e11), "1")

    return make


def recipe(kind, tiny_model, **changes):
    config = RECIPES[kind].get_config()
    config.model.path = str(tiny_model)
    config.mesh.update(data=1, fsdp=-1)
    if kind == "grpo":
        config.batch_size = config.prompts_per_micro_batch = 4
        config.grpo.max_tokens, config.grpo.completion_lengths = 16, (16,)
    config.update_from_flattened_dict(changes)
    return read(config)


@pytest.mark.parametrize("kind, rank", [("sft", 0), ("grpo", 0), ("grpo", 4)])
def test_the_parts_add_up_to_the_compilers_own_figure(kind, rank, here, tiny_model):
    settings = recipe(kind, tiny_model, **{"lora.rank": rank})
    said = []
    plan = plans.plan(settings, here(4), said.append)
    names = [row["name"] for row in plan["programs"]]
    assert names == {"sft": [], "grpo": ["sample"]}[kind] + ["gradients", "update"]
    for row in plan["programs"]:
        assert abs(row["total"] / row["compiler"] - 1) < 0.05, row
        assert row["fits"]
    plans.require_fit(json.loads(json.dumps(plan)))
    weights = plan["programs"][-1]["parts"]["weights"]
    trained = plan["programs"][-1]["parts"]["gradients"]
    assert weights == 4 * plan["parameters"] + (trained if rank else 0)
    assert plan["programs"][-1]["parts"]["optimizer"] == pytest.approx(2 * trained, rel=0.5)
    assert len(said) >= len(names)


def test_inference_is_planned_with_its_slots(here, tiny_model, monkeypatch):
    config = sft_tiny.tiny(defaults.inference())
    config.model.path = str(tiny_model)
    found = {}
    for rows, wanted in ((4, 4), (64, 0)):
        config.evaluation.batch_size = wanted
        monkeypatch.setattr(inference_rows, "memory_of", lambda _: 1e15)
        (row,) = plans.plan(read(config), here(4), lambda _: None)["programs"]
        assert abs(row["total"] / row["compiler"] - 1) < 0.05, row
        found[rows] = row["parts"]["slots"]
    text = ModelConfig.from_folder(tiny_model).text
    tokens = config.data.shapes.lengths[-1] + config.evaluation.max_tokens
    values = 2 * 4 * text.num_layers * text.num_kv_heads * text.head_dim * tokens
    assert found[4] > 4 * values
    assert found[64] == pytest.approx(16 * found[4], rel=1e-3)


def test_a_recipe_that_is_too_large_is_refused_in_a_line(here, tiny_model):
    roomy = plans.plan(recipe("sft", tiny_model), here(4), lambda _: None)["programs"][0]
    held = (roomy["total"] - roomy["parts"]["activations"]) / 2**30
    between = (held + roomy["total"] / 2**30) / 2 / (1 - plans.FREE)
    for gib, remedy in ((held, "more devices, or --config.lora.rank"), (between, "remat=full")):
        plan = plans.plan(recipe("sft", tiny_model), here(gib), lambda _: None)
        with pytest.raises(ConfigError) as refused:
            plans.require_fit(plan)
        line = str(refused.value)
        assert "does not fit here:1: gradients needs" in line and remedy in line
        assert "\n" not in line


def test_search_takes_the_remat_that_recomputes_least(here, tiny_model):
    settings = recipe("sft", tiny_model, rows_per_micro_batch=1, batch_size=4)
    _, best = plans.search(settings, here(4), lambda _: None)
    assert (best.model.remat, best.micro_batch) == ("none", 4)


def test_search_samples_as_many_prompts_as_it_updates(here, tiny_model, monkeypatch):
    monkeypatch.setattr(plans, "measure", lambda program: plans.Report(program.name, {}, 0))
    settings = recipe("grpo", tiny_model, prompts_per_micro_batch=1)
    _, best = plans.search(settings, here(4), lambda _: None)
    assert best.micro_batch == best.sampled_prompts == 4


@pytest.mark.parametrize(
    "changes, best",
    [
        ({"sampling.prompts": 4, "batch_size": 8}, 4),  # 8 would be no part of a call's prompts
        ({"batch_size": 12}, 4),  # 8 doesn't divide a step
        ({"batch_size": 8, "sampling.prompts": 8}, 8),
    ],
)
def test_search_finds_only_what_a_run_would_take(changes, best, here, tiny_model, monkeypatch):
    monkeypatch.setattr(plans, "measure", lambda program: plans.Report(program.name, {}, 0))
    said = []
    settings = recipe("grpo", tiny_model, prompts_per_micro_batch=1, **changes)
    _, found = plans.search(settings, here(4), said.append)
    assert found.micro_batch == best
    assert f"best: --config.model.remat=none --config.prompts_per_micro_batch={best}" in said
    recipe("grpo", tiny_model, **changes | {"prompts_per_micro_batch": best})
    with pytest.raises(ConfigError, match="must be a multiple"):
        replace(found, micro_batch=5)


def test_settings_check_themselves_whatever_changes_them(tiny_model):
    settings = recipe("grpo", tiny_model)
    for part, field, value in (
        ("grpo", "prompts", 3),
        ("grpo", "completion_lengths", (8,)),
        ("model", "remat", "some"),
        ("checkpoint", "keep", -1),
    ):
        with pytest.raises(ConfigError):
            replace(settings, **{part: replace(getattr(settings, part), **{field: value})})


@pytest.mark.parametrize("changes", [{"grpo.beta": 0.0}, {"grpo.kl": "exact"}])
def test_what_is_kept_of_the_reference_is_counted(changes, here, tiny_model):
    """Without a penalty nothing is; the exact one needs hidden states and the output head."""
    settings = recipe("grpo", tiny_model, **changes)
    sizes = programs.model_config(settings.model.path).text
    plan = plans.plan(settings, here(4), lambda _: None)
    row = next(row for row in plan["programs"] if row["name"] == "gradients")
    assert abs(row["total"] / row["compiler"] - 1) < 0.05, row
    parts = row["parts"]
    head = 4 * sizes.hidden_size * sizes.vocab_size
    exact = settings.grpo.kl == "exact"
    assert parts.get("reference head", 0) == (head if exact else 0)
    assert bool(parts["reference"]) == exact
    usual = programs.programs(recipe("grpo", tiny_model), jax.devices()[:1])
    usual = next(program for program in usual if program.name == "gradients")
    values = 4 * 4 * settings.grpo.group * 16  # float32 of each token
    apart = values * sizes.hidden_size if exact else 0
    batch = bytes_per_device(usual.parts["batch"]) - values + apart
    assert parts["batch"] == batch


def test_prompts_that_the_devices_cannot_divide_are_refused(tiny_model):
    settings = recipe("grpo", tiny_model, **{"sampling.slots": 1})
    with pytest.raises(ConfigError, match="sampling.slots=1 must be multiples of 2"):
        next(programs.grpo_programs(settings, 2 * jax.devices()[:1]))


def test_whole_rows_need_more_memory_than_a_shared_prompt(here, tiny_model):
    settings = recipe("grpo", tiny_model, **{"grpo.group": 4, "data.shapes.lengths": (96,)})
    found = planned_prefix.compare(settings, here(4), lambda _: None, most=8)
    shared, repeated = (
        {row["completions_a_device"]: row for row in found[form]} for form in ("shared", "repeated")
    )
    assert list(shared) == [4, 8] and list(repeated) == [1, 2, 4, 8]
    for count, row in shared.items():
        assert row["fits"] and 2 * row["activations"] < repeated[count]["activations"]
    assert repeated[8]["peak"] > repeated[4]["peak"]


@pytest.mark.parametrize("name", ["v5e", "v9z:4x4", "v5e:4xx4", "h100:"])
def test_unknown_machines_are_refused(name):
    with pytest.raises(ConfigError, match="KIND:TOPOLOGY"):
        machines.Machine.parse(name)


def counted(jaxpr) -> float:
    """Operations of all matrix products in a program, loops as often as they run."""
    total = 0.0
    for equation in jaxpr.eqns:
        inner = jaxprs_in_params(equation.params)
        times = equation.params["length"] if equation.primitive.name == "scan" else 1
        if equation.primitive.name == "cond":  # of which each branch is taken as often
            inner, times = equation.params["branches"], 1 / len(equation.params["branches"])
            inner = [branch.jaxpr for branch in inner]
        total += times * sum(map(counted, inner))
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            depth = np.prod([equation.invars[0].aval.shape[axis] for axis in contracted])
            total += 2.0 * depth * equation.outvars[0].aval.size
    return total


TOWERS = {
    "qwen2_vl": VisionConfig(2, 32, 4, 2, 32),
    "qwen2_5_vl": VisionConfig(
        2, 32, 4, out_dim=32, mlp_dim=40, window_size=28, full_blocks=(1,)
    ),
}  # fmt: skip


@pytest.mark.parametrize("family", TOWERS)
def test_operations_by_formula_are_those_of_the_program(family):
    vision = TOWERS[family]
    config = ModelConfig(
        text=TextConfig(96, 32, 64, 3, 4, 2, mrope_section=(1, 1, 2)), vision=vision
    )
    assert config.model_type == family
    graph, params = qwen2_vl.abstract(config)
    T, S, P = 48, 2, 16

    def forward(params, text, images):
        return qwen2_vl.nnx.merge(graph, params)(text, images)

    shape = lambda *s: jax.ShapeDtypeStruct((1, *s), jnp.int32)  # noqa: E731
    text = Text(shape(T), shape(T, 3), shape(T), shape(T))
    images = Images(shape(S, P, 588), shape(S, P, 2))
    program = jax.make_jaxpr(forward)(params, text, images)
    # Short rows are one block: the plain form computes all pairs.
    formula = flops.decoder(config, T, T * T, T) + flops.tower(config, S, P)
    if vision.window:  # a window's queries look at the pieces beside it too
        formula += 4.0 * vision.embed_dim * S * P * (windows.PIECES - 1) * vision.window**2
    assert counted(program.jaxpr) == pytest.approx(formula, rel=1e-3)


@pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="needs libtpu (requirements-plan.txt)"
)
@pytest.mark.slow
def test_a_tpu_is_compiled_for(tiny_model, tmp_path):
    found = call(
        "plan",
        "--config=configs/sft_tiny.py",
        "--machine=v5e:2x2",
        f"--config.model.path={tiny_model}",
        "--config.rows_per_micro_batch=4",
        f"--output={tmp_path / 'plan.json'}",
        timeout=900,
    )
    assert found.returncode == 0, found.stderr
    assert json.loads((tmp_path / "plan.json").read_text())["programs"][0]["fits"]
