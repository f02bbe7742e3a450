"""What README, docs and notebooks name is there: files, links and recipes."""

import importlib
import json
import re

import pytest
from conftest import REPOSITORY

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


def composed(file, argument, capsys) -> dict:
    """The config of an argument, which must be one that was planned."""
    config = importlib.import_module(f"configs.{file}").get_config(argument)
    assert not capsys.readouterr().err
    return config.to_dict()


@pytest.mark.parametrize("text", TEXTS, ids=lambda path: path.name)
def test_arguments_of_configs_that_are_named_compose(text, capsys):
    for file, argument in re.findall(r"\b(\w+)\.py:(\w[\w,]*)", text.read_text()):
        composed(file, argument, capsys)
    # In tables and variables the argument stands alone, for both stages.
    for argument in re.findall(r"(?:`|RECIPE=)(qwen2\w+,[\w,]+)\b", text.read_text()):
        for stage in ("sft", "grpo"):
            composed(stage, argument, capsys)


def test_the_plans_are_told_as_they_were_made():
    """The table of docs/machines.md beside benchmarks/results/plans.json."""
    text = (REPOSITORY / "docs/machines.md").read_text()
    told = re.findall(r"^\| `(\w+\.py:\S+)` \| `(\S+)` \| (sample|gradients)", text, re.MULTILINE)
    plans = json.loads((REPOSITORY / "benchmarks/results/plans.json").read_text())["plans"]
    assert sorted(f"{recipe}@{machine}" for recipe, machine, _ in told) == sorted(plans)
