"""Trajectory SFT of Qwen2-VL-7B with adapters, on one 80 GB GPU.

The paper trains the whole model; the adapters and their learning rate are ours.
"""

from configs import machines
from mirg_jax import defaults


def get_config():
    return machines.lora(machines.gpu_1(defaults.sft()))
