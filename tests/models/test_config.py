"""Model sizes from config.json in all its forms."""

import json

import pytest
import reference

from mirg_jax.errors import CheckpointError
from mirg_jax.models.config import ModelConfig
from mirg_jax.models.sizes import PUBLISHED, QWEN2_5_VL_3B, QWEN2_VL_2B, QWEN2_VL_7B, QWEN3_VL_4B

CONFIGS = PUBLISHED | reference.ALL_CONFIGS

# The sizes that the 2B instruct model's config.json gives.
PUBLISHED_2B = {
    "architectures": ["Qwen2VLForConditionalGeneration"],
    "bos_token_id": 151643,
    "eos_token_id": 151645,
    "vision_start_token_id": 151652,
    "vision_end_token_id": 151653,
    "vision_token_id": 151654,
    "image_token_id": 151655,
    "video_token_id": 151656,
    "hidden_act": "silu",
    "hidden_size": 1536,
    "intermediate_size": 8960,
    "max_position_embeddings": 32768,
    "max_window_layers": 28,
    "model_type": "qwen2_vl",
    "num_attention_heads": 12,
    "num_hidden_layers": 28,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "sliding_window": 32768,
    "tie_word_embeddings": True,
    "use_sliding_window": False,
    "vision_config": {
        "depth": 32,
        "embed_dim": 1280,
        "mlp_ratio": 4,
        "num_heads": 16,
        "in_chans": 3,
        "hidden_size": 1536,
        "patch_size": 14,
        "spatial_merge_size": 2,
        "spatial_patch_size": 14,
        "temporal_patch_size": 2,
    },
    "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
    "vocab_size": 151936,
}
TOWER_OF_2B = PUBLISHED_2B["vision_config"]
# What Qwen2.5-VL's 3B instruct model's says otherwise.
PUBLISHED_3B = PUBLISHED_2B | {
    "architectures": ["Qwen2_5_VLForConditionalGeneration"],
    "model_type": "qwen2_5_vl",
    "hidden_size": 2048,
    "intermediate_size": 11008,
    "max_position_embeddings": 128000,
    "max_window_layers": 70,
    "num_attention_heads": 16,
    "num_hidden_layers": 36,
    "vision_config": {
        "depth": 32,
        "hidden_act": "silu",
        "hidden_size": 1280,
        "intermediate_size": 3420,
        "num_heads": 16,
        "in_chans": 3,
        "out_hidden_size": 2048,
        "patch_size": 14,
        "spatial_merge_size": 2,
        "spatial_patch_size": 14,
        "window_size": 112,
        "fullatt_block_indexes": [7, 15, 23, 31],
        "tokens_per_second": 2,
        "temporal_patch_size": 2,
    },
}
# Qwen3-VL's 4B instruct model's, nested from the beginning.
PUBLISHED_4B = {
    "architectures": ["Qwen3VLForConditionalGeneration"],
    "image_token_id": 151655,
    "model_type": "qwen3_vl",
    "text_config": {
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": 151643,
        "dtype": "bfloat16",
        "eos_token_id": 151645,
        "head_dim": 128,
        "hidden_act": "silu",
        "hidden_size": 2560,
        "initializer_range": 0.02,
        "intermediate_size": 9728,
        "max_position_embeddings": 262144,
        "model_type": "qwen3_vl_text",
        "num_attention_heads": 32,
        "num_hidden_layers": 36,
        "num_key_value_heads": 8,
        "rms_norm_eps": 1e-06,
        "rope_scaling": {
            "mrope_interleaved": True,
            "mrope_section": [24, 20, 20],
            "rope_type": "default",
        },
        "rope_theta": 5000000,
        "tie_word_embeddings": True,
        "use_cache": True,
        "vocab_size": 151936,
    },
    "tie_word_embeddings": True,
    "video_token_id": 151656,
    "vision_config": {
        "deepstack_visual_indexes": [5, 11, 17],
        "depth": 24,
        "hidden_act": "gelu_pytorch_tanh",
        "hidden_size": 1024,
        "in_channels": 3,
        "initializer_range": 0.02,
        "intermediate_size": 4096,
        "model_type": "qwen3_vl",
        "num_heads": 16,
        "num_position_embeddings": 2304,
        "out_hidden_size": 2560,
        "patch_size": 16,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
    },
    "vision_end_token_id": 151653,
    "vision_start_token_id": 151652,
}
SMALL_WINDOWS = PUBLISHED_3B["vision_config"] | {"window_size": 14}


def test_published_files():
    assert ModelConfig.from_hf(PUBLISHED_2B) == QWEN2_VL_2B
    assert ModelConfig.from_hf(PUBLISHED_3B) == QWEN2_5_VL_3B
    assert ModelConfig.from_hf(PUBLISHED_4B) == QWEN3_VL_4B


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        ("text_config", {"attention_bias": True}, "attention_bias=True is not supported"),
        ("text_config", {"quantization_config": {"quant_method": "fp8"}}, r"quantised \(fp8\)"),
        ("text_config", {"rope_scaling": {"mrope_interleaved": False}}, "mrope_interleaved=False"),
        ("text_config", {"rope_scaling": {"mrope_section": [10, 27, 27]}}, "a third at most"),
        ("vision_config", {"patch_size": 14}, "vision_config.patch_size=14 is not supported"),
        ("vision_config", {"hidden_act": "silu"}, "vision_config.hidden_act='silu'"),
        ("vision_config", {"num_position_embeddings": 2300}, "2300 is not the square"),
        ("vision_config", {"deepstack_visual_indexes": [5, 24]}, "blocks in ascending order"),
        ("vision_config", {"deepstack_visual_indexes": [11, 5]}, "blocks in ascending order"),
        ("vision_config", {"rope_parameters": {"rope_theta": 5.0}}, "rope_theta=5.0 is not sup"),
    ],
)
def test_what_qwen3_vl_is_not_computed_with(tmp_path, part, change, message):
    changed = PUBLISHED_4B | {part: PUBLISHED_4B[part] | change}
    (tmp_path / "config.json").write_text(json.dumps(changed))
    with pytest.raises(CheckpointError, match=message):
        ModelConfig.from_folder(tmp_path)


@pytest.mark.parametrize("name", CONFIGS)
def test_round_trips(name):
    """Through our own form, and through transformers' newer nested one."""
    config = CONFIGS[name]
    assert ModelConfig.from_hf(json.loads(json.dumps(config.to_hf()))) == config
    nested = json.loads(reference.torch_config(config).to_json_string(use_diff=False))
    assert "text_config" in nested and "hidden_size" not in nested
    assert ModelConfig.from_hf(nested) == config


@pytest.mark.parametrize("outer, inner, tied", [(1, 1, 1), (0, 1, 1), (1, 0, 1), (0, 0, 0)])
def test_tied_at_either_level(outer, inner, tied):
    """Older files say it inside `text_config`, beside a default of false outside."""
    nested = reference.torch_config(QWEN2_VL_2B).to_dict()
    nested["tie_word_embeddings"] = bool(outer)
    nested["text_config"]["tie_word_embeddings"] = bool(inner)
    assert ModelConfig.from_hf(nested).text.tie_word_embeddings == bool(tied)


@pytest.mark.parametrize(
    "text, message",
    [
        ("{", "config.json: .*column"),
        ("[]", "config.json: "),
        (json.dumps(PUBLISHED_2B | {"model_type": "qwen3_5"}), "'qwen3_5' is not qwen2_vl or"),
        (json.dumps(PUBLISHED_4B | {"model_type": "qwen3_vl_moe"}), "without experts$"),
        (json.dumps(PUBLISHED_4B["text_config"] | {"model_type": "qwen3"}), "with a vision tower"),
        (
            json.dumps(PUBLISHED_3B | {"vision_config": TOWER_OF_2B}),
            "lacks the field 'vision_config.int",
        ),
        (json.dumps(PUBLISHED_3B | {"vision_config": SMALL_WINDOWS}), "hold a visual token"),
        (json.dumps(PUBLISHED_2B | {"use_sliding_window": True}), "use_sliding_window"),
        (json.dumps({k: v for k, v in PUBLISHED_2B.items() if k != "vocab_size"}), "vocab_size"),
        (
            json.dumps(PUBLISHED_2B | {"hidden_size": 1537}),
            r"hidden_size must be a multiple.*1537, 12",
        ),
        (json.dumps(QWEN2_VL_7B.to_hf() | {"vision_config": TOWER_OF_2B}), "decoder's width"),
        ("[" * 100_000, "config.json: .*recursion"),
    ],
)
def test_unusable_config_files(tmp_path, text, message):
    with pytest.raises(CheckpointError, match="No such file"):
        ModelConfig.from_folder(tmp_path)
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match=message):
        ModelConfig.from_folder(tmp_path)


BAD_FIELDS = {
    "num_attention_heads": [0, -12, "12", 1.5, True],
    "num_key_value_heads": [0],
    "num_hidden_layers": [0, 10**9],
    "vocab_size": [None, -1, 10**30],
    "rms_norm_eps": ["1e-6", -1.0, float("nan"), 1e-6 * 10**7, 10**400],
    "rope_theta": [-1.0, "1e6", float("inf"), 10**400],
    "tie_word_embeddings": ["false", "True", 2, []],
    "layer_types": [5, "full_attention", [["full_attention"]]],
    "model_type": [["qwen2_vl"], 2, None],
    "rope_scaling": ["mrope", {"mrope_section": [32, 32]}, {"mrope_section": [80, -40, 24]}],
    "text_config": [[1]],
    "vision_config": [
        [],
        "vit",
        *(TOWER_OF_2B | field for field in ({"num_heads": 0}, {"num_heads": 7}, {"depth": "32"})),
    ],
    "eos_token_id": [-1, "<|im_end|>", [151645, -1], [[151645]], True, 151936, [1, 151936]],
    "bos_token_id": [[1, 2], 1.0],
    "image_token_id": [-151655, {}],
}


@pytest.mark.parametrize("field", BAD_FIELDS)
def test_values_that_no_field_can_have(tmp_path, field):
    for value in BAD_FIELDS[field]:
        (tmp_path / "config.json").write_text(json.dumps(PUBLISHED_2B | {field: value}))
        with pytest.raises(CheckpointError) as caught:
            ModelConfig.from_folder(tmp_path)
        line = str(caught.value)
        assert line.startswith(f"{tmp_path}/config.json: ") and "\n" not in line, value
        if field == "vision_config" and value and isinstance(value, dict):
            names = ("vision_config.num_heads=", "vision_config.depth=", "its num_heads (1280, 7)")
        else:
            names = ("mrope_section", field)
        assert any(name in line for name in names), line


def test_an_answer_may_end_with_several_tokens(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(PUBLISHED_2B | {"eos_token_id": [7, 9]}))
    config = ModelConfig.from_folder(tmp_path)
    assert config.end_tokens == (7, 9) and config == QWEN2_VL_2B
    assert ModelConfig.from_hf(config.to_hf()).end_tokens == (7, 9)
    path = tmp_path / "generation_config.json"
    path.write_text(json.dumps({"eos_token_id": [151645, 9], "temperature": 0.1}))
    config = ModelConfig.from_folder(tmp_path)
    assert config.end_tokens == (7, 9, 151645) and config.to_hf()["eos_token_id"] == [7, 9]
    (tmp_path / "config.json").write_text(json.dumps(PUBLISHED_2B))
    config = ModelConfig.from_folder(tmp_path)
    assert config.end_tokens == (151645, 9) and config.to_hf()["eos_token_id"] == 151645
    for text in ("{", "[]", "[" * 100_000, '{"eos_token_id": [-1]}', '{"eos_token_id": 151936}'):
        path.write_text(text)
        with pytest.raises(CheckpointError, match=r"generation_config\.json: .*; .*"):
            ModelConfig.from_folder(tmp_path)
