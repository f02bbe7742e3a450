"""What a table of rows is made of; configs/table_2.py and configs/table_3.py are the paper's.

`scripts/table.py` runs them. A row is a recipe with a few changes, so whatever a recipe has can be
set for all rows (--config.recipes.grpo.num_steps=50) or one (--config.rows.rl.changes=…).
"""

from ml_collections import ConfigDict

from configs import trajectories
from mirg_jax.mig_bench import paper


def row(
    title: str,
    figures: paper.Means | None,
    recipe: str,
    data: str,
    start: str,
    changes: dict | None = None,
    annotator: str = "annotated",
    against: str = "",
) -> ConfigDict:
    """A row that trains by a recipe.

    Args:
      figures: the paper's.
      data: a variant of the trajectories (`trajectories/outputs.py`), "rl" for the answers of RL;
        "" trains nothing: the row is the recipe's own model.
      start: the row that it starts from; "" for the recipe's own model.
      changes: to the recipe's fields.
      annotator: whose trajectories, of the table's `annotators`.
      against: the row that its gain is over; "" for the one that it starts from.
    """
    return ConfigDict(
        {
            "title": title,
            "paper": list(figures or ()),
            "recipe": recipe,
            "data": data,
            "start": start,
            "changes": changes or {},
            "annotator": annotator,
            "against": against,
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
            # How many procedural scenes to draw in place of such data; 0: don't. Tasks: "training",
            # the seven that the paper trains on, or "all", the benchmark's ten.
            "scenes": {
                "sft": 0,
                "rl": 0,
                "evaluation": 0,
                "first_seed": 1000,
                "tasks": "training",
            },  # fmt: skip
            "annotators": {"annotated": trajectories.scenes()},  # of the scenes
        }
    )


def scenes(config: ConfigDict, *, sft: int, rl: int, evaluation: int) -> ConfigDict:
    """The table at the small scale, on scenes of its own for every seed."""
    config.scenes.update(sft=sft, rl=rl, evaluation=evaluation)
    return config
