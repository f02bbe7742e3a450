"""Image-aware GRPO of Qwen2-VL-2B with adapters, on one TPU v5e or v6e chip, or a GPU of 16 GB.

The paper trains the whole of Qwen2-VL-7B; the smaller model, the adapters and their learning
rate are ours.

Start it from the SFT run: --config.init_from=runs/sft.
"""

from configs import machines
from mirg_jax import defaults


def get_config():
    config = machines.lora(machines.one(defaults.grpo()))
    config.model.path = "Qwen/Qwen2-VL-2B-Instruct"
    return config
