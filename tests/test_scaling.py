"""The curves of predicted time over chips."""

import json

import pytest

from benchmarks import planned, scaling


def plan(devices: int, calls: int, gradients: float, update: float) -> dict:
    seconds = calls * gradients + update
    times = {"seconds": gradients, "calls": calls}
    return {
        "step": {"seconds": seconds, "mfu": 100 / (seconds * devices)},
        "programs": [
            {"name": "gradients", "time": times},
            {"name": "update", "time": {"step_seconds": update}},
        ],
    }


PLANS = {
    "sft.py:qwen2_vl_7b,v5e_16@v5e:4x4": plan(16, 8, 1.0, 0.5),
    "sft.py:qwen2_vl_7b,v5e_32@v5e:4x8": plan(32, 4, 1.1, 0.3),
    "sft.py:qwen2_vl_7b,v5e_64@v5e:8x8": {"programs": []},  # without a time
}


def test_strong_scaling_keeps_the_steps_work():
    first, second = scaling.curve(PLANS, "sft", "v5e", "strong")
    assert (first.chips, first.seconds, first.efficiency) == (16, 8.5, 1.0)
    assert (second.chips, second.seconds) == (32, pytest.approx(4.7))
    assert second.efficiency == pytest.approx(8.5 * 16 / (4.7 * 32))


def test_weak_scaling_keeps_each_chips_work():
    first, second = scaling.curve(PLANS, "sft", "v5e", "weak")
    assert first == scaling.curve(PLANS, "sft", "v5e", "strong")[0]
    assert second.seconds == pytest.approx(8 * 1.1 + 0.3)  # of twice as many rows
    assert second.efficiency == pytest.approx(8.5 / 9.1)
    # Twice the operations of the strong step.
    assert second.mfu == pytest.approx(200 / (9.1 * 32))


def test_curves_are_written_and_drawn(tmp_path, monkeypatch, capsys):
    plans = tmp_path / "plans.json"
    plans.write_text(json.dumps({"plans": PLANS}))
    monkeypatch.setattr(planned, "PLANS", plans)
    scaling.run(tmp_path / "scaling.json")
    found = json.loads((tmp_path / "scaling.json").read_text())["curves"]
    assert list(found) == ["sft v5e strong", "sft v5e weak"]
    assert found["sft v5e weak"][1]["chips"] == 32
    assert "sft v5e strong: 16 chips 8.5 s (100%), 32 chips 4.7 s (90%)" in capsys.readouterr().out
    assert "<svg" in (tmp_path / "scaling.svg").read_text()
