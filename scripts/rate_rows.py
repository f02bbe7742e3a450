"""Rates training rows by how well a model answers them: mean IoU, its spread, and hit rate.

    python scripts/rate_rows.py --config=configs/grpo_qwen2_vl_7b.py --checkpoint=runs/sft \\
        --rows=rl.jsonl --image_root=data --output_dir=runs/sft/ratings

Each row is answered --answers times. Writes ratings.jsonl, a line for each row, and
predictions.jsonl, answer by answer; run the same command again to continue. Training takes rows by
them: --config.data.ratings=runs/sft/ratings/ratings.jsonl --config.data.difficulty="(0.1,0.9)".
With --config.evaluation.direct=True, answers without thoughts are asked for.
"""

import numpy as np
from absl import flags
from ml_collections import config_flags

from mirg_jax import cli
from mirg_jax.evaluation import rating
from mirg_jax.runs.settings import read
from mirg_jax.sharding import processes

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Recipe: a Python file in configs/ that returns the settings."
)
_CHECKPOINT = flags.DEFINE_string(
    "checkpoint",
    None,
    "Model that answers: a run's folder, one of its checkpoints, RUN/best, a Hugging Face folder "
    "or a hub name.",
    required=True,
)
_ROWS = flags.DEFINE_string("rows", None, "Path of the training rows.", required=True)
_IMAGE_ROOT = flags.DEFINE_string(
    "image_root", None, "Folder that the rows' image paths are relative to.", required=True
)
_OUTPUT_DIR = flags.DEFINE_string(
    "output_dir", None, "Folder where the results are written.", required=True
)
_ANSWERS = flags.DEFINE_integer("answers", 8, "Number of answers to each row.", lower_bound=1)
_TEMPERATURE = flags.DEFINE_float(
    "temperature", 1.0, "Sampling temperature; 0 is greedy decoding.", lower_bound=0.0
)
_SEED = flags.DEFINE_integer("seed", 0, "Random seed of the answers.", lower_bound=0)
flags.mark_flag_as_required("config")


def main(_):
    settings = read(_CONFIG.value)
    found = rating.run(
        settings,
        rating.Sampling(_ANSWERS.value, _TEMPERATURE.value, _SEED.value),
        checkpoint=_CHECKPOINT.value,
        rows=_ROWS.value,
        image_root=settings.data.root(_IMAGE_ROOT.value),
        output_dir=cli.output_folder(_OUTPUT_DIR),
    )
    if processes.is_first():
        means = np.array([row["mean_iou"] for row in found])
        low, high = (means < 0.1).mean(), (means > 0.9).mean()
        print(
            f"{len(found)} rows, {_ANSWERS.value} answers each: mean IoU {means.mean():.3f}; of "
            f"the rows {low:.0%} are below 0.1, {high:.0%} above 0.9"
        )


if __name__ == "__main__":
    cli.run(main)
