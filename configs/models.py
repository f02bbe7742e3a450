"""The models that recipes are for: their names here, and on the Hugging Face hub.

The paper trains the two of 7B and has the one of 72B answer questions in the construction of its
data; all others are ours. Their sizes are in mirg_jax/models/sizes.py. Qwen3-VL's thinking variants
have the same: --config.model.path=Qwen/Qwen3-VL-8B-Thinking --config.prompt.thinking=True
"""

MODELS = {
    "qwen2_vl_2b": "Qwen/Qwen2-VL-2B-Instruct",
    "qwen2_vl_7b": "Qwen/Qwen2-VL-7B-Instruct",
    "qwen2_vl_72b": "Qwen/Qwen2-VL-72B-Instruct",
    "qwen2_5_vl_3b": "Qwen/Qwen2.5-VL-3B-Instruct",
    "qwen2_5_vl_7b": "Qwen/Qwen2.5-VL-7B-Instruct",
    "qwen3_vl_2b": "Qwen/Qwen3-VL-2B-Instruct",
    "qwen3_vl_4b": "Qwen/Qwen3-VL-4B-Instruct",
    "qwen3_vl_8b": "Qwen/Qwen3-VL-8B-Instruct",
    "qwen3_vl_32b": "Qwen/Qwen3-VL-32B-Instruct",
}
