"""Every recipe's layout, scaled down to eight devices, computes what one device does."""

import json
import os
import subprocess
import sys

import pytest
import small_families
from conftest import REPOSITORY

# data, fsdp, tensor; sampling.tensor; adapters instead of all weights.
LAYOUTS = {
    "8 x 80 GB": (1, 8, 1, 1, False),
    "slices whose sampling weights are shared": (1, 8, 1, 4, False),
    "all three axes": (2, 2, 2, 2, False),
    "sampling's parts across those of training": (1, 4, 2, 4, False),
    "more parts than key/value heads": (1, 2, 4, 8, False),
    "adapters, a base on each device": (8, 1, 1, 1, True),
    "adapters, a base divided": (1, 4, 2, 2, True),
}
FAMILIES = tuple(small_families.TOWERS)
ALL = {(layout, family): [*LAYOUTS[layout], family] for layout in LAYOUTS for family in FAMILIES}
QUICK = (
    ("all three axes", "qwen2_5_vl"),
    ("sampling's parts across those of training", "qwen3_vl"),
)


def differences(names) -> dict[tuple[str, str], dict[str, float]]:
    found = subprocess.run(
        [sys.executable, "tests/on_mesh.py", json.dumps([ALL[name] for name in names])],
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY), "JAX_PLATFORMS": "cpu"},
        timeout=1800,
    )
    assert found.returncode == 0, found.stderr[-3000:]
    rows = [json.loads(line) for line in found.stdout.splitlines()]
    return dict(zip(names, rows, strict=True))


def check(names):
    for layout, row in differences(names).items():
        assert row.pop("tokens") == row.pop("fed") == 0, layout
        assert all(difference < 1e-5 for difference in row.values()), (layout, row)


def test_a_mesh_computes_what_one_device_does():
    check(QUICK)


@pytest.mark.slow
def test_other_layouts_do_too():
    check([name for name in ALL if name not in QUICK])
