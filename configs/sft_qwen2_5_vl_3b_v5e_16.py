"""Trajectory SFT of Qwen2.5-VL-3B on a TPU v5e slice of 16 chips (4x4).

The paper trains Qwen2.5-VL-7B; the smaller model is ours.
"""

from configs import machines
from mirg_jax import defaults


def get_config():
    config = machines.v5e_16(defaults.sft())
    config.model.path = "Qwen/Qwen2.5-VL-3B-Instruct"
    config.sampling.tensor = 2  # its key/value heads
    return config
