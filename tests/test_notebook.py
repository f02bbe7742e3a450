"""The notebook: committed without outputs, in step with the package, and it runs."""

import ast
import base64
import io
import types

import nbformat
import numpy as np
import pytest
from conftest import REPOSITORY
from IPython.core.inputtransformer2 import TransformerManager
from nbclient import NotebookClient
from PIL import Image

PATH = REPOSITORY / "notebooks" / "small_model.ipynb"


@pytest.fixture
def notebook():
    return nbformat.read(PATH, as_version=4)


def code_of(notebook) -> ast.Module:
    """All code cells as one program; magics become calls, as in IPython."""
    cells = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    return ast.parse("\n".join(map(TransformerManager().transform_cell, cells)))


def test_it_is_valid_and_has_no_outputs(notebook):
    nbformat.validate(notebook)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert not cell.outputs and cell.execution_count is None


def test_what_it_uses_of_ours_exists(notebook):
    tree, ours = code_of(notebook), {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module.startswith(("mirg_jax", "configs")):
            for alias in node.names:
                exec(f"from {node.module} import {alias.name}", ours)
    used = [
        (ours[node.value.id], node.attr)
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and isinstance(ours.get(node.value.id), types.ModuleType)
    ]
    assert len(used) > 5
    for module, name in used:
        assert hasattr(module, name), f"{module.__name__} has no {name}"


@pytest.mark.slow
def test_it_runs(notebook, tmp_path, monkeypatch):
    monkeypatch.setenv("QUICK", "1")
    monkeypatch.setenv("WORKDIR", str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    monkeypatch.setenv("JUPYTER_PREFER_ENV_PATH", "1")  # the kernel is this Python's
    where = {"metadata": {"path": str(PATH.parent)}}
    NotebookClient(notebook, timeout=1500, kernel_name="python3", resources=where).execute()

    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    data = [output.get("data", {}) for output in outputs]
    pictures = [
        np.asarray(Image.open(io.BytesIO(base64.b64decode(each["image/png"]))))
        for each in data
        if "image/png" in each
    ]
    assert len(pictures) == 3 + 7 + 1  # trajectories, predictions, the question
    lime = [np.any(np.all(picture == (0, 255, 0), axis=-1)) for picture in pictures]
    assert all(lime[3:10])  # the truth is in each
    table, charts = (each["text/html"] for each in data if "text/html" in each)
    assert all(f"<td>{name}</td>" in table for name in ("base", "SFT", "GRPO"))
    assert charts.count("<polyline") == 4
    said = "".join(output.text for output in outputs if output.output_type == "stream")
    assert "80 examples, 0 rows left out" in said and "Traceback" not in said
