"""Image-aware GRPO of Qwen2-VL-7B on 8 x 80 GB as in the paper; configs/grpo.py has all others.

Start it from the SFT run: --config.init_from=runs/sft.
"""

from configs import grpo


def get_config():
    return grpo.get_config("qwen2_vl_7b,gpu_8")
