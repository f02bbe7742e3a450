"""Trajectory SFT of Qwen2.5-VL-7B on a TPU v5e slice of 16 chips (4x4).

The paper's values and the open ones are told apart in mirg_jax/defaults.py; the machine is ours.
"""

from configs import machines
from mirg_jax import defaults


def get_config():
    config = machines.v5e_16(defaults.sft())
    config.model.path = "Qwen/Qwen2.5-VL-7B-Instruct"
    return config
