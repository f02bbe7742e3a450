"""Image-aware GRPO of Qwen2-VL-7B as in the paper: 7k samples, learning rate 5e-6.

Start it from the SFT run: --config.init_from=runs/sft.
"""

from mirg_jax import defaults


def get_config():
    return defaults.grpo()
