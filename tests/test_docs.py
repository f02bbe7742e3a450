"""What README, docs and notebooks name is there: files, links and recipes."""

import importlib
import json
import re

import pytest
from conftest import REPOSITORY

from benchmarks import planned

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
        if (REPOSITORY / f"configs/{file}.py").exists():  # others are a user's own rewards
            composed(file, argument, capsys)
    # In tables and variables the argument stands alone, for both stages.
    for argument in re.findall(r"(?:`|RECIPE=)(qwen2\w+,[\w,]+)\b", text.read_text()):
        for stage in ("sft", "grpo"):
            composed(stage, argument, capsys)


def test_guides_have_one_name_for_each_file_of_rows():
    names = set()
    for guide in ("gpu_node", "tpu_vm", "tpu_pod", "colab"):
        text = (REPOSITORY / f"docs/{guide}.md").read_text()
        names |= set(re.findall(r"train_json=\S*?(\w+\.\w+)[\s\"`]", text))
    text = (REPOSITORY / "docs/data.md").read_text()
    made = re.findall(r"^cp \S+ data/(\S+)", text, re.MULTILINE)
    assert names == set(made) == {"grounded.jsonl", "rl.jsonl"}


def test_predicted_sampling_is_told_as_it_was_found():
    text = " ".join((REPOSITORY / "docs/machines.md").read_text().split())
    plans = json.loads(planned.PLANS.read_text())["plans"]
    programs = plans["grpo.py:qwen2_vl_7b,v5e_16@v5e:4x4"]["programs"]
    (sample,) = (program for program in programs if program["name"] == "sample")
    time = sample["time"]
    whole, decoding, kinds = time["seconds"], time["decoding"], time["kinds"]
    assert f"{whole:.2f} s ({time['least']:.2f}–{time['most']:.2f})" in text
    assert f"{decoding['tokens_per_second_per_device']:,.0f} tokens/s a chip" in text
    assert f"{100 * decoding['hbm_fraction']:.0f} % of HBM's bandwidth" in text
    assert f"Copies in the open are {100 * kinds['copies_open'] / whole:.0f} %" in text
    assert f"all-reduces {100 * kinds['collectives_open'] / whole:.0f} %" in text


def test_the_plans_are_told_as_they_were_made():
    """The table of docs/machines.md beside benchmarks/results/plans.json."""
    plans = json.loads(planned.PLANS.read_text())["plans"]
    assert f"\n\n{planned.table(plans)}\n" in planned.PAGE.read_text()
