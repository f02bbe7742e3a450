"""The directions of imports that keep the rooms apart (docs/architecture.md)."""

import ast

import pytest
from conftest import REPOSITORY

PACKAGE = REPOSITORY / "mirg_jax"
# What each room may import of ours; itself always.
ALLOWED = {
    "types": set(),
    "errors": set(),
    "grounding": set(),
    "data": {"grounding", "types", "errors"},
    "models": {"types", "errors", "sharding"},
    "weights": {"models", "errors"},
    "sharding": set(),
    "processes": {"errors"},
    "rl": set(),
    "sampling": {"models", "rl", "sharding", "types"},
    "chat": {"data", "errors", "grounding"},
    "trajectories": {"chat", "data", "errors", "evaluation", "grounding", "training"},
    "small_base": {"data", "grounding", "models", "rl", "types"},
}


def imports_of(path):
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            if name.startswith("mirg_jax."):
                yield name.split(".")[1]


@pytest.mark.parametrize("room", ALLOWED)
def test_rooms_import_only_what_lies_below(room):
    folder = PACKAGE / room
    files = sorted(folder.glob("*.py")) if folder.is_dir() else [folder.with_suffix(".py")]
    assert files
    for file in files:
        wrong = set(imports_of(file)) - ALLOWED[room] - {room}
        assert not wrong, f"{file.relative_to(REPOSITORY)} imports {', '.join(sorted(wrong))}"


def test_rl_and_rope_are_leaves():
    assert not set(imports_of(PACKAGE / "models/rope.py"))
