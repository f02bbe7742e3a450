"""Adapters beside a base: what they compute, what is differentiated, where they lie."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from flax import nnx
from jax.sharding import PartitionSpec

from mirg_jax import sharding
from mirg_jax.data.batching import Shapes, collate, collate_prompts
from mirg_jax.models import lora
from mirg_jax.models.layers import Precision
from mirg_jax.models.lora import DECODER, Lora
from mirg_jax.models.options import ModelOptions
from mirg_jax.models.qwen2_vl import abstract, create
from mirg_jax.sampling.sampler import SamplingConfig, make_sampler, sample_keys
from mirg_jax.training import sft
from mirg_jax.weights import hf

LORA = Lora(rank=4, alpha=6, tower=True)


@pytest.fixture(scope="module", params=reference.FAMILIES)
def config(request):
    return reference.FAMILIES[request.param]


@pytest.fixture(scope="module")
def base(config):
    return create(config, 3)


@pytest.fixture(scope="module")
def item(config):
    return reference.sample(np.random.default_rng(0), [(84, 56), (28, 56)], 9, config.vision)[0]


@pytest.fixture(scope="module")
def shapes(config):
    return Shapes((56, 112), (4,), (64,), config.vision.patch_size)


def with_adapters(base, settings: Lora):
    """The graph with adapters, fresh ones, and ones that were trained, as it were."""
    graph, shapes = lora.attach(*base, settings)
    fresh = lora.init(shapes, seed=1)
    rng = np.random.default_rng(2)
    trained = jax.tree.map(lambda p: p + rng.normal(0, 0.2, p.shape).astype(np.float32), fresh)
    return graph, fresh, trained


@jax.jit(static_argnums=0)
def logits(graph, params, adapters, batch):
    return nnx.merge(graph, params, adapters)(batch.text, batch.images)


@pytest.mark.parametrize("settings", [LORA, Lora(2, targets=("v_proj",))])
def test_fresh_adapters_change_nothing_and_merged_ones_as_much(base, item, shapes, settings):
    graph, params = base
    batch = collate([item], [[0]], shapes)
    adapted, fresh, trained = with_adapters(base, settings)
    plain = logits(graph, params, nnx.State({}), batch)
    np.testing.assert_array_equal(logits(adapted, params, fresh, batch), plain)
    beside = logits(adapted, params, trained, batch)
    assert float(jnp.abs(beside - plain).max()) > 0.1
    merged = lora.merge(params, trained, settings)
    assert jax.tree.structure(merged) == jax.tree.structure(params)
    np.testing.assert_allclose(logits(graph, merged, nnx.State({}), batch), beside, atol=2e-4)


def test_sampling_with_adapters_is_sampling_from_the_merged_model(base, item, shapes, config):
    adapted, _, trained = with_adapters(base, LORA)
    mesh = sharding.make_mesh()
    batch = collate_prompts([item], shapes, sharding.whole_rows(1, mesh))
    prompt, images = sharding.place_rows((batch.text, batch.images), mesh)
    keys = sample_keys(jax.random.key(0), jnp.arange(len(prompt.tokens)), 2)
    forbidden = np.zeros(config.text.vocab_size, bool)
    options = SamplingConfig(group=2, max_tokens=12)

    def tokens(graph, params):
        sample = make_sampler(graph, mesh, forbidden, options)
        return jax.device_get(jax.jit(sample)(params, prompt, images, keys))

    beside = tokens(adapted, nnx.merge_state(base[1], trained))
    merged = tokens(base[0], lora.merge(base[1], trained, LORA))
    plain = tokens(*base)
    np.testing.assert_array_equal(beside.tokens, merged.tokens)
    np.testing.assert_allclose(beside.logprobs, merged.logprobs, atol=2e-4)
    assert (beside.tokens != plain.tokens).any()


def test_gradients_are_the_merged_kernels_gradients_by_the_chain_rule(base, item, shapes, config):
    graph, params = base
    batch = jax.tree.map(jnp.asarray, collate([item], [[0]], shapes))
    one = jnp.float32(1)
    adapted, _, trained = with_adapters(base, LORA)

    def of_adapters(adapters, params):
        return sft.loss(adapters, params, batch, one, graph=adapted, chunk=1024)

    def of_all(params):
        return sft.loss(params, nnx.State({}), batch, one, graph=graph, chunk=1024)

    ours = hf.by_path(jax.jit(jax.grad(of_adapters))(trained, params))
    whole = hf.by_path(jax.jit(jax.grad(of_all))(lora.merge(params, trained, LORA)))
    values = hf.by_path(trained)
    layers = {path.rpartition(".")[0] for path in ours}
    tower = 5 if config.vision.window else 4
    assert len(layers) == 7 + tower and len(ours) == 2 * len(layers)
    for layer in layers:
        kernel = np.asarray(whole[f"{layer}.kernel"][...], np.float64)
        a, b = (np.asarray(values[f"{layer}.lora_{n}"][...], np.float64) for n in "ab")
        expected = {
            "a": LORA.scale * kernel @ b.swapaxes(1, 2),
            "b": LORA.scale * a.swapaxes(1, 2) @ kernel,
        }
        for name, value in expected.items():
            got = ours[f"{layer}.lora_{name}"][...]
            np.testing.assert_allclose(got, value, rtol=1e-3, atol=1e-4 * np.abs(value).max())


def test_adapters_start_as_pefts_do_and_stay_float32(config):
    precision = Precision(jnp.bfloat16, jnp.bfloat16)
    _, shapes = lora.attach(*abstract(config, ModelOptions(precision)), LORA)
    fresh = hf.by_path(lora.init(shapes, seed=0))
    assert {leaf.dtype for leaf in fresh.values()} == {jnp.dtype(jnp.float32)}
    first = fresh["decoder.layers.down_proj.lora_a"][...]
    text = config.text
    assert first.shape == (text.num_layers, text.intermediate_size, 4)
    # kaiming_uniform_(a=√5) is uniform within 1/√fan_in
    bound = text.intermediate_size**-0.5
    assert float(jnp.abs(first).max()) <= bound
    assert float(first.std()) == pytest.approx(bound / 3**0.5, rel=0.1)
    assert (first[0] != first[1]).all()
    assert not any(fresh[path][...].any() for path in fresh if path.endswith("lora_b"))


def test_adapters_lie_on_the_mesh_as_their_layers_do(config):
    _, shapes = lora.attach(*abstract(config), LORA)
    where = hf.by_path(sharding.parameter_shardings(shapes, sharding.make_mesh()))
    specs = {path: leaf.get_value().spec for path, leaf in where.items()}
    assert specs["decoder.layers.attention.q_proj.lora_a"] == PartitionSpec(None, "fsdp", None)
    assert specs["decoder.layers.attention.q_proj.lora_b"] == PartitionSpec(None, None, "tensor")
    assert specs["decoder.layers.down_proj.lora_a"] == PartitionSpec(None, "tensor", None)
    last = "down_proj" if config.vision.window else "fc2"
    assert specs[f"visual.blocks.{last}.lora_b"] == PartitionSpec(None, None, "fsdp")


def test_the_merged_kernels_dtype(base):
    _, _, trained = with_adapters(base, LORA)
    merged = lora.merge(base[1], trained, LORA, dtype=jnp.bfloat16)
    assert {leaf.dtype for leaf in jax.tree.leaves(merged)} == {jnp.dtype(jnp.bfloat16)}
    name, layer = "decoder.layers.up_proj", 1
    kernel = np.asarray(hf.by_path(base[1])[f"{name}.kernel"][layer], np.float64)
    a, b = (np.asarray(hf.by_path(trained)[f"{name}.lora_{n}"][layer], np.float64) for n in "ab")
    expected = kernel + 6 / 4 * a @ b
    got = np.asarray(hf.by_path(merged)[f"{name}.kernel"][layer], np.float64)
    np.testing.assert_allclose(got, expected, rtol=2**-8, atol=1e-6)


def test_adapters_are_not_saved_as_weights(base, config, tmp_path):
    _, fresh, _ = with_adapters(base, LORA)
    with pytest.raises(ValueError, match="lora_a has no published name; merge"):
        hf.save(tmp_path, nnx.merge_state(base[1], fresh), config)
    assert not list(tmp_path.glob("*.safetensors"))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"rank": 4, "targets": ("q_proj", "qkv")}, "'qkv' is none of q_proj, "),
        ({"rank": 4, "targets": ()}, "nothing would be trained"),
        ({"rank": -1}, "rank=-1"),
        ({"rank": 4, "alpha": 0}, "alpha=0"),
    ],
)
def test_what_cannot_work(values, message):
    with pytest.raises(ValueError, match=message):
        Lora(**values)
    assert Lora(4, targets=(), tower=True).adapts(("visual", "blocks", "qkv"))
    assert not Lora(4, tower=True).adapts(("visual", "merger", "fc1"))
    assert all(Lora(4).adapts(("decoder", "layers", name)) for name in DECODER)
