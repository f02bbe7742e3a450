"""The doctor in several processes, as on the hosts of a pod."""

import os
import subprocess
import sys

import pytest
import together
from conftest import REPOSITORY


def outputs(started: list[subprocess.Popen]) -> list[tuple[int, list[str]]]:
    """Status and lines of each process."""
    try:
        said = [process.communicate(timeout=1800)[0] for process in started]
    finally:
        for process in started:
            process.kill()
    told = [[line for line in out.splitlines() if not line.startswith("[Gloo]")] for out in said]
    return [(p.returncode, lines) for p, lines in zip(started, told, strict=True)]


@pytest.mark.slow
def test_two_processes_are_told_as_one(tiny_model, scenes, tmp_path):
    flags = together.recipe("grpo", tiny_model, scenes)
    workdir = tmp_path / "run"
    started = together.launch("doctor", *flags, f"--workdir={workdir}", "--patience=1200", count=2)
    (first, lines), (second, silent) = outputs(started)
    assert (first, second, silent) == (0, 0, []), lines
    assert lines[-1] == "problems: 0, warnings: 0; ready to run"
    assert any("2 × cpu (cpu) in 2 processes" in line for line in lines)
    assert any("4 examples a step, 2 shares read" in line for line in lines)
    assert any("log-probs differ by" in line for line in lines)
    assert not workdir.exists()


@pytest.mark.slow
def test_a_workdir_on_one_host_only_is_a_problem(tiny_model, scenes, tmp_path):
    flags = together.recipe("sft", tiny_model, scenes)
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    started = together.launch(
        "doctor",
        *flags,
        f"--workdir={tmp_path}/one",
        "--patience=1200",
        count=2,
        last=[f"--workdir={tmp_path}/two"],
    )
    (first, lines), (second, _) = outputs(started)
    assert (first, second) == (2, 2), lines
    (line,) = [line for line in lines if "problem  workdir: process 1 (" in line]
    assert "is not the first process's folder" in line and "all hosts share" in line
    assert any(line.startswith("ok       images") for line in lines)
    assert not [*(tmp_path / "one").iterdir(), *(tmp_path / "two").iterdir()]


@pytest.mark.slow
@pytest.mark.parametrize("index", [0, 1])
def test_a_process_that_is_alone_says_so(index, tiny_model, scenes, tmp_path):
    flags = together.recipe("sft", tiny_model, scenes)
    where = {
        "JAX_COORDINATOR_ADDRESS": "127.0.0.1:39511",
        "JAX_NUM_PROCESSES": "2",
        "JAX_PROCESS_ID": str(index),
    }
    found = subprocess.run(
        [sys.executable, REPOSITORY / "scripts/doctor.py", *flags, f"--workdir={tmp_path}"]
        + ["--patience=5"],
        env=os.environ | together.environment() | where,
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert found.returncode == 2
    last = found.stdout.splitlines()[-1]
    assert last.startswith("problem  processes: no end after 5 s")
    assert "make sure that each can reach the coordinator's address and port" in last
