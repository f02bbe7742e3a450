"""Trajectory SFT of Qwen2-VL-7B on 8 x 80 GB as in the paper; configs/sft.py has all others."""

from configs import sft


def get_config():
    return sft.get_config("qwen2_vl_7b,gpu_8")
