"""The rows of the paper's Tables 2 and 3: from where each starts, on what data, for which reward.

`scripts/table.py` runs them. A row is a recipe with a few changes, so whatever a recipe has can be
set for all rows (--config.recipes.grpo.num_steps=50) or one (--config.rows.rl.changes=…).
"""

from ml_collections import ConfigDict

from configs import trajectories_scenes
from mirg_jax.mig_bench import paper


def row(
    title: str,
    figures: paper.Means | None,
    recipe: str,
    data: str,
    start: str,
    changes: dict | None = None,
) -> ConfigDict:
    """A row that trains by a recipe.

    Args:
      figures: the paper's.
      data: a variant of the trajectories (`trajectories/outputs.py`), "rl" for the answers of RL;
        "" trains nothing: the row is the recipe's own model.
      start: the row that it starts from; "" for the recipe's own model.
      changes: to the recipe's fields.
    """
    return ConfigDict(
        {
            "title": title,
            "paper": list(figures or ()),
            "recipe": recipe,
            "data": data,
            "start": start,
            "changes": changes or {},
        }
    )


# The image reward belongs to the last row of Table 3 alone.
WITHOUT_IMAGES = {"grpo": {"rewards": {"image": 0.0}}}


def table(title: str, rows: dict[str, ConfigDict], recipes: dict[str, ConfigDict]) -> ConfigDict:
    return ConfigDict(
        {
            "title": title,
            "order": tuple(rows),  # the rows to run; each after the one that it starts from
            "rows": rows,
            "recipes": recipes,
            "data": {
                "trajectories": "",  # an output folder of scripts/build_trajectories.py
                "rl_json": "",  # answers alone
                "image_root": "",
                "benchmark": "",  # MIG-Bench's format
                "benchmark_images": "",  # folder that its paths begin in
            },
            # How many procedural scenes to draw in place of such data; 0: don't.
            "scenes": {"sft": 0, "rl": 0, "evaluation": 0, "first_seed": 1000},
            "annotator": trajectories_scenes.get_config(),  # of the scenes
        }
    )


def scenes(config: ConfigDict, *, sft: int, rl: int, evaluation: int) -> ConfigDict:
    """The table at the small scale, on scenes of its own for every seed."""
    config.scenes.update(sft=sft, rl=rl, evaluation=evaluation)
    return config


def table_2(models: dict[str, dict]) -> ConfigDict:
    """Table 2: other base models.

    Args:
      models: by name in the table, the recipes "sft" and "grpo", and what "base" changes, if it
        does.
    """
    rows, recipes = {}, {}
    for number, (name, stages) in enumerate(models.items()):
        sft, grpo = f"sft_{number}", f"grpo_{number}"
        recipes |= {sft: stages["sft"], grpo: stages["grpo"]}
        titles = [name, f"{name} + Trajectory SFT", f"{name} + Trajectory SFT + RL"]
        base, first, second = ((title, paper.TABLE_2.get(title)) for title in titles)
        rows |= {
            f"base_{number}": row(*base, sft, "", "", stages.get("base")),
            sft: row(*first, sft, "reasoning", ""),
            grpo: row(*second, grpo, "rl", sft, WITHOUT_IMAGES),
        }
    return table("Table 2: base models", rows, recipes)


def table_3(sft: ConfigDict, grpo: ConfigDict) -> ConfigDict:
    """Table 3: training data and methods; the last row without the image reward is ours."""
    figures = paper.TABLE_3
    both = "Reasoning and Grounding SFT"

    def of(title, *how):
        return row(title, figures.get(title), *how)

    rows = {
        "base": row("base", figures["Qwen2-VL-7B"], "sft", "", ""),
        "rl": of("RL", "grpo", "rl", "", WITHOUT_IMAGES),
        "sft": of("SFT", "sft", "bbox_caption", ""),
        "sft_rl": of("SFT + RL", "grpo", "rl", "sft", WITHOUT_IMAGES),
        "reasoning": of("Reasoning-only SFT", "sft", "reasoning", ""),
        "reasoning_rl": of("Reasoning-only SFT + RL", "grpo", "rl", "reasoning", WITHOUT_IMAGES),
        "grounded": of(both, "sft", "grounded", ""),
        "grounded_rl": of(f"{both} + RL", "grpo", "rl", "grounded"),
        "grounded_rl_no_image": of(
            f"{both} + RL without the image reward", "grpo", "rl", "grounded", WITHOUT_IMAGES
        ),
    }
    return table("Table 3: training data and methods", rows, {"sft": sft, "grpo": grpo})
