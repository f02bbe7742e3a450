"""The demo: the small model before and after SFT and GRPO, and after the same SFT on exact boxes.

scripts/demo.py runs it. Evaluation scenes begin at seed 1000, away from all that recipes were
chosen on.
"""

from configs import grpo_tiny, sft_tiny, tables, trajectories


def get_config(base: str = "assets/small_base", evaluation: int = 770, quick: bool = False):
    """The demo's table.

    Args:
      base: the model that SFT starts from.
      evaluation: held-out questions, the tasks in turn.
      quick: ten steps of each stage, too few to learn.
    """
    recipes = {"sft": sft_tiny.get_config(), "grpo": grpo_tiny.get_config()}
    for recipe in recipes.values():
        sft_tiny.of_base(recipe, base)
        if quick:
            recipe.num_steps = 10
    sft, grpo = recipes["sft"], recipes["grpo"]
    rows = {
        "base": tables.row("base", None, "sft", "", ""),
        "sft": tables.row("sft", None, "sft", "grounded", ""),
        "grpo": tables.row("grpo", None, "grpo", "rl", "sft"),
        "sft_exact": tables.row(
            "sft on exact boxes", None, "sft", "grounded", "", annotator="exact"
        ),
    }
    title = "mirg_jax demo" + " (quick: ten steps a stage, too few to learn anything)" * quick
    config = tables.table(title, rows, recipes)
    # The annotator errs; beside it, one that never does.
    config.annotators.exact = trajectories.scenes()
    config.annotators.exact.scenes.error = 0.0
    counts = {stage: r.batch_size * r.num_steps for stage, r in (("sft", sft), ("rl", grpo))}
    return tables.scenes(config, **counts, evaluation=evaluation)
