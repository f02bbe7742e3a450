"""The README's example runs as it stands, on a model of random weights."""

import re

import pytest
from conftest import REPOSITORY
from PIL import Image

from configs import grpo_tiny
from mirg_jax.runs import checkpoints, loading
from mirg_jax.runs.settings import read


@pytest.fixture
def demo(tiny_model, scenes, tmp_path, monkeypatch):
    """A folder with the run and the scenes that the example names."""
    config = grpo_tiny.get_config()
    config.cpu_devices, config.evaluation.max_tokens = 0, 8
    run = tmp_path / "runs/demo/grpo"
    run.mkdir(parents=True)
    model, values = loading.open_model(tiny_model)
    checkpoints.write_model_folder(run, model, read(config).text)
    checkpoints.save_params(run, model.params, values)
    (tmp_path / "runs/demo/scenes").symlink_to(scenes)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_example_runs(demo):
    (example,) = re.findall(r"```python\n(.*?)```", (REPOSITORY / "README.md").read_text(), re.S)
    assert len([line for line in example.splitlines() if line.strip()]) <= 8
    names = {}
    exec(example, names)
    assert names["answer"].text
    assert Image.open(demo / "answer.png").width > 3 * 56
