"""Table 3 of the paper as it is there: Qwen2-VL-7B on 8 x 80 GB.

    python scripts/table.py --config=configs/table_3_qwen2_vl_7b.py --workdir=runs/table_3 \\
        --config.data.trajectories=runs/trajectories --config.data.image_root=data \\
        --config.data.rl_json=runs/trajectories/selection/rl.jsonl \\
        --config.data.benchmark=MIG_data.json --config.data.benchmark_images=MIG-Bench
"""

from configs import grpo_qwen2_vl_7b, sft_qwen2_vl_7b, tables


def get_config():
    return tables.table_3(sft_qwen2_vl_7b.get_config(), grpo_qwen2_vl_7b.get_config())
