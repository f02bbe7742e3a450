"""What README, docs, recipes and notebook name is there, and every recipe is sound."""

import importlib
import re

import pytest
from conftest import REPOSITORY

from mirg_jax.experiments import tables
from mirg_jax.runs.settings import read

RECIPES = sorted(
    path.stem
    for path in (REPOSITORY / "configs").glob("*.py")
    if path.stem != "machines" and not path.stem.startswith(("trajectories", "table"))
)
TABLES = sorted(path.stem for path in (REPOSITORY / "configs").glob("table_*.py"))
TEXTS = [
    REPOSITORY / "README.md",
    *sorted((REPOSITORY / "docs").glob("*.md")),
    *sorted((REPOSITORY / "notebooks").glob("*.ipynb")),
]


@pytest.mark.parametrize("text", TEXTS, ids=lambda path: path.name)
def test_files_that_are_named_exist(text):
    named = re.findall(
        r"\b((?:scripts|configs|mirg_jax|tests|notebooks|docs)/[\w/]+\.\w+)", text.read_text()
    )
    missing = {name for name in named if not (REPOSITORY / name).exists()}
    assert not missing
    links = re.findall(r"\]\(([\w/]+\.md)\)", text.read_text())
    assert all((text.parent / link).exists() for link in links)


def sound(config):
    """Whether a recipe can be run, as far as it can be told without a model."""
    settings = read(config)
    assert settings.model.options("cpu").attention == "xla"
    shapes = settings.data.shapes
    for sizes in (shapes.lengths, shapes.slots, shapes.patches):
        assert list(sizes) == sorted(sizes)
    return True


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_are_sound(name):
    config = importlib.import_module(f"configs.{name}").get_config()
    assert sound(config)
    if "qwen2" in name and "inference" not in name:
        # The paper's figures, whatever the machine.
        rate = {"sft": 2e-5, "grpo": 5e-6}[name.split("_")[0]] * (10 if "lora" in name else 1)
        assert config.optimizer.learning_rate == pytest.approx(rate)
        completions = config.batch_size * config.get("grpo", {"group": 1})["group"]
        assert completions == 128


@pytest.mark.parametrize("name", TABLES)
def test_rows_of_tables_are_sound(name):
    config = importlib.import_module(f"configs.{name}").get_config()
    assert all(sound(tables.recipe_of(config, row, seed=0)) for row in config.order)
