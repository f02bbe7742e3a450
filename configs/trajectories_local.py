"""As configs/trajectories_mgrounding.py, with Qwen2-VL-72B of stage 2 in this process.

Its recipe is for 8 TPU v5p chips; give your own machine's. It says the likeliest boxes.
"""

from configs import inference
from mirg_jax.trajectories import settings


def get_config():
    config = settings.trajectories()
    recipe = inference.get_config("qwen2_vl_72b,v5p_8")
    config.stages.mapping.update(teacher="model", model=recipe.model.path, temperature=0.0)
    config.stages.mapping.recipe = recipe
    return config
