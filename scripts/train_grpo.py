"""Trains a model by image-aware GRPO, the paper's stage 2.

    python scripts/train_grpo.py --config=configs/grpo_qwen2_vl_7b.py --workdir=runs/grpo \\
        --config.init_from=runs/sft --config.data.train_json=train.json \\
        --config.data.image_root=images

Without --config.init_from it starts from the base model, which doesn't answer in the format yet.

Run the same command again to resume. All settings and their defaults are in mirg_jax/defaults.py;
--config.NAME=VALUE changes one.
"""

from absl import flags
from ml_collections import config_flags

from mirg_jax import cli
from mirg_jax.runs.settings import read_for_training
from mirg_jax.training import grpo

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Recipe: a Python file in configs/ that returns the settings."
)
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Folder of the run, for checkpoints, metrics and logs.", required=True
)
flags.mark_flag_as_required("config")


def main(_):
    settings = read_for_training(_CONFIG.value, "grpo")
    grpo.train(settings, cli.output_folder(_WORKDIR))


if __name__ == "__main__":
    cli.run(main)
