"""The image, without an engine to build it: its steps are run in a plain folder, pip's left out."""

import fnmatch
import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys

import pytest
from conftest import REPOSITORY

EXTRAS = ("cuda12", "cuda13", "tpu")


def steps() -> list[tuple[str, str]]:
    """Instructions of the Dockerfile and their arguments."""
    text = (REPOSITORY / "docker/Dockerfile").read_text()
    lines = [line for line in text.replace("\\\n", " ").splitlines() if line.strip()]
    return [tuple(line.split(None, 1)) for line in lines if not line.startswith("#")]


def context() -> set[str]:
    """What .dockerignore leaves of the top level."""
    lines = (REPOSITORY / ".dockerignore").read_text().splitlines()
    patterns = [line[1:] for line in lines if line.startswith("!")]
    assert lines[1] == "*"
    names = {path.name for path in REPOSITORY.iterdir()}
    for pattern in patterns:
        assert any(fnmatch.fnmatch(name, pattern) for name in names), f"{pattern} matches nothing"
    return {name for name in names if any(fnmatch.fnmatch(name, p) for p in patterns)}


def test_only_known_instructions_in_order():
    names = [name for name, _ in steps()]
    assert names == ["FROM", "ARG", "WORKDIR", "COPY", "RUN", "COPY", "RUN", "ENV", "CMD"]
    image = dict(steps())["FROM"]
    assert re.fullmatch(r"python:3\.1[12]-slim", image)


@pytest.mark.parametrize("accelerator", EXTRAS)
def test_every_accelerator_has_its_requirements(accelerator):
    (install, project) = (shlex.split(argument) for name, argument in steps() if name == "RUN")
    files = [word.replace("${ACCEL}", accelerator) for word in install if word.endswith(".txt")]
    assert files == ["requirements.txt", f"requirements-{accelerator}.txt"]
    first = next(argument for name, argument in steps() if name == "COPY")
    assert set(files) <= set(first.split()) and set(first.split()[:-1]) <= context()
    assert project == ["pip", "install", "--no-cache-dir", "--no-deps", "-e", "."]


@pytest.mark.parametrize(
    "command",
    [
        ["scripts/demo.py", "--help"],  # imports all that train_grpo.py does
        pytest.param(["scripts/train_grpo.py", "--help"], marks=pytest.mark.slow),
    ],
)
def test_what_is_copied_is_enough(command, tmp_path):
    ignore = shutil.ignore_patterns("__pycache__")
    for name in context():
        path = REPOSITORY / name
        if path.is_dir():
            shutil.copytree(path, tmp_path / name, ignore=ignore)
        else:
            shutil.copy(path, tmp_path)
    env = {**os.environ, "PYTHONPATH": str(tmp_path)}
    found = subprocess.run(
        [sys.executable, *command], cwd=tmp_path, env=env, capture_output=True, text=True
    )
    assert "--workdir" in found.stdout, found.stderr
    where = [sys.executable, "-c", "import configs, mirg_jax; print(mirg_jax.__file__)"]
    told = subprocess.run(where, cwd=tmp_path, env=env, capture_output=True, text=True).stdout
    assert pathlib.Path(told.strip()).is_relative_to(tmp_path)
