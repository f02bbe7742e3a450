"""Trajectory SFT of Qwen2-VL-7B as in the paper: 10k samples, batch 128, learning rate 2e-5.

The paper's values and the open ones are told apart in mirg_jax/defaults.py.
"""

from mirg_jax import defaults


def get_config():
    return defaults.sft()
