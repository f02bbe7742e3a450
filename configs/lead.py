"""GRPO that chooses its groups as MG-Thinker does (arXiv 2609.37374), in place of the paper's.

    python scripts/train_grpo.py --config=configs/lead.py:qwen2_5_vl_7b,gpu_8 \\
        --workdir=runs/lead --config.init_from=runs/sft --config.data.train_json=rl.jsonl \\
        --config.data.image_root=data

The argument is as for configs/grpo.py; what is left out is MG-Thinker's own: qwen2_5_vl_7b,gpu_8,
though on 8 x 80 GB and not 40. docs/algorithms.md has its figures beside the paper's. What its
report doesn't give (the number of updates a rollout, the weights of the rewards) is ours.
"""

from configs import recipes
from mirg_jax import defaults


def get_config(argument: str = "qwen2_5_vl_7b"):
    config = defaults.grpo()
    config.optimizer.learning_rate = 1e-6
    config.batch_size = 16
    config.num_steps = 146  # one epoch of 7k prompts, 48 a step
    config.grpo.update(
        group=16,
        pool=3,
        gate=(0.05, 0.025, 0.0125, 0.00625),
        order="reward",
        clip_high=0.28,
        normalisation="token",
        beta=0.01,
        more_rewards=("object_bounded_gated",),
    )
    config.grpo.rewards.object = 0.0
    config = recipes.training("grpo", config, argument, file="lead")
    # A few updates a rollout, the easy groups first, as many as micro-batches leave room for.
    config.grpo.mini_batches = max(1, min(2, config.batch_size // config.prompts_per_micro_batch))
    return config
