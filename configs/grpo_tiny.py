"""Image-aware GRPO of the small model, on a CPU: the demo's second stage."""

from configs.sft_tiny import tiny
from mirg_jax import defaults


def get_config():
    config = tiny(defaults.grpo())
    config.num_steps = 100
    config.batch_size = 16
    config.prompts_per_micro_batch = 16
    config.optimizer.learning_rate = 4e-4
    config.data.shapes.lengths = (96,)
    config.grpo.max_tokens = 112
    config.grpo.completion_lengths = (80, 96, 112)
    return config
