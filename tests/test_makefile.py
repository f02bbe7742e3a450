"""`make venv ACCEL=…`: which environment the targets use, and what switching does."""

import os
import re
import shutil
import subprocess
import tomllib

import pytest
from conftest import REPOSITORY


@pytest.fixture
def plan(tmp_path):
    """What make would run, in a checkout whose .venv holds these stamps."""
    for path in ("Makefile", "pyproject.toml"):
        shutil.copy(REPOSITORY / path, tmp_path)
    for path in REPOSITORY.glob("requirements*.txt"):
        shutil.copy(path, tmp_path)

    def plan(*words: str, made_for: tuple[str, ...] = ()) -> str:
        (tmp_path / ".venv").mkdir()
        for stamp in made_for:
            (tmp_path / ".venv" / f".ready-{stamp}").touch()
        command = ["make", "-n", *words]
        # As called by hand, also where make itself runs the tests.
        outside = {k: v for k, v in os.environ.items() if k != "ACCEL" and not k.startswith("MAKE")}
        result = subprocess.run(command, cwd=tmp_path, env=outside, capture_output=True, text=True)
        return result.stdout

    return plan


@pytest.mark.parametrize(("accel", "project"), [((), '"."'), (("ACCEL=tpu",), '".[tpu]"')])
def test_a_fresh_environment(plan, accel, project):
    lines = plan("venv", *accel)
    assert f"-e {project}\n" in lines and "--clear" not in lines


def test_targets_use_the_environment_that_is_there(plan):
    lines = plan("demo", "test", made_for=("cuda12", "test"))
    assert "scripts/demo.py" in lines and "pytest" in lines
    assert "pip install" not in lines and "-m venv" not in lines


def test_another_accelerator_makes_the_environment_anew(plan):
    lines = plan("test", "ACCEL=cuda13", made_for=("cuda12",))
    assert "-m venv --clear .venv" in lines and '-e ".[cuda13]"' in lines


def test_every_accelerator_is_an_extra():
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["tool"]["setuptools"]
    extras = set(project["dynamic"]["optional-dependencies"])
    named = re.findall(r"PROJECT_\w+ = \.\[(\w+)\]", (REPOSITORY / "Makefile").read_text())
    assert set(named) == {"cuda12", "cuda13", "tpu"} <= extras


@pytest.mark.parametrize(
    "target, end", [("docs", "bin/mkdocs build --strict"), ("plan", "--config= --machine= ")]
)
def test_some_targets_have_an_environment_of_their_own(plan, target, end):
    first, made, installed, *_, last = plan(target, made_for=("cpu", "test")).splitlines()
    assert f"Installing into .venv-{target} (once;" in first
    assert f"-m venv .venv-{target}" in made and f"-r requirements-{target}.txt" in installed
    assert f".venv-{target}/bin/" in last and last.endswith(end) and ".venv/" not in last


def test_help_has_a_line_for_every_target():
    text = (REPOSITORY / "Makefile").read_text()
    targets = re.search(r"^\.PHONY: (.*)", text, re.MULTILINE)[1].split()
    told = subprocess.run(["make", "help"], cwd=REPOSITORY, capture_output=True, text=True).stdout
    lines = [line.split(maxsplit=1) for line in told.splitlines() if not line.startswith("make")]
    assert [line[0] for line in lines] == targets and all(len(line) == 2 for line in lines)


def test_ci_tests_then_builds_the_site():
    lines = (REPOSITORY / ".ci/run").read_text().splitlines()
    assert lines[-2:] == ["make test", "make docs"]


@pytest.mark.parametrize(
    "words, end",
    [
        ((), ""),
        (("MODEL=qwen2_5_vl",), "_qwen2_5_vl"),
        (("MODEL=qwen3_vl",), "_qwen3_vl"),
    ],
)
def test_the_demo_takes_another_base(plan, words, end):
    lines = plan("demo", *words, made_for=("cpu",))
    assert f"--base=assets/small_base{end} " in lines and f"--workdir=runs/demo{end} " in lines
    assert (REPOSITORY / f"assets/small_base{end}" / "model.safetensors").exists()
