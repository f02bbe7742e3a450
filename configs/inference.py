"""A model as it is published, answering questions on a machine.

    python scripts/evaluate.py --config=configs/inference.py:qwen2_vl_72b,v5p_8 \\
        --checkpoint=Qwen/Qwen2-VL-72B-Instruct --benchmark=MIG_data.json \\
        --image_root=MIG-Bench --output_dir=runs/qwen2_vl_72b/eval

The argument is MODEL,MACHINE, with the names of configs/models.py and configs/machines.py. What is
left out is qwen2_vl_72b,v5p_8: the paper uses this model for stage 2 of its data; the machine is
ours. A copy of the weights is divided over all devices, but no more than there are key/value heads.
"""

from configs import recipes
from mirg_jax import defaults


def get_config(argument: str = "qwen2_vl_72b"):
    choice = recipes.parse("inference", argument, machine="v5p_8", lora=False)
    config = defaults.inference()
    config.model.path = choice.path
    defaults.for_family(config, choice.family)
    config.mesh.update(fsdp=1, tensor=-1)
    config.sampling.tensor = min(choice.machine.devices, choice.kv_heads)
    config.evaluation.batch_size = 4
    return config
