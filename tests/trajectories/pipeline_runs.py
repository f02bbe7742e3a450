"""Runs of the pipeline against a fake server: fixtures, commands, and what must always hold."""

import contextlib
import json
import sys

import pytest
from asking import KEY, Server, serve
from conftest import REPOSITORY

from mirg_jax.data.examples import read_examples
from mirg_jax.grounding.grammar import parse_response
from mirg_jax.trajectories import build, settings


@pytest.fixture
def server(tmp_path):
    """Starts fake servers, with the flags that it is called with."""
    with contextlib.ExitStack() as stack:

        def start(*flags: str) -> Server:
            log = tmp_path / f"server{len(list(tmp_path.glob('server*.log')))}.log"
            return stack.enter_context(serve(log, *flags))

        yield start


@pytest.fixture
def config(monkeypatch):
    """Makes configs whose stages all ask one server, without waiting."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)

    def make(url: str, timeout: float = 30.0, **changes):
        config = settings.trajectories()
        config.select.sft = 0
        config.concurrency = 16
        config.backoff = 0.01
        for stage in config.stages.values():
            stage.base_url = url
            stage.key_variable = "OPENAI_API_KEY"
            stage.timeout = timeout
            stage.update(requests_per_minute=0.0, tokens_per_minute=0.0)
        config.update_from_flattened_dict(changes)
        return config

    return make


def run(config, folder, source, **changes):
    """Builds trajectories for the questions of a file."""
    what = {"source": str(source), "image_root": str(source.parent), "progress": False} | changes
    return build.build(settings.read(config), output_dir=folder, **what)


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def check_whole(folder, count):
    """Checks that each question is accepted or rejected, once, and that trajectories are sound."""
    accepted, bad = read_examples(folder / "grounded.jsonl")
    rejected = lines(folder / "rejected.jsonl")
    assert not bad
    names = [e.id for e in accepted] + [row["id"] for row in rejected]
    assert len(names) == len(set(names)) == count
    assert all(row["reason"] for row in rejected)
    for example in accepted:
        response = parse_response(example.response, len(example.images))
        assert response.format_ok and not response.problems
        assert [(o.image, o.box) for o in response.objects] == [
            (t.image, t.box) for t in example.targets
        ]
    summary = json.loads((folder / "summary.json").read_text())
    assert (summary["accepted"], summary["rejected"]) == (len(accepted), len(rejected))
    assert summary["unfinished"] == 0
    return accepted, rejected


def command(config_flags, folder, source, *flags):
    """Returns the command line of a run."""
    return [
        sys.executable,
        REPOSITORY / "scripts/build_trajectories.py",
        f"--config={REPOSITORY}/configs/trajectories.py:mgrounding",
        f"--input={source}",
        f"--image_root={source.parent}",
        f"--output_dir={folder}",
        *config_flags,
        *flags,
    ]


def flags_for(url, timeout=30.0):
    """Returns the flags of a config whose stages all ask one server."""
    flags = ["--config.select.sft=0", "--config.backoff=0.01", "--config.concurrency=16"]
    for stage in ("reasoning", "mapping", "reassembly"):
        flags.append(f"--config.stages.{stage}.base_url={url}")
        flags.append(f"--config.stages.{stage}.requests_per_minute=0.0")
        flags.append(f"--config.stages.{stage}.tokens_per_minute=0.0")
        flags.append(f"--config.stages.{stage}.timeout={timeout}")
    return flags
