"""Published plans: their file, and their table in the documentation."""

import json

import pytest

from benchmarks import planned


def plan(**step) -> dict:
    programs = [
        {"name": "sample", "total": 3 * 2**30, "free_fraction": 0.5},
        {"name": "gradients", "total": 2**30, "free_fraction": 0.25},
    ]
    found = {"programs": programs}
    if step:
        shares = {"seconds": 8.0, "mfu": 0.5, "tokens_per_second_per_device": 1234.4}
        found |= {"step": shares | step, "run": {"hours": 0.25}}
    return found


KINDS = {"products": 6.0, "kernels": 0.1, "collectives_open": 1.0, "copies_open": 0.0}


@pytest.mark.parametrize(
    "machine, step, cells",
    [
        ("v5e:4x4", {"least": 7.0, "most": 9.04, "kinds": KINDS},
         "8.0 (7.0–9.0) | 50% | 1,234 | 0.25 | 4.0 | "
         "75% matrix products, 12% collectives in the open"),
        ("h100:8", {}, "– | – | – | – | – | –"),
        ("h100:8", {"method": "roofline"}, "≥ 8.0 | 50% | 1,234 | 0.25 | 2.0 | a roofline"),
        # Prices are of chips, of which each is two devices here.
        ("tpu7x:2x2x1", {"method": "roofline"}, "≥ 8.0 | 50% | 1,234 | 0.25 | 1.0 | a roofline"),
    ],
)  # fmt: skip
def test_a_row_has_bytes_seconds_and_costs(machine, step, cells):
    found = planned.row(f"grpo.py:big,all@{machine}", plan(**step))
    front = f"| `grpo.py:big,all` | `{machine}` | sample 3.0, gradients 1.0 | 25% | "
    assert found == f"{front}{cells} |"


def test_publishing_changes_the_file_and_the_table_alone(tmp_path, monkeypatch):
    old = {"b.py:x@h100:8": plan(), "c.py:x@h100:8": plan()}
    monkeypatch.setattr(planned, "PLANS", tmp_path / "plans.json")
    monkeypatch.setattr(planned, "PAGE", tmp_path / "page.md")
    planned.PLANS.write_text(json.dumps({"note": "kept", "plans": old}))
    planned.PAGE.write_text(f"# Before\n\n{planned.table(old)}\n| another | table |\n")
    planned.publish("a.py:x@h100:1", plan())
    planned.publish("c.py:x@h100:8", plan(method="roofline"))
    found = json.loads(planned.PLANS.read_text())
    assert found["note"] == "kept"
    assert list(found["plans"]) == ["a.py:x@h100:1", "b.py:x@h100:8", "c.py:x@h100:8"]
    table = planned.table(found["plans"])
    assert planned.PAGE.read_text() == f"# Before\n\n{table}\n| another | table |\n"
    assert "≥ 8.0" in table
