"""Every command of README, docs and the binaries' own help is one that its binary takes."""

import collections
import json
import re
import shlex
import subprocess
import sys

from conftest import REPOSITORY

PAGES = [
    REPOSITORY / "README.md",
    REPOSITORY / "CONTRIBUTING.md",
    *sorted((REPOSITORY / "docs").glob("*.md")),
    *sorted((REPOSITORY / "scripts").glob("*.py")),
    *sorted((REPOSITORY / "configs").glob("*.py")),
]
ENDS = ("&&", ";", "|", ">", "&", "2>&1")

# Imports what the binaries share once. Each binary, and each of its commands, has a process of its
# own, since the flags of a process are defined once. Prints the commands that are not taken.
PARSE = """
import importlib.util, json, os, sys
from mirg_jax import cli
import mirg_jax.experiments.tables, mirg_jax.inference.predictor

def take(path, arguments):
    sys.argv = [path, *arguments]  # where config_flags looks for overrides
    try:
        cli._parse_flags(sys.argv)
    except SystemExit:
        sys.stderr.flush()
        os._exit(2)
    os._exit(0)

def take_all(path, commands):
    spec = importlib.util.spec_from_file_location("binary", path)
    spec.loader.exec_module(importlib.util.module_from_spec(spec))
    for arguments in commands:
        if os.fork() == 0:
            take(path, arguments)
        if os.wait()[1]:
            print(json.dumps([path, arguments]), flush=True)
    os._exit(0)

for path, commands in json.load(sys.stdin).items():
    if os.fork() == 0:
        take_all(path, commands)
    if os.wait()[1]:
        print(json.dumps([path, "is not imported"]), flush=True)
"""


def commands() -> dict[str, list[list[str]]]:
    """Arguments of every command in the pages, by the binary's name."""
    found = collections.defaultdict(list)
    for page in PAGES:
        text = page.read_text(encoding="utf-8").replace("\\\\\n", "\\\n")
        for name, value in re.findall(r"^\s*(?:export )?([A-Z]+)=(\S+)$", text, re.MULTILINE):
            text = text.replace(f"${name}", value)
        for line in re.sub(r"\\\n\s*", " ", text).splitlines():
            match = re.match(r"\s*(?:\w+=\S+ )*[\w./ =-]*\bpython3? scripts/(\w+)\.py( .*|$)", line)
            if not match or "`" in line or "…" in line:  # in prose, or cut short
                continue
            words = shlex.split(match[2], comments=True)
            end = next((i for i, word in enumerate(words) if word in ENDS), len(words))
            found[match[1]].append(words[:end])
    return found


COMMANDS = commands()


def test_there_are_commands_of_every_binary():
    binaries = {path.stem for path in (REPOSITORY / "scripts").glob("*.py")}
    assert binaries == set(COMMANDS)
    assert sum(map(len, COMMANDS.values())) > 30


def test_commands_are_taken_by_their_binary():
    given = {str(REPOSITORY / "scripts" / f"{name}.py"): COMMANDS[name] for name in COMMANDS}
    result = subprocess.run(
        [sys.executable, "-c", PARSE],
        input=json.dumps(given),
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0 and not result.stdout, (result.stdout, result.stderr[-2000:])


def test_make_has_every_target_that_is_named():
    text = (REPOSITORY / "Makefile").read_text()
    targets = set(re.findall(r"^([\w-]+):", text, re.MULTILINE))
    for page in PAGES[:2] + sorted((REPOSITORY / "docs").glob("*.md")):
        for target in re.findall(r"^\s*make ([a-z][\w-]*)", page.read_text(), re.MULTILINE):
            assert target in targets, f"{page.name}: make {target}"
