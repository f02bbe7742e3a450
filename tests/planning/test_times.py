"""How long programs, steps and runs take: sums by hand, rooflines, and what is told."""

import json
from dataclasses import replace
from types import SimpleNamespace

import jax
import pytest
from test_planning import here as here  # a fixture
from test_planning import recipe

from mirg_jax.planning import machines, operations, plans, programs, times
from mirg_jax.planning.machines import Machine
from mirg_jax.planning.schedule import Account, Moved, Place, Trips
from mirg_jax.planning.times import ProgramTime
from mirg_jax.runs.chips import Chip
from mirg_jax.sampling.config import SamplingConfig

V5E = Machine.parse("v5e:4x4")
PEAK = 16 * 197e12


def account(seconds, place, **more):
    return Account(
        seconds=seconds,
        least=0.9 * seconds,
        most=1.2 * seconds,
        core={"products": 0.6 * seconds, "rest": 0.2 * seconds},
        moved={
            "all-gather": Moved(hidden=0.3 * seconds, open=0.1 * seconds),
            "all-reduce": Moved(open=0.05 * seconds),
            "copy": Moved(hidden=0.02 * seconds, open=0.05 * seconds),
        },
        places=[Place("products", place, 0.5 * seconds, 2e12, 3)],
        **more,
    )


def test_a_step_is_the_sum_of_its_programs(tiny_model):
    settings = recipe("grpo", tiny_model)
    gradients = ProgramTime("gradients", 4, account(2.0, "a.py:1 a"), 0.3 * 8 * PEAK, "schedule")
    decoding = {"decoding": 2.5, "decoding_traffic": 819e9}
    sample = account(3.0, "b.py:2 b", **decoding)
    sample = ProgramTime("sample", 1, sample, 0.1 * 3 * PEAK, "schedule")
    first = times.values(sample, settings, V5E, 16)
    assert first["mfu"] == pytest.approx(0.1)
    assert first["decoding"]["hbm_fraction"] == pytest.approx(0.4)
    new = settings.batch_size * settings.grpo.group * settings.grpo.max_tokens
    rate = first["decoding"]["tokens_per_second_per_device"]
    assert rate == pytest.approx(new / 3 / 16)
    kinds = {
        "products": 1.8, "kernels": 0.0, "rest": 0.6, "collectives_open": 0.45,
        "collectives_hidden": 0.9, "copies_open": 0.15, "copies_hidden": 0.06,
    }  # fmt: skip
    assert first["kinds"] == pytest.approx(kinds)

    step = times.of_step([sample, gradients], settings, V5E, 16)
    assert step["programs"] == {"sample": 3.0, "gradients": 8.0} and step["seconds"] == 11
    assert (step["least"], step["most"]) == pytest.approx((9.9, 13.2))
    assert step["mfu"] == pytest.approx((0.3 * 8 + 0.1 * 3) / 11)
    assert step["kinds"]["products"] == pytest.approx(0.6 * 11)
    seen = settings.batch_size * settings.data.shapes.lengths[-1] + new
    assert step["tokens_per_second_per_device"] == pytest.approx(seen / 11 / 16)
    dearest = [(p["program"], p["source"], p["seconds"], p["times"]) for p in step["dearest"]]
    assert dearest == [("gradients", "a.py:1 a", 4.0, 12), ("sample", "b.py:2 b", 1.5, 3)]
    told = "\n".join(times.step_lines(step, 197e12))
    assert "11 s (9.9 to 13.2)" in told and "gradients: products, 1% of the peak" in told
    assert "collectives 15% open (3.3 s hidden)" in told

    run = times.of_run(step, 360, 16, None)
    assert run == {"steps": 360, "hours": pytest.approx(1.1)}
    run = times.of_run(step, 360, 16, 1.5)
    assert run["dollars"] == pytest.approx(1.1 * 16 * 1.5)
    line = times.run_line(run, times.SCHEDULE)
    assert line.startswith("a run of 360 steps: 1.1 hours, 26.4 dollars at 1.5 a chip and hour;")
    assert "steps: at least 1.1 hours, 26.4 dollars" in times.run_line(run, times.ROOFLINE)


@pytest.mark.parametrize("kind, freeze", [("sft", ()), ("grpo", ()), ("grpo", ("visual",))])
def test_the_programs_operations_are_the_steps(kind, freeze, tiny_model):
    settings = recipe(kind, tiny_model, freeze=freeze)
    parts, phases = operations.by_program(settings), operations.by_phase(settings)
    assert sum(parts.values()) == pytest.approx(sum(phases.values()))
    assert ("tower" in parts) == bool(freeze)
    assert all(value > 0 for value in parts.values())
    if kind == "grpo":
        assert operations.prefilling(settings) < parts["sample"]


@pytest.mark.parametrize(
    "prompts, slots, longest, trips",
    [
        (4, 0, 1024, Trips(steps=512)),  # two stages
        (4, 4, 128, Trips(steps=32)),  # four
        (16, 4, 1000, Trips(steps=1000, refills=12, between=250)),
    ],
)
def test_decoding_goes_on_to_the_longest_length(prompts, slots, longest, trips):
    options = SamplingConfig(slots=slots, max_tokens=longest)
    assert programs.decoding_trips(prompts, options) == trips


def test_without_a_schedule_a_plan_has_rooflines_and_says_so(here, tiny_model):
    said = []
    machine, settings = here(4), recipe("sft", tiny_model, **{"model.remat": "full"})
    plan = json.loads(json.dumps(plans.plan(settings, machine, said.append, price=2.0)))
    gradients, update = (row["time"] for row in plan["programs"])
    calls = -(-settings.batch_size // settings.micro_batch)
    assert gradients["method"] == update["method"] == plan["step"]["method"] == "roofline"
    assert gradients["calls"] == calls and update["calls"] == 1
    # At the peak, with the forward pass computed again.
    counted = sum(plan["operations"].values())
    assert gradients["step_seconds"] == pytest.approx(counted * 4 / 3 / 1e11)
    assert gradients["mfu"] == pytest.approx(0.75)
    parts = plan["programs"][1]["parts"]
    moved = 2 * (parts["weights"] + parts["optimizer"]) + parts["gradients"]
    assert update["seconds"] == pytest.approx(moved / machines.SPEEDS["here"].hbm, rel=0.1)
    whole = plan["step"]["seconds"]
    assert whole == pytest.approx(gradients["step_seconds"] + update["step_seconds"])
    assert plan["run"]["hours"] == pytest.approx(settings.num_steps * whole / 3600)
    assert plan["run"]["dollars"] == pytest.approx(2 * plan["run"]["hours"])
    assert any("by a roofline" in line for line in said)
    assert not any("of the peak" in line for line in said)


def test_a_newer_compilers_text_leaves_a_plan_of_memory(here, tiny_model, monkeypatch):
    said = []
    machine = here(4)._replace(kind=Chip("tpu", 4, 1e11))
    monkeypatch.setitem(machines.SPEEDS, "here", machines.Speeds(1e9, 1e9, 1e9, clock=1e9))
    plan = plans.plan(recipe("sft", tiny_model), machine, said.append)
    assert all(row["fits"] and "time" not in row for row in plan["programs"])
    assert "step" not in plan and "run" not in plan
    assert sum("no estimated_cycles" in line for line in said) == 2


@pytest.mark.parametrize("slots, rounds", [(0, 1), (2, 2)])
def test_decodings_roofline_reads_weights_and_cache_at_each_step(slots, rounds, here, tiny_model):
    machine = Machine("h100:1", Chip("cuda", 80, 1e18), "1")
    settings = recipe("grpo", tiny_model)
    settings = replace(settings, grpo=replace(settings.grpo, slots=slots))
    found = list(programs.programs(settings, jax.devices()[:1]))
    program = next(program for program in found if program.name == "sample")
    time = times.of_program(program, SimpleNamespace(), settings, machine)
    weights = program.arguments[1]
    read = sum(
        4 * leaf.size
        for name in weights
        if name not in ("visual", *(("embed_tokens",) if "lm_head" in weights else ()))
        for leaf in jax.tree.leaves(weights[name])
    )
    steps = rounds * settings.grpo.max_tokens
    cache = program.parts["cache"].size * 4
    least, most = (steps * (read + part * cache) / 3350e9 for part in (0.5, 1.0))
    assert least < time.account.decoding < most
    assert time.account.seconds == pytest.approx(time.account.decoding, rel=0.01)


def test_every_machine_has_its_speeds():
    assert set(machines.SPEEDS) == set(machines.KINDS)
    for name, speeds in machines.SPEEDS.items():
        assert bool(speeds.clock) == (machines.KINDS[name].platform == "tpu")
        assert speeds.link < speeds.hbm < machines.KINDS[name].flops
