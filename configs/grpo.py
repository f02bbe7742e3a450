"""Image-aware GRPO of a model on a machine, of the whole decoder or with adapters.

    python scripts/train_grpo.py --config=configs/grpo.py:qwen2_vl_2b,one,lora \\
        --workdir=runs/grpo --config.init_from=runs/sft \\
        --config.data.train_json=rl.jsonl --config.data.image_root=data

The argument is MODEL,MACHINE or MODEL,MACHINE,lora, with the names of configs/models.py and
configs/machines.py. What is left out is the paper's: qwen2_vl_7b,gpu_8 (8 x 80 GB). In its Table
2 the paper trains qwen2_5_vl_7b too; all other models and machines, adapters and their learning
rate are ours. The paper's values and the open ones are told apart in mirg_jax/defaults.py.

Start it from the SFT run: --config.init_from=runs/sft.
"""

from configs import recipes
from mirg_jax import defaults


def get_config(argument: str = "qwen2_vl_7b"):
    return recipes.training("grpo", defaults.grpo(), argument)
