"""Where the reasoning trajectories come from: the paper's teachers, or ours.

    python scripts/build_trajectories.py --config=configs/trajectories.py:mgrounding \\
        --input=data/MGrounding-630k --image_root=data --output_dir=runs/trajectories --dry_run

The argument is mgrounding (the paper's, and the default), local or scenes (ours).
"""

from configs import inference, recipes
from mirg_jax.trajectories import settings


def mgrounding():
    """The paper's data: 10k trajectories and 7k questions from MGrounding-630k.

    GPT-4o for stages 1 and 3 (key in OPENAI_API_KEY), Qwen2-VL-72B on vLLM for stage 2:

        vllm serve Qwen/Qwen2-VL-72B-Instruct --tensor-parallel-size 4 \\
            --limit-mm-per-prompt.image 8
    """
    return settings.trajectories()


def local():
    """As `mgrounding`, with Qwen2-VL-72B of stage 2 in this process.

    Its recipe is for 8 TPU v5p chips; give your own machine's. It says the likeliest boxes.
    """
    config = settings.trajectories()
    recipe = inference.get_config("qwen2_vl_72b,v5p_8")
    config.stages.mapping.update(teacher="model", model=recipe.model.path, temperature=0.0)
    config.stages.mapping.recipe = recipe
    return config


def scenes():
    """Trajectories of the procedural scenes, by the embedded teacher: no network, no cost.

    As in the paper the annotator is imperfect: a side of a box lies up to 0.3 sides too far out,
    and the truth doesn't correct it.
    """
    config = settings.trajectories()
    for stage in config.stages.values():
        stage.teacher = "scenes"
        stage.update(requests_per_minute=0.0, tokens_per_minute=0.0)
        stage.update(prompt_price=0.0, completion_price=0.0)
    config.select.update(sft=0, rl=0)
    config.checks.update(answer_iou=0.3, match_iou=0.3, truth_boxes=False, min_words=5)
    config.scenes.error = 0.3
    return config


SOURCES = {"mgrounding": mgrounding, "local": local, "scenes": scenes}


def get_config(argument: str = "mgrounding"):
    return recipes.choose("configs/trajectories.py", "source", argument, SOURCES)()
