"""Table 2 of the paper as it is there: Qwen2-VL-7B and Qwen2.5-VL-7B on 8 x 80 GB.

Its flags are those of table_3_qwen2_vl_7b.py.
"""

from configs import grpo, sft, tables


def get_config():
    return tables.table_2(
        {
            "Qwen2-VL-7B": {
                "sft": sft.get_config("qwen2_vl_7b,gpu_8"),
                "grpo": grpo.get_config("qwen2_vl_7b,gpu_8"),
            },
            "Qwen2.5-VL-7B": {
                "sft": sft.get_config("qwen2_5_vl_7b,gpu_8"),
                "grpo": grpo.get_config("qwen2_5_vl_7b,gpu_8"),
                # As published it speaks of pixels; what is trained from it speaks the grid.
                "base": {"evaluation": {"coordinates": "pixels"}},
            },
        }
    )
