"""Table 2 of the paper: other base models.

    python scripts/table.py --config=configs/table_2.py:tiny --workdir=runs/table_2 --seeds=1,2,3

The argument is 7b (the paper's Qwen2-VL-7B and Qwen2.5-VL-7B on its 8 x 80 GB, and the default;
its flags are those of configs/table_3.py:qwen2_vl_7b) or tiny (ours: two small models on a CPU).
"""

from ml_collections import ConfigDict

from configs import grpo, grpo_tiny, recipes, sft, sft_tiny, tables
from mirg_jax.mig_bench import paper


def rows_of(models: dict[str, dict]) -> ConfigDict:
    """The table of these models.

    Args:
      models: by name in the table, the recipes "sft" and "grpo", and what "base" changes, if it
        does.
    """
    rows, stages = {}, {}
    for number, (name, model) in enumerate(models.items()):
        first, second = f"sft_{number}", f"grpo_{number}"
        stages |= {first: model["sft"], second: model["grpo"]}
        titles = [name, f"{name} + Trajectory SFT", f"{name} + Trajectory SFT + RL"]
        base, trained, rewarded = ((title, paper.TABLE_2.get(title)) for title in titles)
        rows |= {
            f"base_{number}": tables.row(*base, first, "", "", model.get("base")),
            first: tables.row(*trained, first, "reasoning", ""),
            second: tables.row(*rewarded, second, "rl", first, tables.WITHOUT_IMAGES),
        }
    return tables.table("Table 2: base models", rows, stages)


def tiny():
    models = {}
    for name, path in {
        "Qwen2-VL-7B": "assets/small_base",
        "Qwen2.5-VL-7B": "assets/small_base_qwen2_5_vl",
    }.items():
        models[name] = {"sft": sft_tiny.get_config(), "grpo": grpo_tiny.get_config()}
        for stage in models[name].values():
            sft_tiny.of_base(stage, path)
        models[name]["grpo"].num_steps = 50  # half of the demo's
    return tables.scenes(rows_of(models), sft=6400, rl=800, evaluation=770)


def large():
    def stages(model):
        recipe = f"{model},gpu_8"
        return {"sft": sft.get_config(recipe), "grpo": grpo.get_config(recipe)}

    # As published it speaks of pixels; what is trained from it speaks the grid.
    pixels = {"evaluation": {"coordinates": "pixels"}}
    return rows_of(
        {
            "Qwen2-VL-7B": stages("qwen2_vl_7b"),
            "Qwen2.5-VL-7B": stages("qwen2_5_vl_7b") | {"base": pixels},
        }
    )


SCALES = {"7b": large, "tiny": tiny}


def get_config(argument: str = "7b"):
    return recipes.choose("configs/table_2.py", "scale", argument, SCALES)()
