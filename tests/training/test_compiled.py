"""Compiled programs are kept, wherever the binaries keep them."""

import os
import subprocess
import sys

import pytest
import together


def environment(tmp_path, **changes):
    kept = {name: value for name, value in os.environ.items() if "CACHE" not in name}
    return kept | {"XDG_CACHE_HOME": str(tmp_path)} | changes


@pytest.mark.parametrize("imported_first", ["", "import jax"])
def test_binaries_have_a_cache_of_their_own(tmp_path, imported_first):
    program = f"""
{imported_first}
from mirg_jax import cli

def main(_):
    import jax
    print(jax.config.jax_compilation_cache_dir)
    print(jax.config.jax_persistent_cache_min_compile_time_secs)

cli.run(main)
"""

    def told(**changes):
        found = subprocess.run(
            [sys.executable, "-c", program],
            env=environment(tmp_path, **changes),
            capture_output=True,
            text=True,
        )
        assert found.returncode == 0, found.stderr
        return found.stdout.split()

    assert told() == [str(tmp_path / "mirg_jax/compiled"), "0.0"]
    assert told(JAX_COMPILATION_CACHE_DIR="/elsewhere")[0] == "/elsewhere"
    (tmp_path / "file").touch()
    assert told(XDG_CACHE_HOME=str(tmp_path / "file")) == ["0.0"]  # no folder can be made


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sft", "grpo"])
def test_a_second_start_compiles_nothing(kind, tiny_model, scenes, tmp_path, monkeypatch):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "compiled"))
    flags, counts = together.recipe(kind, tiny_model, scenes, num_steps=2), []
    for number in range(2):
        together.run(f"train_{kind}", *flags, f"--workdir={tmp_path / str(number)}")
        counts.append(len([*(tmp_path / "compiled").glob("*-cache")]))
    assert counts[0] == counts[1] > 0
