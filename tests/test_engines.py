"""Which attention a device gets, told by what it can do; and what happens if a kernel fails."""

import contextlib
import functools
import os
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import REPOSITORY

from configs import grpo, grpo_tiny, sft, sft_tiny
from mirg_jax.errors import ConfigError
from mirg_jax.models import flash, qwen2_vl
from mirg_jax.models.config import ModelConfig
from mirg_jax.models.layers import FLOAT32, Precision
from mirg_jax.models.options import ModelOptions
from mirg_jax.models.sizes import PUBLISHED, QWEN2_5_VL_7B, QWEN2_VL_2B, QWEN2_VL_7B
from mirg_jax.runs import devices, engines
from mirg_jax.runs.settings import ModelSettings, read

BFLOAT16 = Precision(jnp.bfloat16, jnp.float32)


def settings(precision, attention="auto"):
    return ModelSettings("model", precision, "full", attention)


def gpu(capability):
    return SimpleNamespace(platform="gpu", compute_capability=capability)


TPU, CPU = SimpleNamespace(platform="tpu"), SimpleNamespace(platform="cpu")


@pytest.mark.parametrize(
    ("device", "precision", "engine", "reason"),
    [
        (gpu("9.0"), BFLOAT16, "cudnn", ""),
        (gpu("8.0"), BFLOAT16, "cudnn", ""),
        (gpu("7.5"), BFLOAT16, "xla", "this GPU has 7.5"),
        (gpu("9.0"), FLOAT32, "xla", "not in float32"),
        (gpu("gfx942"), BFLOAT16, "xla", "NVIDIA"),
        (TPU, BFLOAT16, "splash", ""),
        (TPU, FLOAT32, "splash", ""),
        (CPU, BFLOAT16, "xla", ""),
    ],
)
@pytest.mark.parametrize("sizes", [QWEN2_VL_2B, QWEN2_VL_7B, QWEN2_5_VL_7B])
def test_a_device_gets_the_kernel_that_it_can_run(device, precision, engine, reason, sizes):
    choice = engines.choose(settings(precision), sizes, device)
    assert choice.engine == engine
    assert reason in choice.reason
    assert bool(choice.reason) == bool(reason)


@pytest.mark.parametrize(
    ("capability", "engine"), [("7.5", "xla"), ("8.0", "cudnn"), ("9.0", "cudnn")]
)
@pytest.mark.parametrize("stage", [sft, grpo])
def test_recipes_on_gpus(stage, capability, engine):
    models = "qwen2_vl_7b,gpu_8", "qwen2_5_vl_3b,gpu_8", "qwen2_vl_2b,one,lora"
    for argument in (*models, "qwen3_vl_4b,gpu_8", "qwen3_vl_8b,gpu_1,lora"):
        model = read(stage.get_config(argument)).model
        choice = engines.choose(model, PUBLISHED[model.path], gpu(capability))
        assert (choice.engine, model.precision.compute) == (engine, jnp.bfloat16)
        assert bool(choice.reason) == (engine == "xla")


@pytest.mark.parametrize("capability", ["7.5", "8.0", "9.0"])
@pytest.mark.parametrize("small", ["small_base", "small_base_qwen2_5_vl", "small_base_qwen3_vl"])
def test_the_demo_on_gpus(small, capability):
    for recipe in (sft_tiny, grpo_tiny):
        model = read(recipe.get_config()).model
        sizes = ModelConfig.from_folder(REPOSITORY / "assets" / small)
        choice = engines.choose(model, sizes, gpu(capability))
        assert choice.engine == "xla" and choice.reason
        options = ModelOptions(model.precision, model.remat, choice.engine)
        _, params = qwen2_vl.abstract(sizes, options)
        assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}


@pytest.mark.parametrize(
    ("attention", "device", "precision"),
    [
        ("cudnn", gpu("9.0"), FLOAT32),
        ("cudnn", gpu("7.5"), BFLOAT16),
        ("cudnn", CPU, BFLOAT16),
        ("splash", gpu("9.0"), BFLOAT16),
    ],
)
def test_an_attention_asked_for_by_name_is_refused_where_it_cannot_run(
    attention, device, precision
):
    with pytest.raises(ConfigError, match=f"model.attention={attention}: .*; use auto or xla"):
        engines.choose(settings(precision, attention), QWEN2_VL_7B, device)


class Mesh:
    """A mesh whose devices call themselves GPUs, though they are this machine's."""

    local_devices = (gpu("9.0"),)


@pytest.fixture
def on_a_gpu(monkeypatch):
    """Tries kernels on the CPU, each time anew."""
    monkeypatch.setattr(jax, "default_device", lambda _: contextlib.nullcontext())
    monkeypatch.setattr(engines, "_failure", engines._failure.__wrapped__)
    monkeypatch.delenv("JAX_DEFAULT_MATMUL_PRECISION", raising=False)
    precision = jax.config.jax_default_matmul_precision
    yield
    jax.config.update("jax_default_matmul_precision", precision)


def test_a_kernel_that_runs_is_used(on_a_gpu, monkeypatch, capsys):
    function = functools.partial(flash.cudnn_attention, implementation="xla")
    monkeypatch.setitem(flash.ENGINES, "cudnn", function)
    assert engines.options(settings(BFLOAT16), QWEN2_VL_7B, Mesh()).attention == "cudnn"
    assert capsys.readouterr().err == ""
    assert jax.config.jax_default_matmul_precision is None


def test_a_kernel_that_fails_is_replaced_with_a_line(on_a_gpu, monkeypatch, capsys):
    def fail(*_):
        raise RuntimeError("cuDNN is not detected.")

    monkeypatch.setitem(flash.ENGINES, "cudnn", fail)
    assert engines.options(settings(BFLOAT16), QWEN2_VL_7B, Mesh()).attention == "xla"
    assert "cudnn failed (RuntimeError: cuDNN is not detected.)" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="cuDNN is not detected"):
        engines.options(settings(BFLOAT16, "cudnn"), QWEN2_VL_7B, Mesh())


def test_float32_is_computed_as_float32_on_accelerators(on_a_gpu, capsys):
    assert engines.options(settings(FLOAT32), QWEN2_VL_7B, Mesh()).attention == "xla"
    assert "not in float32" in capsys.readouterr().err
    assert jax.config.jax_default_matmul_precision == "float32"


@pytest.mark.parametrize(
    ("dtype", "plugin", "flags", "expected"),
    [
        ("float32", True, "", "--xla_gpu_enable_triton_gemm=false"),
        ("float32", True, "--a=1", "--a=1 --xla_gpu_enable_triton_gemm=false"),
        ("float32", True, "--xla_gpu_enable_triton_gemm=true", None),  # the user's choice
        ("float32", False, "", None),
        ("bfloat16", True, "", None),
    ],
)
def test_products_in_float32_are_left_to_cublas(
    dtype, plugin, flags, expected, recipe, monkeypatch
):
    monkeypatch.setenv("XLA_FLAGS", flags)
    found = SimpleNamespace() if plugin else None
    monkeypatch.setattr(devices.importlib.util, "find_spec", lambda name: found)
    devices.start(read(recipe("sft", **{"model.compute_dtype": dtype})).devices)
    assert os.environ["XLA_FLAGS"] == (expected or flags)


def test_gradients_are_compiled_without_options_that_a_compiler_refuses(monkeypatch, capsys):
    tpu = SimpleNamespace(platform="tpu", process_index=0)
    mesh = SimpleNamespace(devices=np.array([tpu] * 4), size=4)
    refused = engines._refused_options(jax.devices("cpu")[0])
    assert "xla_" in refused
    monkeypatch.setattr(engines, "_refused_options", lambda device: refused * (device is tpu))
    assert engines.gradient_options(mesh) is None
    assert f"without XLA options of ours: {refused}" in capsys.readouterr().err
    monkeypatch.setattr(engines, "_refused_options", lambda _: "")
    assert engines.gradient_options(mesh) == engines.GRADIENT_OPTIONS
    mesh = SimpleNamespace(devices=np.array(jax.devices("cpu")), size=4)
    assert engines.gradient_options(mesh) is None
