"""The paper's data: 10k trajectories and 7k questions from MGrounding-630k.

GPT-4o for stages 1 and 3 (key in OPENAI_API_KEY), Qwen2-VL-72B on vLLM for stage 2:

    vllm serve Qwen/Qwen2-VL-72B-Instruct --tensor-parallel-size 4 --limit-mm-per-prompt.image 8
"""

from mirg_jax.trajectories import settings


def get_config():
    return settings.trajectories()
