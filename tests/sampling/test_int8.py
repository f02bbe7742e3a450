"""Sampling with 8-bit weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from test_sampler import CONFIG, FORBIDDEN, run

from mirg_jax import sharding
from mirg_jax.models import int8, lora
from mirg_jax.models.qwen2_vl import create
from mirg_jax.rl.logprobs import token_logprobs
from mirg_jax.sampling.weights import make_weights


@settings(max_examples=50, deadline=None)
@given(arrays(np.float32, (5, 3), elements=st.floats(-1e4, 1e4, width=32, allow_subnormal=False)))
def test_a_kernel_is_rounded_to_half_a_step(kernel):
    q, scale = int8.quantise(jnp.asarray(kernel))
    assert q.dtype == jnp.int8 and scale.shape == (3,)
    step = np.abs(kernel).max(0) / 127
    assert (np.abs(np.asarray(q) * np.asarray(scale) - kernel) <= step / 2 * 1.001 + 1e-30).all()
    largest = np.abs(np.asarray(q, np.int32)).max(0)
    assert (largest[step > 1e-30] == 127).all()


@pytest.mark.parametrize("with_lora", [False, True])
def test_completions_are_nearly_as_likely(with_lora):
    """The decoder's kernels are integers; the rest, adapters too, is as it was."""
    graph, params = create(CONFIG, 0)
    if with_lora:
        graph, adapters = lora.attach(graph, params, lora.Lora(2))
        values = jax.tree.map(lambda leaf: leaf + 0.01, lora.init(adapters, 0))
        params = nnx.merge_state(params, values)
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    rounded_graph, kinds = int8.attach(graph, params)
    weights = make_weights(params, jnp.float32, mesh, kinds)(params)

    flat = dict(nnx.to_flat_state(weights))
    rounded = {path for path, leaf in flat.items() if leaf[...].dtype == jnp.int8}
    assert len(rounded) == 7 and all(path[:2] == ("decoder", "layers") for path in rounded)
    for path, leaf in nnx.to_flat_state(params):
        if path not in rounded:
            np.testing.assert_array_equal(flat[path][...], leaf[...])

    text, images, rollout = run((rounded_graph, weights), stop_tokens=())
    rollout = jax.tree.map(jnp.asarray, rollout)

    def differences(graph, params):
        network = nnx.merge(graph, params)
        hidden = network.completion_hidden(text, images, rollout)
        options = {"temperature": 1.0, "forbidden": FORBIDDEN, "chunk": 7}
        logprobs = token_logprobs(hidden, network.head(), rollout.tokens, **options)
        return np.abs(np.where(rollout.mask, logprobs - rollout.logprobs, 0.0))

    assert differences(rounded_graph, weights).max() < 1e-4
    assert 1e-4 < differences(graph, params).mean() < 0.05
