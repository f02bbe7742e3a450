"""Plans: what they count, and what they refuse. The machine here is this computer's CPU."""

import importlib.util
import json
import types
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_families
from conftest import REPOSITORY, call
from jax.extend.core import jaxprs_in_params

from benchmarks import planned_prefix
from configs import grpo_tiny, sft_tiny
from mirg_jax import defaults
from mirg_jax.errors import ConfigError
from mirg_jax.inference import rows as inference_rows
from mirg_jax.models import flops, qwen2_vl, windows
from mirg_jax.models.config import ModelConfig
from mirg_jax.planning import machines, operations, plans, programs, schedule, shapes, times
from mirg_jax.runs.chips import Chip
from mirg_jax.runs.settings import read
from mirg_jax.sharding.memory import HOST, bytes_per_device
from mirg_jax.types import Images, Text

RECIPES = {"sft": sft_tiny, "grpo": grpo_tiny}


@pytest.fixture
def here(monkeypatch):
    """A machine of one device, this CPU, with as much memory as is asked for."""

    def make(gib):
        monkeypatch.setattr(machines.Machine, "devices", lambda _: jax.devices()[:1])
        monkeypatch.setitem(machines.SPEEDS, "here", machines.Speeds(1e10, 1e9, 1e9))
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


@pytest.mark.parametrize(
    "kind, rank, before",
    [
        ("sft", 0, []),
        ("grpo", 0, ["sample", "reference"]),  # the tower is trained here
        ("grpo", 4, ["tower", "sample", "reference"]),
    ],
)
def test_the_parts_add_up_to_the_compilers_own_figure(kind, rank, before, here, tiny_model):
    settings = recipe(kind, tiny_model, **{"lora.rank": rank})
    said = []
    plan = plans.plan(settings, here(4), said.append)
    names = [row["name"] for row in plan["programs"]]
    assert names == before + ["gradients", "update"]
    for row in plan["programs"]:
        assert abs(row["total"] / row["compiler"] - 1) < 0.05, row
        assert row["fits"]
    plans.require_fit(json.loads(json.dumps(plan)))
    weights = plan["programs"][-1]["parts"]["weights"]
    trained = plan["programs"][-1]["parts"]["gradients"]
    assert weights == 4 * plan["parameters"] + (trained if rank else 0)
    assert plan["programs"][-1]["parts"]["optimizer"] == pytest.approx(2 * trained, rel=0.5)
    assert len(said) >= len(names)


def test_moments_on_the_host_take_memory_in_the_update_alone(here, tiny_model):
    both = [
        plans.plan(recipe("sft", tiny_model, **{"optimizer.on_host": on_host}), here(4), str)
        for on_host in (False, True)
    ]
    (before, update), (after, again) = (plan["programs"] for plan in both)
    assert again["parts"] == update["parts"] and update["parts"]["optimizer"] > 10**5
    assert 0 < after["parts"].pop("optimizer") < 100  # the count of updates
    moments = before["parts"].pop("optimizer")
    assert after["parts"] == before["parts"]
    assert before["total"] - after["total"] == pytest.approx(moments, rel=0.01)


@pytest.mark.parametrize("kind", RECIPES)
def test_no_program_is_given_moments_on_the_host(kind, here, tiny_model):
    """TPU's compiler would count them as if they were on the devices."""
    settings = recipe(kind, tiny_model, **{"optimizer.on_host": True})
    for program in programs.programs(settings, here(4).devices()):
        kinds = {leaf.sharding.memory_kind for leaf in jax.tree.leaves(program.arguments)}
        assert HOST not in kinds, program.name


def test_a_programs_own_code_is_counted():
    memory = types.SimpleNamespace(
        output_size_in_bytes=40,
        alias_size_in_bytes=0,
        argument_size_in_bytes=100,
        temp_size_in_bytes=7,
        generated_code_size_in_bytes=1000,
    )
    given = jnp.ones(25)
    function = types.SimpleNamespace(memory_analysis=lambda: memory)
    function.lower = function.compile = lambda *_: function
    parts = {"weights": given, "batch": jnp.ones(10)}
    mesh = jax.make_mesh((1,), ("data",))
    report = plans.measure(programs.Program("sample", mesh, function, (given,), parts))
    assert report.parts == {"weights": 100, "batch": 40, "activations": 7, "code": 1000}
    assert report.total == report.compiler == 1147


def test_the_other_programs_code_lies_beside_each():
    reports = [
        plans.Report(n, {"batch": 10, "code": size}, 12 + size) for n, size in (("a", 3), ("b", 5))
    ]
    first, second = plans.with_all_code(reports)
    assert first.parts == {"batch": 10, "code": 3, "other code": 5} and first.compiler == 20
    assert second.parts == {"batch": 10, "code": 5, "other code": 3} and second.total == 18
    refused = plans.Report("sample", {"batch": 10}, 0, "needs too much")
    assert plans.with_all_code([refused, *reports])[0].parts["other code"] == 8


def test_what_lies_beside_a_rollouts_own_programs(here, tiny_model):
    """The sampler's weights, the other parts of a call's images, the last step's experiences."""
    changes = {"model.compute_dtype": "bfloat16", "freeze": ("visual",)}
    changes |= {"sampling.prompts": 4, "prompts_per_micro_batch": 2}
    plan = plans.plan(recipe("grpo", tiny_model, **changes), here(4), lambda _: None)
    rows = {row["name"]: row["parts"] for row in plan["programs"]}
    assert list(rows)[:4] == ["weights", "tower", "sample", "reference"]
    always = {name: rows["gradients"][name] for name in ("weights", "optimizer", "reference")}
    for name in ("weights", "tower", "sample"):
        assert {part: rows[name][part] for part in always} == always
        assert rows[name]["experiences"] == rows["gradients"]["batch"]
        assert rows[name]["sampling weights"] == rows["weights"]["sampling weights"]
    count = plan["parameters"]
    assert rows["weights"]["weights"] == 4 * count
    # Norms and patch kernels, which are many here, aren't cast.
    assert 2 * count <= rows["weights"]["sampling weights"] < 3 * count
    for row in plan["programs"]:
        assert abs(row["total"] / row["compiler"] - 1) < 0.05, row
    calls = {row["name"]: row["time"]["calls"] for row in plan["programs"]}
    assert calls == {
        "weights": 1, "tower": 2, "sample": 1, "reference": 2, "gradients": 2, "update": 1
    }  # fmt: skip


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


def test_search_takes_what_is_predicted_to_be_fastest(here, tiny_model, monkeypatch):
    predicted = {("none", 1): 4.0, ("none", 2): 3.0, ("none", 4): 5.0, ("full", 2): 2.5}

    def of_program(program, compiled, settings, machine):
        taken = predicted.get((settings.model.remat, settings.micro_batch), 9.0)
        account = schedule.Account(seconds=taken, least=taken, most=taken)
        return times.ProgramTime(program.name, 1, account, 0.0, times.SCHEDULE)

    monkeypatch.setattr(times, "of_program", of_program)
    settings = recipe("sft", tiny_model, rows_per_micro_batch=1, batch_size=4)
    said = []
    _, best = plans.search(settings, here(4), said.append)
    assert (best.model.remat, best.micro_batch) == ("full", 2)
    assert "best: --config.model.remat=full --config.rows_per_micro_batch=2" in said


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
    sizes = shapes.model_config(settings.model.path).text
    plan = plans.plan(settings, here(4), lambda _: None)
    row = next(row for row in plan["programs"] if row["name"] == "gradients")
    assert abs(row["total"] / row["compiler"] - 1) < 0.05, row
    parts = row["parts"]
    head = 4 * sizes.hidden_size * sizes.vocab_size
    exact = settings.grpo.kl == "exact"
    names = [row["name"] for row in plan["programs"]]
    assert ("reference" in names) == exact
    assert parts.get("reference head", 0) == (head if exact else 0)
    assert bool(parts["reference"]) == exact
    usual = programs.programs(recipe("grpo", tiny_model), jax.devices()[:1])
    usual = next(program for program in usual if program.name == "gradients")
    values = 4 * 4 * settings.grpo.group * 16  # float32 of each token
    apart = values * sizes.hidden_size if exact else 0
    batch = bytes_per_device(usual.parts["batch"]) - values + apart
    assert parts["batch"] == batch


def test_a_pool_is_sampled_and_lies_beside_the_last_call(tiny_model):
    """Of what is sampled only a step's share is learned from, in mini-batches."""
    changes = {"freeze": ("visual",), "sampling.prompts": 4, "prompts_per_micro_batch": 2}
    changes |= {"grpo.order": "reward", "grpo.mini_batches": 2, "grpo.gate": (0.0,)}
    found = {}
    for pool, rounds in ((1, 1), (3, 1), (1, 2)):
        more = {"grpo.pool": pool, "grpo.max_rounds": rounds}
        settings = recipe("grpo", tiny_model, **changes, **more)
        planned = {p.name: p for p in programs.programs(settings, jax.devices()[:1])}
        calls = {name: program.calls for name, program in planned.items()}
        assert calls == {
            "tower": 2 * pool, "sample": pool, "reference": 2, "gradients": 2, "update": 2
        }  # fmt: skip
        beside = planned["sample"].parts
        learned = bytes_per_device(beside["experiences"])
        found[pool, rounds] = bytes_per_device(beside.get("pool", ())), learned
        assert "pool" not in planned["gradients"].parts and "pool" not in planned["reference"].parts
        counted = operations.by_phase(settings)
        assert counted["rollout"] == pool * operations.by_phase(replace_pool(settings))["rollout"]
        assert counted["update"] == operations.by_phase(replace_pool(settings))["update"]
    values = 4 * 4 * settings.grpo.group * 16  # the reference's, which come later
    assert found[1, 1][0] == 0
    assert found[3, 1][0] == 2 * found[1, 2][0] == 2 * (found[1, 1][1] - values)
    assert len({learned for _, learned in found.values()}) == 1
    at_once = recipe("grpo", tiny_model, **changes | {"grpo.pool": 2, "sampling.prompts": 8})
    assert at_once.sampled_prompts == at_once.examples_at_once == 2 * at_once.batch_size
    with pytest.raises(ConfigError, match="and divide batch_size=4 times grpo.pool=2"):
        recipe("grpo", tiny_model, **changes | {"grpo.pool": 2, "sampling.prompts": 6})


def replace_pool(settings):
    return replace(settings, grpo=replace(settings.grpo, pool=1))


def test_prompts_that_the_devices_cannot_divide_are_refused(tiny_model):
    settings = recipe("grpo", tiny_model, **{"sampling.slots": 1})
    with pytest.raises(ConfigError, match="sampling.slots=1 must be multiples of 2"):
        next(programs.grpo_programs(settings, 2 * jax.devices()[:1]))


@pytest.mark.slow
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


@pytest.mark.parametrize("family", small_families.TOWERS)
def test_operations_by_formula_are_those_of_the_program(family):
    config = small_families.config(family, 96, layers=3)
    vision = config.vision
    graph, params = qwen2_vl.abstract(config)
    T, S, P = 48, 2, 16

    def forward(params, text, images):
        return qwen2_vl.nnx.merge(graph, params)(text, images)

    shape = lambda *s: jax.ShapeDtypeStruct((1, *s), jnp.int32)  # noqa: E731
    text = Text(shape(T), shape(T, 3), shape(T), shape(T))
    images = Images(shape(S, P, small_families.patch_bytes(config)), shape(S, P, 2))
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
        "--price=2",
        timeout=900,
    )
    assert found.returncode == 0, found.stderr
    plan = json.loads((tmp_path / "plan.json").read_text())
    assert plan["programs"][0]["fits"]
    step, run = plan["step"], plan["run"]
    assert step["method"] == "schedule" and 0 < step["least"] <= step["seconds"]
    times = [row["time"] for row in plan["programs"]]
    assert step["seconds"] == pytest.approx(sum(time["step_seconds"] for time in times))
    assert not any(time["unknown"] for time in times)
    open_ = sum(step["kinds"][kind] for kind in step["kinds"] if "hidden" not in kind)
    assert open_ == pytest.approx(step["seconds"], rel=1e-3)
    assert len(step["dearest"]) == 10 and 0 < step["mfu"] < 1
    assert run["dollars"] == pytest.approx(2 * 4 * run["hours"])
    assert "a run of" in found.stdout


@pytest.mark.parametrize(
    ("recipe", "flags", "message"),
    [
        ("sft_tiny.py", ["--repeated"], "compares GRPO's updates, and --config is for sft; give"),
        ("grpo_tiny.py", ["--repeated", "--search"], "are two plans; give one of them"),
        ("inference.py:qwen2_vl_72b,v5p_8", ["--search"], "--config is for inference; leave it"),
    ],
)
def test_a_search_that_a_recipe_has_nothing_for_is_refused(recipe, flags, message, refusal):
    config = f"--config={REPOSITORY}/configs/{recipe}"
    assert message in refusal("plan", config, "--machine=v5p:2x2x2", *flags)
