"""The main job at the small scale: scenes, trajectories, SFT, image-aware GRPO, evaluation, report.

    python scripts/demo.py --workdir=runs/demo

Writes WORKDIR/summary.json, report.html, and a folder for each stage. With several --seeds the
whole chain is run for each, on fresh training and evaluation scenes, and WORKDIR/seeds.json says
what GRPO gained over SFT, question by question. Run it again to go on where it was interrupted.
"""

from absl import flags

from configs import demo as config
from mirg_jax import cli
from mirg_jax.experiments import demo, rows
from mirg_jax.scenes.scene_tasks import TASKS

_WORKDIR = flags.DEFINE_string("workdir", "runs/demo", "Folder that everything is written to.")
_BASE = flags.DEFINE_string(
    "base", "assets/small_base", "Model that SFT starts from: a Hugging Face folder or a run."
)
_QUICK = flags.DEFINE_bool(
    "quick", False, "Take ten steps a stage: three minutes, too few to learn anything."
)
_SEEDS = flags.DEFINE_list(
    "seeds", ["0"], "Random seeds, separated by commas; the whole chain is run for each."
)
_TASKS = flags.DEFINE_enum(
    "tasks",
    "training",
    list(TASKS),
    "Tasks of the scenes: the seven that the paper trains on, or all ten of the benchmark.",
)
_N_EVAL = flags.DEFINE_integer(
    "n_eval",
    None,
    "Number of held-out questions; 770 by default, 70 with --quick.",
    lower_bound=1,
)


def main(_):
    seeds = cli.seeds(_SEEDS)
    count = _N_EVAL.value or (70 if _QUICK.value else 770)
    table = config.get_config(_BASE.value, count, _QUICK.value)
    table.scenes.tasks = _TASKS.value
    demo.run(rows.read(table), cli.output_folder(_WORKDIR), seeds)
    if _QUICK.value:
        print("--quick shows that everything runs; ten steps a stage are too few to learn anything")


if __name__ == "__main__":
    cli.run(main)
