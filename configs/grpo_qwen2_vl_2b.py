"""Image-aware GRPO of Qwen2-VL-2B on one 80 GB GPU.

The paper trains Qwen2-VL-7B; the smaller model is ours.

Start it from the SFT run: --config.init_from=runs/sft.
"""

from configs import machines
from mirg_jax import defaults


def get_config():
    config = machines.gpu_1(defaults.grpo())
    config.model.path = "Qwen/Qwen2-VL-2B-Instruct"
    return config
