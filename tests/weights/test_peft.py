"""Exported adapters against peft's own forward pass."""

import jax
import numpy as np
import peft as reference_peft
import pytest
import reference
import torch
from flax import nnx
from safetensors.torch import load_file

from mirg_jax.data.batching import Shapes, collate
from mirg_jax.models import lora
from mirg_jax.models.lora import Lora
from mirg_jax.weights import hf, peft

LORAS = {
    "decoder": Lora(rank=4, alpha=6),
    "tower": Lora(rank=4, alpha=6, tower=True),
    "some": Lora(rank=2, alpha=7.5, targets=("k_proj", "down_proj")),
    "tower only": Lora(rank=3, alpha=6, targets=(), tower=True),
}


@pytest.mark.parametrize("kind", LORAS)
@pytest.mark.parametrize("name", ["tied", "untied", "windows 28", "deep tied"])
def test_peft_computes_what_we_do(name, kind, tmp_path):
    config, settings = reference.ALL_CONFIGS[name], LORAS[kind]
    base = reference.torch_model(config)
    base.save_pretrained(tmp_path / "base")
    graph, params = hf.from_pretrained(tmp_path / "base")
    graph, shapes = lora.attach(graph, params, settings)
    rng = np.random.default_rng(0)
    adapters = jax.tree.map(
        lambda p: jax.numpy.asarray(rng.normal(0, 0.2, p.shape), p.dtype), shapes
    )
    peft.save(tmp_path / "adapter", adapters, settings, config, str(tmp_path / "base"))

    item, images = reference.sample(rng, [(84, 56), (28, 56)], 9, config.vision)
    inputs = reference.torch_inputs(item.encoded.tokens, images, config.vision)
    shapes = Shapes((56, 112), (4,), (64,), config.vision.patch_size)
    batch = collate([item], [[0]], shapes)
    with torch.no_grad():
        plain = base(**inputs).logits[0].numpy()
        model = reference_peft.PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
        theirs = model(**inputs).logits[0].numpy()
    # Every adapter that peft made holds a tensor of ours, and none of ours is left over.
    loaded = reference_peft.get_peft_model_state_dict(model)
    written = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert loaded.keys() == written.keys()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in written.items())

    model = nnx.merge(graph, params, adapters)
    ours = jax.jit(lambda text, images: model(text, images))(batch.text, batch.images)
    ours = np.asarray(ours)[0, : len(theirs)]
    assert np.abs(theirs - plain).max() > 0.1
    np.testing.assert_allclose(ours, theirs, atol=1e-4)
