"""The benchmark compares like with like, and says what it measured."""

import json

import pytest
from conftest import call

from benchmarks import side_by_side, weights
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

    variant = side_by_side.Variant(
        "two rows",
        {"ours": way("ours", 2), "theirs": way("theirs", 3)},
        {"runs": lambda: len(order)},
    )
    side_by_side.run("case", [variant], 3, tmp_path / "new" / "case.json")
    assert order == ["ours"] * 2 + ["theirs"] * 2 + ["ours", "theirs"] * 3
    result = json.loads((tmp_path / "new" / "case.json").read_text())
    measured = result["variants"]["two rows"]
    assert measured["seconds"]["theirs"] == {"median": 3, "min": 3, "max": 3}
    assert measured["theirs_over_ours"]["median"] == 1.5 and measured["runs"] == 10
    assert {"case", "command", "device", "versions", "repeats"} <= result.keys()
    assert "theirs_over_ours 1.50" in capsys.readouterr().out


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


@pytest.mark.slow
def test_weights_go_in_and_out_on_both_sides(tiny_model, tmp_path):
    weights.run(1, tmp_path / "weights.json", ModelConfig.from_folder(tiny_model))
    result = json.loads((tmp_path / "weights.json").read_text())
    assert len(result["ways"]) == len(weights.WAYS)
    assert all(way["peak_bytes"]["median"] > 1e7 for way in result["ways"].values())
    assert len(result["theirs_over_ours"]) == len(weights.PAIRS)
