"""Image-aware GRPO of Qwen2.5-VL-3B on 8 x 80 GB.

The paper trains Qwen2.5-VL-7B; the smaller model is ours.

Start it from the SFT run: --config.init_from=runs/sft.
"""

from configs import machines
from mirg_jax import defaults


def get_config():
    config = machines.gpu_8(defaults.grpo())
    config.model.path = "Qwen/Qwen2.5-VL-3B-Instruct"
    return config
