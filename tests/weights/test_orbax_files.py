"""Hugging Face files → Orbax's and back without the model: values, parts, and interruptions."""

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from flax import nnx
from safetensors.numpy import load_file

from mirg_jax.models.config import ModelConfig
from mirg_jax.models.layers import Precision
from mirg_jax.models.options import ModelOptions
from mirg_jax.models.qwen2_vl import abstract
from mirg_jax.weights import hf, orbax_files


@pytest.fixture
def model(tiny_model):
    config = ModelConfig.from_folder(tiny_model)

    def make(dtype):
        _, state = abstract(config, ModelOptions(Precision(jnp.float32, dtype)))
        return config, state, hf.reader(tiny_model, state, config)

    return make


def restored(folder, state):
    """As Orbax itself reads it."""
    with ocp.StandardCheckpointer() as checkpointer:
        device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        shapes = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device),
            nnx.to_pure_dict(state),
        )
        return checkpointer.restore(folder.absolute(), shapes)


def assert_same(pure, loaded):
    for a, b in zip(jax.tree.leaves(pure), jax.tree.leaves(loaded), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("chunk_bytes", [2**26, 5000])
def test_orbax_reads_what_was_streamed(
    model, tiny_model, tmp_path, monkeypatch, dtype, chunk_bytes
):
    """In whole parameters and in many chunks, the last of them smaller."""
    monkeypatch.setattr(orbax_files, "_CHUNK_BYTES", chunk_bytes)
    config, state, read = model(dtype)
    told = []
    orbax_files.write(tmp_path / "params", state, read, told.append)
    assert sum(told) == sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
    assert (len(told) > len(jax.tree.leaves(state))) == (chunk_bytes < 2**20)
    assert_same(restored(tmp_path / "params", state), hf.load(tiny_model, state, config))


def test_parameters_of_zeros_are_there(tmp_path):
    """Nothing is left out because it is what an empty chunk would read as."""
    state = nnx.State({"a": {"b": nnx.Param(jax.ShapeDtypeStruct((3, 4), jnp.float32))}})
    orbax_files.write(tmp_path / "params", state, lambda path, index, out: out.fill(0))
    assert not np.asarray(restored(tmp_path / "params", state)["a"]["b"]).any()


def test_an_interrupted_write_goes_on(model, tiny_model, tmp_path):
    config, state, read = model(jnp.float32)
    asked = []

    def failing(path, index, out):
        asked.append(path)
        if len(asked) == 12:
            raise KeyboardInterrupt
        read(path, index, out)

    with pytest.raises(KeyboardInterrupt):
        orbax_files.write(tmp_path / "params", state, failing)
    first, asked[:] = list(asked), ["again"] * 100
    orbax_files.write(tmp_path / "params", state, failing)
    again = asked[100:]
    assert len(again) <= len(jax.tree.leaves(state)) - 10  # all but the last two were written
    assert set(first) | set(again) == set(hf.by_path(state))
    assert_same(restored(tmp_path / "params", state), hf.load(tiny_model, state, config))


@pytest.mark.parametrize("streamed", [True, False])
def test_exports_a_parameter_at_a_time(model, tiny_model, tmp_path, streamed):
    """From our chunks, and from those that Orbax makes when a run saves."""
    config, state, read = model(jnp.float32)
    if streamed:
        orbax_files.write(tmp_path / "params", state, read)
    else:
        with ocp.StandardCheckpointer() as checkpointer:
            pure = nnx.to_pure_dict(hf.load(tiny_model, state, config))
            checkpointer.save(tmp_path / "params", pure)
    hf.save(tmp_path / "hf", state, config, read=orbax_files.reader(tmp_path / "params"))
    ours = load_file(tmp_path / "hf" / "model.safetensors")
    source = load_file(tiny_model / "model.safetensors")
    assert ours.keys() == source.keys()
    for name, tensor in source.items():
        np.testing.assert_array_equal(ours[name], tensor, err_msg=name)
