"""Table 3 of the paper with the small model on a CPU: a quarter of an hour a seed on two cores."""

from configs import grpo_tiny, sft_tiny, tables


def get_config():
    sft, grpo = sft_tiny.get_config(), grpo_tiny.get_config()
    grpo.num_steps = 50  # half of the demo's
    config = tables.table_3(sft, grpo)
    return tables.scenes(config, sft=6400, rl=800, evaluation=770)
