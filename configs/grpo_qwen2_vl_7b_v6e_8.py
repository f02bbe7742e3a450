"""Image-aware GRPO of Qwen2-VL-7B on 8 TPU v6e chips (2x4).

The paper's values and the open ones are told apart in mirg_jax/defaults.py; the machine is ours.

Start it from the SFT run: --config.init_from=runs/sft.
"""

from configs import machines
from mirg_jax import defaults


def get_config():
    return machines.v6e_8(defaults.grpo())
