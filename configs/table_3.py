"""Table 3 of the paper: training data and methods.

    python scripts/table.py --config=configs/table_3.py:qwen2_vl_7b --workdir=runs/table_3 \\
        --config.data.trajectories=runs/trajectories --config.data.image_root=data \\
        --config.data.rl_json=runs/trajectories/selection/rl.jsonl \\
        --config.data.benchmark=MIG_data.json --config.data.benchmark_images=MIG-Bench

The argument is qwen2_vl_7b (the paper's, on its 8 x 80 GB, and the default) or tiny (ours: the
small model on a CPU, a quarter of an hour a seed on two cores). The last row, without the image
reward, is ours too.
"""

from ml_collections import ConfigDict

from configs import grpo, grpo_tiny, recipes, sft, sft_tiny, tables
from mirg_jax.mig_bench import paper


def rows_of(sft: ConfigDict, grpo: ConfigDict) -> ConfigDict:
    """The table of these two recipes."""
    figures = paper.TABLE_3
    both = "Reasoning and Grounding SFT"
    without = tables.WITHOUT_IMAGES

    def of(title, *how):
        return tables.row(title, figures.get(title), *how)

    rows = {
        "base": tables.row("base", figures["Qwen2-VL-7B"], "sft", "", ""),
        "rl": of("RL", "grpo", "rl", "", without),
        "sft": of("SFT", "sft", "bbox_caption", ""),
        "sft_rl": of("SFT + RL", "grpo", "rl", "sft", without),
        "reasoning": of("Reasoning-only SFT", "sft", "reasoning", ""),
        "reasoning_rl": of("Reasoning-only SFT + RL", "grpo", "rl", "reasoning", without),
        "grounded": of(both, "sft", "grounded", ""),
        "grounded_rl": of(f"{both} + RL", "grpo", "rl", "grounded"),
        "grounded_rl_no_image": of(
            f"{both} + RL without the image reward", "grpo", "rl", "grounded", without
        ),
    }
    return tables.table("Table 3: training data and methods", rows, {"sft": sft, "grpo": grpo})


def tiny():
    stages = {"sft": sft_tiny.get_config(), "grpo": grpo_tiny.get_config()}
    stages["grpo"].num_steps = 50  # half of the demo's
    return tables.scenes(rows_of(**stages), sft=6400, rl=800, evaluation=770)


def large():
    recipe = "qwen2_vl_7b,gpu_8"
    return rows_of(sft.get_config(recipe), grpo.get_config(recipe))


SCALES = {"qwen2_vl_7b": large, "tiny": tiny}


def get_config(argument: str = "qwen2_vl_7b"):
    return recipes.choose("configs/table_3.py", "scale", argument, SCALES)()
