"""Trajectory SFT of a model on a machine, of the whole decoder or with adapters.

    python scripts/train_sft.py --config=configs/sft.py:qwen2_vl_7b,v5e_16 --workdir=runs/sft \\
        --config.data.train_json=sft.jsonl --config.data.image_root=data

The argument is MODEL,MACHINE or MODEL,MACHINE,lora, with the names of configs/models.py and
configs/machines.py. What is left out is the paper's: qwen2_vl_7b,gpu_8 (8 x 80 GB). In its Table
2 the paper trains qwen2_5_vl_7b too; all other models and machines, adapters and their learning
rate are ours. The paper's values and the open ones are told apart in mirg_jax/defaults.py.
"""

from configs import recipes
from mirg_jax import defaults


def get_config(argument: str = "qwen2_vl_7b"):
    return recipes.training("sft", defaults.sft(), argument)
