"""Image-aware GRPO of Qwen2.5-VL-7B on 8 x 80 GB as in the paper's Table 2.

The paper's values and the open ones are told apart in mirg_jax/defaults.py.

Start it from the SFT run: --config.init_from=runs/sft.
"""

from configs import machines
from mirg_jax import defaults


def get_config():
    config = machines.gpu_8(defaults.grpo())
    config.model.path = "Qwen/Qwen2.5-VL-7B-Instruct"
    return config
