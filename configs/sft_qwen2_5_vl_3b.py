"""Trajectory SFT of Qwen2.5-VL-3B on 8 x 80 GB.

The paper trains Qwen2.5-VL-7B; the smaller model is ours.
"""

from configs import machines
from mirg_jax import defaults


def get_config():
    config = machines.gpu_8(defaults.sft())
    config.model.path = "Qwen/Qwen2.5-VL-3B-Instruct"
    return config
