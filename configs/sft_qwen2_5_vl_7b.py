"""Trajectory SFT of Qwen2.5-VL-7B on 8 x 80 GB as in the paper's Table 2.

The paper's values and the open ones are told apart in mirg_jax/defaults.py.
"""

from configs import machines
from mirg_jax import defaults


def get_config():
    config = machines.gpu_8(defaults.sft())
    config.model.path = "Qwen/Qwen2.5-VL-7B-Instruct"
    return config
