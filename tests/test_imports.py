"""The directions of imports that keep the subpackages apart (docs/architecture.md)."""

import ast

import pytest
from conftest import REPOSITORY

PACKAGE = REPOSITORY / "mirg_jax"
# What each subpackage may import of ours, besides itself, `types` and `errors`. They are in the
# order of their layers: none imports one that is below it in this table.
ALLOWED = {
    "types": set(),
    "errors": set(),
    "files": set(),
    "grounding": set(),
    "rl": set(),
    "data": {"files", "grounding", "rl"},
    "sharding": {"files"},
    "models": {"sharding"},
    "weights": {"files", "models"},
    "sampling": {"models", "rl", "sharding"},
    "scenes": {"data", "grounding", "models", "rl"},
    "chat": {"data", "files", "grounding"},
    "defaults": set(),
    "runs": {"data", "defaults", "files", "models", "rl", "sharding", "weights"},
    "inference": {"data", "files", "grounding", "models", "runs", "sampling", "sharding"},
    "mig_bench": {"data", "files", "grounding"},
    "training": {
        "data", "files", "grounding", "inference", "mig_bench", "models", "rl", "runs",
        "sampling", "sharding",
    },
    "report": {"data", "files", "grounding", "mig_bench", "runs"},
    "compose": {"data", "files", "grounding", "report"},
    "published": {"files"},
    "evaluation": {
        "chat", "data", "files", "inference", "mig_bench", "report", "runs", "sharding",
    },
    "trajectories": {
        "chat", "data", "files", "grounding", "inference", "mig_bench", "report", "runs", "scenes",
    },
    "planning": {"data", "inference", "models", "runs", "sampling", "sharding", "training"},
    "experiments": {
        "evaluation", "files", "grounding", "mig_bench", "report", "runs", "scenes", "training",
        "trajectories",
    },
    "data_check": {
        "data", "files", "grounding", "mig_bench", "models", "report", "runs",
        "sharding", "training",
    },
    "doctor": {
        "data", "defaults", "files", "mig_bench", "models", "planning", "runs", "scenes",
        "sharding", "training", "weights",
    },
    "cli": {"data", "files"},
}  # fmt: skip
ANYWHERE = {"types", "errors"}


def imports_of(path):
    """The subpackages that a file of the package imports."""
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            if name.startswith("mirg_jax."):
                yield name.split(".")[1]


def files_of(room):
    folder = PACKAGE / room
    return sorted(folder.rglob("*.py")) if folder.is_dir() else [folder.with_suffix(".py")]


def test_every_room_is_in_the_table():
    rooms = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or path.is_dir()}
    assert rooms - {"__init__", "__pycache__"} == set(ALLOWED)


@pytest.mark.parametrize("room", ALLOWED)
def test_rooms_import_only_what_the_table_allows(room):
    for file in files_of(room):
        wrong = set(imports_of(file)) - ALLOWED[room] - {room} - ANYWHERE
        assert not wrong, f"{file.relative_to(REPOSITORY)} imports {', '.join(sorted(wrong))}"


def test_no_arrow_goes_up():
    above = list(ALLOWED)
    for number, room in enumerate(above):
        assert not ALLOWED[room] & set(above[number:]), room


def test_the_table_allows_nothing_that_is_not_used():
    for room, allowed in ALLOWED.items():
        used = {name for file in files_of(room) for name in imports_of(file)}
        assert allowed <= used, (room, allowed - used)
