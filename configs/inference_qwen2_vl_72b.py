"""Qwen2-VL-72B answering questions on 8 TPU v5p chips (2x2x2), for the construction of data.

The paper uses this model for stage 2 of its data; the machine is ours.
"""

from mirg_jax import defaults


def get_config():
    config = defaults.inference()
    config.model.path = "Qwen/Qwen2-VL-72B-Instruct"
    config.mesh.update(fsdp=1, tensor=-1)
    config.sampling.tensor = 8
    config.evaluation.batch_size = 4
    return config
