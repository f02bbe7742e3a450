"""The benchmark compares like with like, and says what it measured."""

import json

import pytest
from conftest import call

from benchmarks import (
    answers,
    compose,
    growth,
    grpo_step,
    input_pipeline,
    shared_prefix,
    side_by_side,
    slots,
    vision,
    weights,
)
from benchmarks.group import Size
from configs import grpo_tiny, sft_tiny
from mirg_jax.models.config import ModelConfig


def test_ways_take_turns_and_ratios_are_paired(tmp_path, monkeypatch, capsys):
    now, order = [0.0], []
    monkeypatch.setattr(side_by_side.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(side_by_side.time, "sleep", lambda _: None)

    def way(name, seconds):
        def run():
            order.append(name)
            now[0] += seconds

        return run

    phases = side_by_side.Phases({"first": {"ours": 1e9, "theirs": 2e9}})

    def in_phases(name, seconds):
        run = way(name, seconds)

        def timed():
            with phases("first", name):
                run()

        return timed

    variant = side_by_side.Variant(
        "two rows",
        {"ours": in_phases("ours", 2), "theirs": in_phases("theirs", 3)},
        {"runs": lambda: len(order)},
        {"ours": 2e9, "theirs": 5e9},
        phases=phases,
    )
    side_by_side.run("case", [variant], 3, tmp_path / "new" / "case.json")
    assert order == ["ours"] * 2 + ["theirs"] * 2 + ["ours", "theirs"] * 3
    result = json.loads((tmp_path / "new" / "case.json").read_text())
    measured = result["variants"]["two rows"]
    assert measured["seconds"]["theirs"] == {"median": 3, "min": 3, "max": 3}
    ratio = {"median": 1.5, "min": 1.5, "max": 1.5}
    assert measured["theirs_over_ours"] == ratio | {"counted": 2.5} and measured["runs"] == 10
    assert measured["phases"]["first"]["theirs_over_ours"] == ratio | {"counted": 2}
    assert {"case", "command", "device", "versions", "repeats"} <= result.keys()
    assert "theirs_over_ours 1.50, of 2.50 counted" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("case", ["sft_step", "generate"])
def test_both_sides_do_the_same_work(case, tmp_path):
    result = call("benchmark", f"--case={case}", "--repeats=1", f"--output_dir={tmp_path}")
    assert result.returncode == 0, result.stderr
    for variant in json.loads((tmp_path / f"{case}.json").read_text())["variants"].values():
        if case == "generate":
            assert variant["equal_tokens"] == 1
        else:
            losses = list(variant["first_loss"].values())
            assert losses[1:] == pytest.approx(losses[:1] * 2, rel=1e-5)


def measured(case, function, tmp_path):
    """The variants of a case, each way run once after its warm-ups."""
    side_by_side.run(case, function, 1, tmp_path / "case.json")
    return list(json.loads((tmp_path / "case.json").read_text())["variants"].values())


@pytest.fixture
def one_device(monkeypatch):
    """JAX's devices can't be divided any more once a test has used them."""
    config = grpo_tiny.get_config()
    config.cpu_devices = 0
    monkeypatch.setattr(grpo_tiny, "get_config", lambda: config)


SMALL = Size(prompts=2, group=2, length=8, images=2, side=4)
FORMS = {"shared", "repeated", "transformers"}


@pytest.mark.slow
def test_updates_and_rollouts_are_the_same_work(tiny_model, one_device, tmp_path):
    (update,) = measured("update", shared_prefix.grpo_update(tiny_model, SMALL), tmp_path)
    assert list(update["loss"].values()) == pytest.approx([update["loss"]["shared"]] * 5, rel=1e-5)
    assert update["gradient_difference"] < 1e-4
    assert update["transformers_over_shared_none"].keys() >= {"median", "counted"}
    for variant in measured("rollout", shared_prefix.rollout(tiny_model, SMALL), tmp_path):
        assert variant["equal_tokens"] == 1 and variant["seconds"].keys() == FORMS


@pytest.mark.slow
def test_slots_given_back_sample_the_same(tiny_model, one_device, tmp_path):
    size = SMALL._replace(prompts=6, length=24)
    (found,) = measured("slots", slots.slots(tiny_model, size), tmp_path)
    assert found["equal_lengths"] == 1 and 1 < found["mean_length"] < 24
    assert found["steps_at_once"] <= found["steps_in_turn"]


@pytest.mark.slow
def test_towers_see_the_same(tiny_model, one_device, tmp_path):
    forward, both = measured("vision", vision.vision(tiny_model, SMALL), tmp_path)
    assert forward["difference"] < 1e-4
    for variant in (forward, both):
        assert variant["repeated_over_once"]["counted"] == SMALL.group
        assert variant["pixel_bytes"]["transformers_once"] == 8 * variant["pixel_bytes"]["once"]


@pytest.mark.slow
def test_towers_of_larger_images(tmp_path):
    windowed, _, full = measured("area", vision.area("", sides=(8, 32)), tmp_path)
    assert windowed["1024 patches_over_64 patches"]["counted"] == pytest.approx(16)
    assert full["1024 patches_over_64 patches"]["counted"] > 18
    held = [variant["temporary_bytes"]["1024 patches"] for variant in (windowed, full)]
    assert held[0] < held[1] / 2


@pytest.mark.slow
def test_steps_are_the_same_work(tiny_model, one_device, tmp_path):
    (step,) = measured("step", grpo_step.grpo_step(tiny_model, SMALL), tmp_path)
    expected = dict.fromkeys(FORMS, pytest.approx(step["expected_first_loss"], rel=1e-4))
    assert step["first_loss"] == expected
    for phase in ("rollout", "reference", "update"):
        assert step["phases"][phase]["repeated_over_shared"]["counted"] > 1


@pytest.mark.slow
def test_growth_is_plotted(tiny_model, one_device, tmp_path):
    path = tmp_path / "growth.json"
    growth.run(tiny_model, 1, path, size=SMALL, completions=(2, 3), images=(1, 2))
    variants = json.loads(path.read_text())["variants"].values()
    assert [(v["group"], v["images"]) for v in variants] == [(2, 2), (3, 2), (2, 1)]
    assert "completions a prompt" in path.with_suffix(".svg").read_text()


@pytest.mark.slow
def test_both_pipelines_read_the_same_pixels(tmp_path):
    case = input_pipeline.input_pipeline("", sizes={"small": ((100, 75), (75, 100))}, files=8)
    for variant in measured("pipeline", case, tmp_path):
        assert variant["difference"] < 1e-6
        held = variant["pixel_bytes"]
        assert held["transformers"] == 8 * held["mirg_jax"] > 0
        assert variant["images_a_second"]["mirg_jax"] > 0


@pytest.mark.slow
def test_weights_go_in_and_out_on_both_sides(tiny_model, tmp_path):
    weights.run(1, tmp_path / "weights.json", ModelConfig.from_folder(tiny_model))
    result = json.loads((tmp_path / "weights.json").read_text())
    assert len(result["ways"]) == len(weights.WAYS)
    assert all(way["peak_bytes"]["median"] > 1e7 for way in result["ways"].values())
    assert len(result["theirs_over_ours"]) == len(weights.PAIRS)


@pytest.mark.slow
def test_answers_of_slots_and_batches_are_the_same(tmp_path, monkeypatch):
    config = sft_tiny.get_config()
    config.cpu_devices = 0
    config.evaluation.update(batch_size=4, max_tokens=60)
    monkeypatch.setattr(sft_tiny, "get_config", lambda: config)
    (found,) = measured("answers", answers.answers(config.model.path, 24), tmp_path)
    assert found["equal_texts"] == 1 and found["longest"] <= 60
    assert found["tokens"] / 4 <= found["steps"]["slots"] < found["steps"]["batches"]


@pytest.mark.slow
def test_killed_runs_that_compose_are_compared(tmp_path):
    compose.run(1, tmp_path / "compose.json", photos=400, examples=600)
    found = json.loads((tmp_path / "compose.json").read_text())
    assert sum(found["examples"].values()) + found["repeated"] == 600
    assert found["files_compared"] > 300 and len(found["killed_while"]) == 5
    assert found["examples_a_cpu_second"]["median"] > 0
