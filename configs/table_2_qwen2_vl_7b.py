"""Table 2 of the paper, its rows of Qwen2-VL-7B, on 8 x 80 GB.

Its flags are those of table_3_qwen2_vl_7b.py.
"""

from configs import grpo_qwen2_vl_7b, sft_qwen2_vl_7b, tables


def get_config():
    stages = {"sft": sft_qwen2_vl_7b.get_config(), "grpo": grpo_qwen2_vl_7b.get_config()}
    return tables.table_2({"Qwen2-VL-7B": stages})
