"""Image-aware GRPO of Qwen2-VL-7B on 8 x 80 GB as in the paper.

The paper's values and the open ones are told apart in mirg_jax/defaults.py.

Start it from the SFT run: --config.init_from=runs/sft.
"""

from configs import machines
from mirg_jax import defaults


def get_config():
    return machines.gpu_8(defaults.grpo())
