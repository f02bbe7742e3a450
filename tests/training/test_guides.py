"""The guides to machines, run in their order: their own lines, in a shell, with the tiny model.

What a machine would bring is played by small programs: gcloud runs a command for each of two hosts,
srun for each of two nodes, git and make lay out a checkout, whose Python takes the tiny recipe in
place of the one that a line names.
"""

import json
import os
import pathlib
import re
import shlex
import shutil
import socket
import subprocess
import sys

import pytest
import together
from conftest import REPOSITORY

HEAD = f"#!{sys.executable}\nimport os, subprocess, sys\n"
PROGRAMS = {
    "git": """
assert sys.argv[1:] == ["clone", "https://github.com/mirg-jax/mirg_jax"]
os.makedirs("mirg_jax")
for name in ("assets", "configs", "mirg_jax", "scripts", "tests"):
    os.symlink(os.path.join(os.environ["CHECKOUT"], name), os.path.join("mirg_jax", name))
""",
    "make": """
given = dict(word.split("=", 1) for word in sys.argv[2:])
if sys.argv[1] == "venv":
    assert given["ACCEL"] in ("cuda12", "tpu")
    subprocess.run([given.get("PYTHON", sys.executable), "-c", "import mirg_jax"], check=True)
    os.makedirs(".venv/bin")
    os.symlink(os.path.join(os.environ["PROGRAMS"], "python"), ".venv/bin/python")
else:
    assert sys.argv[1] == "plan" and {"CONFIG", "MACHINE"} <= given.keys()
""",
    # The tiny recipe of the stage that a line names; what the line itself sets comes last.
    "python": """
words = sys.argv[1:]
for place, word in enumerate(words):
    if word.startswith("--config="):
        assert os.path.exists(word.removeprefix("--config=").split(":")[0]), word
        kind = "GRPO" if "configs/grpo" in word else "SFT"
        words[place : place + 1] = os.environ[kind].split()
        words.insert(place + 1, "--config.num_steps=" + os.environ.get("STEPS", "2"))
        if any(word.endswith("doctor.py") for word in words):
            words.append("--nocompile")
        break
os.execv(sys.executable, [sys.executable, *words])
""",
    # Commands in the background have ended before the next line is run.
    "gcloud": """
hosts = {"--worker=all": (0, 1), "--worker=0": (0,)}
chosen = [hosts[word] for word in sys.argv if word in hosts]
command = [word.removeprefix("--command=") for word in sys.argv if word.startswith("--command=")]
running = []
for host in chosen[0] if command else ():
    home = os.path.join(os.environ["HOME"], f"host_{host}")
    os.makedirs(home, exist_ok=True)
    os.makedirs(os.path.join(home, ".local"), exist_ok=True)
    if not os.path.exists(os.path.join(home, ".local/bin")):
        os.symlink(os.environ["PROGRAMS"], os.path.join(home, ".local/bin"))
    me = os.environ | {"HOME": home}
    if len(chosen[0]) > 1:
        me |= {"JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": str(host)}
        me["JAX_COORDINATOR_ADDRESS"] = os.environ["COORDINATOR"]
    running.append(subprocess.Popen(["bash", "-ec", command[0] + "\\nwait"], cwd=home, env=me))
sys.exit(max([process.wait() for process in running], default=0))
""",
    "srun": """
command = [word for word in sys.argv[1:] if not word.startswith("--kill")]
running = []
for node in (0, 1):
    me = os.environ | {"SLURM_JOB_ID": os.environ["JOB"], "SLURM_STEP_NODELIST": "127.0.0.1"}
    me |= {"SLURM_NTASKS": "2", "SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_NUM_NODES": "2"}
    me |= {"SLURM_PROCID": str(node), "SLURM_LOCALID": "0"}
    running.append(subprocess.Popen(command, env=me))
sys.exit(max(process.wait() for process in running))
""",
    "uv": "print(sys.executable if 'find' in sys.argv else '')",
    "tail": "print(open(sys.argv[-1]).read())",
    **dict.fromkeys(["docker", "hf", "pip"], ""),
}


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def blocks(page: str) -> list[str]:
    text = (REPOSITORY / "docs" / page).read_text(encoding="utf-8")
    return re.findall(r"^```(?:bash)?\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def small(kind: str, model: pathlib.Path) -> str:
    flags = together.recipe(kind, model, pathlib.Path("unused"))
    return " ".join(flag for flag in flags if not re.match(r"--config\.(data|num_steps)", flag))


def follow(script: str, folder: pathlib.Path, model: pathlib.Path) -> str:
    """Runs a page's lines in a shell, in `folder` as the user's home; returns what they print."""
    programs = folder / "programs"
    programs.mkdir()
    for name, text in PROGRAMS.items():
        (programs / name).write_text(HEAD + text)
        (programs / name).chmod(0o755)
    (folder / ".local").mkdir()
    (folder / ".local/bin").symlink_to(programs)
    environment = together.environment() | {
        "HOME": str(folder),
        "PATH": f"{programs}:{os.environ['PATH']}",
        "CHECKOUT": str(REPOSITORY),
        "PROGRAMS": str(programs),
        "COORDINATOR": f"127.0.0.1:{free_port()}",
        "JOB": str(free_port()),
        "SFT": small("sft", model),
        "GRPO": small("grpo", model),
    }
    done = subprocess.run(
        ["bash", "-e", "-c", script],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=1500,
    )
    assert done.returncode == 0, done.stdout[-6000:]
    return done.stdout


@pytest.fixture
def disk(scenes, tmp_path) -> pathlib.Path:
    """A disk with data as docs/data.md leaves it: rows beside the images, and the benchmark."""
    data = tmp_path / "disk/data"
    shutil.copytree(scenes / "images", data / "images")
    names = {"sft.jsonl": "grounded.jsonl", "rl.json": "rl.jsonl"}
    for ours, theirs in (names | {"eval.json": "MIG-Bench/MIG_data.json"}).items():
        (data / theirs).parent.mkdir(exist_ok=True)
        (data / theirs).write_bytes((scenes / ours).read_bytes())
    return tmp_path / "disk"


def steps(workdir: pathlib.Path) -> list[int]:
    return [row["step"] for row in together.scalars(workdir)]


@pytest.mark.slow
def test_gpu_node(tiny_model, disk, tmp_path):
    *lines, docker, slurm, nodes = blocks("gpu_node.md")
    assert (
        "docker build" in docker and slurm.startswith("#!/bin/bash") and "JAX_PROCESS_ID=1" in nodes
    )
    grpo = next(
        re.findall(r"train_grpo\.py ((?:.*\\\n)*.*)", text)
        for text in lines
        if "train_grpo" in text
    )[0]
    nodes = nodes.replace("10.0.0.1:8476", "$COORDINATOR").replace(
        "…", grpo.replace("\\\n", " ") + " &"
    )
    script = [
        *lines[:2],
        f"ln -s {disk}/data data",
        *lines[2:],
        docker,
        f"echo {shlex.quote(slurm)} > grpo.sbatch\nSTEPS=3 bash grpo.sbatch",
        "export STEPS=4",
        nodes,
        "wait $!",
    ]
    said = follow("\n".join(script), tmp_path, tiny_model)
    runs = tmp_path / "mirg_jax/runs"
    assert "problem " not in said
    assert steps(runs / "sft") == [1, 2] and steps(runs / "grpo") == [1, 2, 3, 4]
    assert json.loads((runs / "grpo/eval/scores.json").read_text())["overall"]["n"] == 21
    assert (tmp_path / "mirg_jax/exported/config.json").exists()


@pytest.mark.slow
def test_tpu_vm(tiny_model, disk, tmp_path):
    script = "\n".join(blocks("tpu_vm.md")).replace("/mnt/disk", str(disk))
    said = follow(script, tmp_path, tiny_model)
    assert "problem " not in said
    assert steps(disk / "sft") == steps(disk / "grpo") == [1, 2]
    assert (disk / "grpo/eval/scores.json").exists()


@pytest.mark.slow
def test_tpu_pod(tiny_model, disk, tmp_path):
    script = "\n".join(blocks("tpu_pod.md")).replace("/mnt/shared", str(disk))
    # On TPUs it finds the hosts by itself.
    start = "from mirg_jax.sharding import processes; processes.start()"
    script = script.replace("jax.distributed.initialize()", start)
    said = follow(script, tmp_path, tiny_model)
    assert "problem " not in said
    assert said.splitlines().count("2") == 2  # devices, once a host
    assert steps(disk / "sft") == steps(disk / "grpo") == [1, 2]


@pytest.mark.slow
def test_kaggle(tiny_model, disk, tmp_path):
    script = next(text for text in blocks("colab.md") if "/kaggle/" in text)
    script = re.sub("^!", "", script, flags=re.MULTILINE).replace("/kaggle/temp", str(disk))
    script = "git clone https://github.com/mirg-jax/mirg_jax && cd mirg_jax\n" + script
    follow(script.replace("/kaggle/working", str(tmp_path / "working")), tmp_path, tiny_model)
    assert steps(tmp_path / "working/sft_2b") == steps(tmp_path / "working/grpo_2b") == [1, 2]
    assert (tmp_path / "working/eval_2b/scores.json").exists()
