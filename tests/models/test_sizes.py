"""The published sizes, whole, without memory: shapes only."""

import math

import jax
import pytest
import torch
from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

from mirg_jax.models.config import QWEN2_VL_2B, QWEN2_VL_7B, QWEN2_VL_72B, ModelConfig
from mirg_jax.models.qwen2_vl import abstract


@pytest.mark.parametrize(
    ("config", "billions"), [(QWEN2_VL_2B, 2.21), (QWEN2_VL_7B, 8.29), (QWEN2_VL_72B, 73.4)]
)
def test_parameter_counts(config, billions):
    _, params = abstract(config)
    count = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))
    with torch.device("meta"):
        reference = Qwen2VLForConditionalGeneration(Qwen2VLConfig(**config.to_hf()))
    assert count == sum(p.numel() for p in reference.parameters())
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
