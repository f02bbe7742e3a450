"""Trajectory SFT of Qwen2-VL-2B with adapters, on 8 TPU v5e chips (Kaggle's).

The paper trains the whole of Qwen2-VL-7B; the smaller model, the adapters and their learning
rate are ours.
"""

from configs import machines
from mirg_jax import defaults


def get_config():
    config = machines.lora(machines.v5e_8(defaults.sft()))
    config.model.path = "Qwen/Qwen2-VL-2B-Instruct"
    return config
