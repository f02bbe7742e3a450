"""The published sizes, whole, without memory: shapes only."""

import math

import jax
import pytest
import reference
import torch

from mirg_jax.models.config import ModelConfig
from mirg_jax.models.qwen2_vl import abstract
from mirg_jax.models.sizes import PUBLISHED, QWEN2_VL_7B

BILLIONS = {
    "Qwen/Qwen2-VL-2B-Instruct": 2.21,
    "Qwen/Qwen2-VL-7B-Instruct": 8.29,
    "Qwen/Qwen2-VL-72B-Instruct": 73.4,
    "Qwen/Qwen2.5-VL-3B-Instruct": 3.75,
    "Qwen/Qwen2.5-VL-7B-Instruct": 8.29,
    "Qwen/Qwen3-VL-2B-Instruct": 2.13,
    "Qwen/Qwen3-VL-4B-Instruct": 4.44,
    "Qwen/Qwen3-VL-8B-Instruct": 8.77,
    "Qwen/Qwen3-VL-32B-Instruct": 33.36,
}


@pytest.mark.parametrize("name", BILLIONS)
def test_parameter_counts(name):
    config, billions = PUBLISHED[name], BILLIONS[name]
    _, params = abstract(config)
    count = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))
    with torch.device("meta"):
        theirs = reference.CLASSES[config.model_type][1](reference.torch_config(config))
    assert count == sum(p.numel() for p in theirs.parameters())
    assert count / 1e9 == pytest.approx(billions, rel=0.005)
    assert ModelConfig.from_hf(config.to_hf()) == config


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "llama"}, "model_type"),
        ({"use_sliding_window": True}, "sliding"),
        ({"num_attention_heads": 27}, "num_attention_heads"),
        ({"num_key_value_heads": 3}, "num_key_value_heads"),
        ({"rope_scaling": {"type": "mrope", "mrope_section": [1, 2, 3]}}, "mrope_section"),
    ],
)
def test_a_config_that_cannot_work_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        ModelConfig.from_hf(QWEN2_VL_7B.to_hf() | change)
