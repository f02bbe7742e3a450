"""`make venv ACCEL=…`: which environment the targets use, and what switching does."""

import os
import shutil
import subprocess

import pytest
from conftest import REPOSITORY


@pytest.fixture
def plan(tmp_path):
    """What make would run, in a checkout whose .venv holds these stamps."""
    for name in ("Makefile", "requirements.txt", "requirements-test.txt", "pyproject.toml"):
        shutil.copy(REPOSITORY / name, tmp_path)

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


@pytest.mark.parametrize(("accel", "jax"), [((), '"jax"'), (("ACCEL=tpu",), '"jax[tpu]"')])
def test_a_fresh_environment(plan, accel, jax):
    lines = plan("venv", *accel)
    assert f"{jax} -e ." in lines and "--clear" not in lines


def test_targets_use_the_environment_that_is_there(plan):
    lines = plan("demo", "test", made_for=("cuda12", "test"))
    assert "scripts/demo.py" in lines and "pytest" in lines
    assert "pip install" not in lines and "-m venv" not in lines


def test_another_accelerator_makes_the_environment_anew(plan):
    lines = plan("test", "ACCEL=cuda13", made_for=("cuda12",))
    assert "-m venv --clear .venv" in lines and '"jax[cuda13]" -e .' in lines


@pytest.mark.parametrize("words, end", [((), ""), (("MODEL=qwen2_5_vl",), "_qwen2_5_vl")])
def test_the_demo_takes_another_base(plan, words, end):
    lines = plan("demo", *words, made_for=("cpu",))
    assert f"--base=assets/small_base{end} " in lines and f"--workdir=runs/demo{end} " in lines
    assert (REPOSITORY / f"assets/small_base{end}" / "model.safetensors").exists()
